"""The training loop: sample and judge, estimate advantages, update the policy and the estimator.

Read `train` and `_loop` from top to bottom. build.py describes an experiment, step.py the parts of
a step.
"""

import functools
import math
import pathlib
import time
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from poise_jax import files
from poise_jax.data.fingerprint import check_fingerprint
from poise_jax.data.order import example_order
from poise_jax.distributed import processes, sharding
from poise_jax.evaluation.judge import Judge
from poise_jax.learner.warm_start import REPORT_EVERY
from poise_jax.models.io import run_checkpoint
from poise_jax.reports.run_log import metric_of
from poise_jax.rollout import slots
from poise_jax.training import collect, summary, unusual
from poise_jax.training.build import build, initial_params, warmed_up
from poise_jax.training.checkpoints import Checkpoints
from poise_jax.training.interrupts import Interrupts
from poise_jax.training.logging import Logger, Silent
from poise_jax.training.preview import preview
from poise_jax.training.profiling import Profiler
from poise_jax.training.run import Run
from poise_jax.training.state import LoopState, abstract_state, initial_state
from poise_jax.training.step import Clock, Sampling, copy, learn
from poise_jax.training.workdir import open_workdir, write_config
from poise_jax.types import Experience
from poise_jax.verifiers.pool import Pool


def train(config: ConfigDict, workdir: str, allow_config_change: bool = False, overwrite: str = ""):
  """Trains a model; README.md lists the files that it writes to the workdir.

  The same call on the same workdir continues after the last whole checkpoint.

  Args:
    config: see configs/common.py.
    workdir: folder of the run.
    allow_config_change: continue a run with another config than it was started with.
    overwrite: name of the workdir, to delete the run in it and start again.

  Raises:
    UserError, OSError: before training, see `build`, `open_workdir` and `Checkpoints.restore`;
      during training, config.max_skipped_updates optimizer steps in a row were not finite, the disk
      is full, or the verifiers' process died. Earlier checkpoints remain.
    SystemExit: a signal asked to stop, and the run was saved; the code is 128 + the signal's
      number.
  """
  began = time.perf_counter()
  config = config.copy_and_resolve_references()
  workdir = pathlib.Path(workdir)
  experiment = build(config)
  resumes = bool(run_checkpoint.steps_of(workdir)) and not overwrite
  params = None if resumes else initial_params(experiment)  # before anything is written
  with files.disk_explained(workdir):
    processes.check_alike("config", config.to_json())
    changes = processes.on_first(open_workdir, workdir, config, allow_config_change, overwrite)
    processes.check_alike(f"{workdir}, which must be on a disk that all share,", workdir.is_dir())
    if max(run_checkpoint.steps_of(workdir), default=0) >= config.steps:
      if processes.is_first():
        print(f"{workdir} has finished all {config.steps} steps; nothing to do")
      return
    data = check_fingerprint(experiment.task, workdir, config.verifier.function)
    with (
      Checkpoints(workdir, config.checkpoint_keep_every) as checkpoints,
      Interrupts() as interrupts,
      Pool(experiment.verifier.workers, experiment.verifier.time_limit) as pool,
      jax.set_mesh(experiment.mesh),
    ):
      judge = Judge(pool, experiment.verifier, experiment.bounded)
      held_out = (example for test in experiment.held_out for example in test.examples)
      judge.load(example.check for example in [*experiment.task.train, *held_out])
      state, saved = None, {"step": 0, "elapsed": 0.0, "best": None}
      if resumes:
        state, saved = checkpoints.restore(abstract_state(experiment))
        state = LoopState(*state)
      processes.on_first(write_config, workdir, config)  # an allowed change fits the checkpoint
      last_logged = saved["step"] if resumes else -1
      logger = Logger if processes.is_first() else Silent
      with logger(workdir, config, last_logged, began - saved["elapsed"]) as log:
        run = Run(experiment, workdir, judge, checkpoints, interrupts, log)
        functions = data.get("reward_functions", {})
        processes.on_first(run.write_start, saved["step"], changes, functions)
        log.console.print(f"{experiment.summary()}\n{experiment.task.summary()}")
        log.console.print(preview(experiment, judge), markup=False)
        if resumes:
          changed = f" with {'; '.join(changes)}" if changes else ""
          log.console.print(f"resuming {workdir} after step {saved['step']}{changed}", markup=False)
          best = saved["best"]
        else:
          state, best = _begin(run, params)
          del params  # the first update donates them
        _loop(run, state, saved["step"], best)


def _loop(run: Run, state: LoopState, start: int, best: dict):
  """Trains from the step after `start` to the last one."""
  experiment, config, log = run.experiment, run.experiment.config, run.log
  order = example_order(len(experiment.task.train), config.seed)  # position: state.collected
  key = jax.random.key(config.seed)
  last_step = start
  with Profiler(run.workdir / "profile", config.profile_steps) as profiler:
    for step in range(start + 1, config.steps + 1):
      profiler.at(step)
      clock = Clock(checkpoint=run.checkpoints.pop_blocked_seconds())
      log.phase(f"step {step}: sampling")
      experience, groups, collected, metrics = _collect(run, state, order, key, step, clock)
      if run.interrupts.stop_requested():
        break  # the state is still that of the step before: a resumed run samples this step again

      log.phase(f"step {step}: updating")
      policy, estimator, estimate, learner_metrics = learn(
        experiment, step, state.policy, state.estimator, state.reference, experience, groups, clock
      )
      reference = state.reference
      if reference and config.reference_every and step % config.reference_every == 0:
        reference = copy(policy.params)
      state = LoopState(policy, estimator, reference, collected)

      metrics |= sharding.fetch(learner_metrics)
      run.check_skipped(step, state.policy, experience, estimate)
      for message in run.judge.messages():
        log.console.print(f"step {step}: {message}", markup=False)
      metrics |= run.judge.metrics() | clock.metrics()
      due = config.checkpoint_every and step % config.checkpoint_every == 0
      if step % config.eval_every == 0 or step == config.steps:
        metrics |= run.evaluate(step, state.policy.params)
        name = metric_of(experiment.eval.best_by)
        # After a change of best_by, the next evaluation is the first one to go by.
        if metrics[name] > best.get(name, -math.inf):
          best, due = {"step": step, name: metrics[name]}, True
      sample_groups = min(config.log_samples, groups)
      examples = [experiment.task.train[i] for i in sharding.fetch(experience.prompt_ids)]
      signs, shares = unusual.find(examples, experience)
      metrics |= shares
      log.samples(summary.samples(experiment, step, experience, estimate, sample_groups, signs))
      log.log(step, metrics)
      last_step = step
      if run.interrupts.stop_requested():
        break
      if due:
        run.save(state, step, best)
  run.save(state, last_step, best)  # unless it was saved already
  if run.interrupts.signal and last_step < config.steps:
    log.console.print(f"stopped; step {last_step} is saved, and the same command continues there")
    raise SystemExit(run.interrupts.exit_code)


def _begin(run: Run, params: PyTree[Array]) -> tuple[LoopState, dict]:
  """Warm start and first evaluation; returns the state before the first step and the best
  evaluation. Donates `params`."""
  experiment, log = run.experiment, run.log
  if experiment.warm_start.steps:
    log.phase("warm start: compiling", 0, experiment.warm_start.steps)
    params = warmed_up(experiment, params, functools.partial(_report_warm_start, run))
  state = initial_state(experiment, params)
  log.phase("starting", 0, experiment.config.steps)
  metrics = run.evaluate(0, state.policy.params)
  name = metric_of(experiment.eval.best_by)
  best = {"step": 0, name: metrics[name]}
  log.log(0, metrics)
  if experiment.warm_start.steps:
    run.save(state, 0, best)  # a resumed run does not repeat the warm start
  return state, best


def _report_warm_start(run, done, loss):
  steps = run.experiment.warm_start.steps
  run.log.phase("warm start", done, steps)
  if done == steps or done * 10 // steps > (done - REPORT_EVERY) * 10 // steps:  # ten lines
    run.log.console.print(f"warm start {done:4d}/{steps}  loss {loss:.3f}")
  if run.interrupts.stop_requested():
    run.log.console.print("stopped during the warm start; the same command repeats it")
    raise SystemExit(run.interrupts.exit_code)


def _collect(
  run: Run,
  state: LoopState,
  order: Sequence[int],
  key: Key[Array, ""],
  step: int,
  clock: Clock,
) -> tuple[Experience, int, collect.State, dict[str, float]]:
  """Collects the experience of a step, on the mesh; see collect.collect."""
  experiment, config = run.experiment, run.experiment.config
  priorities = experiment.estimator.priorities
  sampling = Sampling(
    experiment,
    run.judge,
    experiment.sampling_params(state.policy.params),
    state.policy.params,
    state.reference,
    key,
    step,
    clock,
  )
  experience, groups, collected, metrics = collect.collect(
    order,
    sampling,
    state.collected,
    experiment.groups,
    experiment.collect,
    config.seed,
    sharding.fetch(priorities(state.estimator)) if priorities else None,
  )
  responses = experiment.groups * experiment.rollout.n
  shards = sharding.batch_shards(experiment.mesh)
  rows = shards * slots.count(experiment.rollout.slots, responses, shards)
  run.log.busy_rows(step, rows, np.concatenate(sampling.busy))
  if experiment.collect.dynamic_sampling:
    experience = sharding.put_batch(experiment.mesh, experience)
    if groups < experiment.groups:
      run.log.console.print(
        f"step {step}: {groups} of {experiment.groups} groups after collect.max_generations="
        f"{experiment.collect.max_generations} batches; training on those"
      )
  return experience, groups, collected, metrics
