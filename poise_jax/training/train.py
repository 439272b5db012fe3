"""The training loop: sample, score, predict baselines, update the policy, refit the probe.

Read `train` from top to bottom; `Run` is what it needs, built and checked before anything is
written to the workdir.
"""

import collections
import dataclasses
import functools
import io
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import sentencepiece
from jax.sharding import Mesh
from ml_collections import ConfigDict

from poise_jax import estimators, files, models, rollout
from poise_jax.data import order as data
from poise_jax.data import tasks, templates
from poise_jax.data.prompts import PromptEncoder
from poise_jax.distributed import processes, sharding
from poise_jax.errors import UserError
from poise_jax.evaluation.answer import HELD_OUT, EvalConfig, EvalSet, evaluate, make_sets
from poise_jax.evaluation.judge import Judge, VerifierConfig
from poise_jax.learner import update
from poise_jax.learner.losses import PolicyLossConfig
from poise_jax.learner.update import UpdateConfig
from poise_jax.learner.warm_start import WarmStartConfig, warm_start, worked_ids
from poise_jax.models import attention
from poise_jax.models.io import run_checkpoint
from poise_jax.models.layouts import sampling_layout, training_shardings
from poise_jax.provenance import provenance
from poise_jax.rollout import RolloutConfig
from poise_jax.rollout.features import check_layers
from poise_jax.training import collect, rewards
from poise_jax.training import post_mortem as faults
from poise_jax.training.checkpoints import Checkpoints
from poise_jax.training.interrupts import Interrupts
from poise_jax.training.logging import Logger, Silent, check_loggers
from poise_jax.training.profiling import Profiler, check_profile_steps
from poise_jax.training.workdir import open_workdir, write_config
from poise_jax.types import Experience
from poise_jax.verifiers.pool import Pool


@dataclasses.dataclass
class Programs:
  """What a step's compiled programs are made from; no task, tokenizer or weights are needed."""

  config: ConfigDict
  mesh: Mesh
  model: models.ModelConfig
  rollout: RolloutConfig
  update: UpdateConfig
  warm_start: WarmStartConfig
  reward: rewards.RewardConfig
  collect: collect.CollectConfig
  estimator: estimators.Estimator
  params: Any  # before training; may be shapes alone
  sampling_params: Callable[[Any], Any]  # params -> the same weights in the sampler's layout

  @property
  def keeps_reference(self) -> bool:
    """Whether a copy of the policy as it was is needed."""
    return bool(self.update.loss.kl_coef or self.reward.kl_coef or self.estimator.reference_n)


@dataclasses.dataclass
class Run(Programs):
  """A resolved experiment: everything that does not change while it trains."""

  task: tasks.Task
  encoder: PromptEncoder
  made_tokenizer: bytes | None  # the sentencepiece model made for this run, if there was none
  eval: EvalConfig
  held_out: list[EvalSet]
  verifier: VerifierConfig


def setup(config: ConfigDict, abstract: bool = False) -> Run:
  """Builds and checks a run; touches no file but the model's.

  Args:
    config: as of configs/common.py.
    abstract: parameters that would be random are shapes only, which cost no memory.

  Raises:
    UserError, OSError: one sentence that names the value that cannot work and the way out.
  """
  for name in ("seed", "log_samples", "checkpoint_every", "reference_every"):
    if config[name] < 0:
      raise UserError(f"{name}={config[name]} must not be negative")
  check_loggers(config.loggers)
  check_profile_steps(config.profile_steps, config.steps)
  mesh = sharding.make_mesh(**config.mesh)
  update.check_dtype("model.dtype", config.model.dtype)
  warm_start_config = WarmStartConfig(**config.warm_start)
  task = tasks.make(config.task, config.seed)
  made_tokenizer = None
  if config.model.source:
    tokenizer = models.load_tokenizer(config.model.source)
    model, params = models.load(config.model.source, shardings=training_shardings(mesh))
    models.check_fits(tokenizer, model)
    model.check_is(config.model.shape)
  else:
    made_tokenizer = train_tokenizer(task, templates.resolve(config.task.template))
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, "tokenizer.model")
      path.write_bytes(made_tokenizer)
      tokenizer = models.load_tokenizer(path)
    model = models.ModelConfig(vocab_size=tokenizer.vocab_size, **config.model.shape)
    if abstract:
      params = abstract_params(mesh, model)
    else:
      params = models.init(model, jax.random.fold_in(jax.random.key(config.seed), 0))
      params = sharding.place(params, training_shardings(mesh)(model))
  encoder = PromptEncoder.of(config.task, tokenizer)
  task = data.fit(task, encoder, config.task.drop_long)  # now, not in step 1,000
  if warm_start_config.steps:
    for example in task.train:
      worked_ids(tokenizer, example, config.rollout.max_new_tokens)
  eval_config = EvalConfig(**{k: v for k, v in config.eval.items() if k != "tasks"})
  held_out = [EvalSet(HELD_OUT, task.test, encoder, config.task.to_dict())]
  if config.eval.tasks:
    held_out = make_sets(config, tokenizer)
    _check_held_out(task, held_out)
  made = programs(
    config,
    mesh,
    model,
    params,
    eos_ids=tuple(tokenizer.eos_ids),
    pad_id=tokenizer.pad_id,
    think_end=tuple(tokenizer.encode(config.task.think_end)) if config.task.think_end else (),
    domains=task.domains,
    prompts=len(task.train),
  )
  return Run(
    **vars(made),
    task=task,
    encoder=encoder,
    made_tokenizer=made_tokenizer,
    eval=eval_config,
    held_out=held_out,
    verifier=VerifierConfig(**config.verifier),
  )


def programs(
  config: ConfigDict,
  mesh: Mesh,
  model: models.ModelConfig,
  params: Any,
  eos_ids: tuple[int, ...],
  pad_id: int = 0,
  think_end: tuple[int, ...] = (),
  domains: tuple[str, ...] = ("",),
  prompts: int = 1,
) -> Programs:
  """What a step's programs are made from, checked.

  Args:
    config: as of configs/common.py.
    mesh: of devices that may be described only.
    model: the decoder's shape.
    params: its parameters, or `abstract_params`.
    eos_ids: the tokenizer's, as are pad_id and think_end.
    pad_id: fills positions after the end.
    think_end: token ids of config.task.think_end.
    domains: of the task.
    prompts: of its training set.

  Raises:
    UserError: one sentence that names the value that cannot work and the way out.
  """
  # Of a mesh that is imagined only, nothing but shapes is asked.
  platform = mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else "cpu"
  kernel = attention.resolve(config.train.attention, platform)
  rollout_config = RolloutConfig(
    **config.rollout, attention=kernel, eos_ids=eos_ids, pad_id=pad_id, think_end=think_end
  )
  check_layers(model, rollout_config)
  loss = PolicyLossConfig(**config.train.loss)
  fields = {**config.train, "loss": loss, "attention": kernel}
  update_config = UpdateConfig(temperature=config.rollout.temperature, **fields)
  reward_config = rewards.RewardConfig(**config.reward)
  collect_config = collect.CollectConfig(**config.collect)
  _check_sizes(config, mesh, update_config)
  estimator = estimators.make(
    config.estimator,
    estimators.Setting(
      rollout=rollout_config,
      model=model,
      update=update_config,
      probe=estimators.ProbeConfig(**config.probe),
      critic=estimators.CriticConfig(**config.critic),
      domains=domains,
      prompts=prompts,
      reference_n=config.reference_n,
    ),
  )
  jax.eval_shape(estimator.init, models.abstract_params(model))  # raises what cannot be
  _check_together(config, reward_config, collect_config)
  return Programs(
    config=config,
    mesh=mesh,
    model=model,
    rollout=rollout_config,
    update=update_config,
    warm_start=WarmStartConfig(**config.warm_start),
    reward=reward_config,
    collect=collect_config,
    estimator=estimator,
    params=params,
    sampling_params=sampling_layout(mesh, model, config.model.dtype),
  )


def abstract_params(mesh: Mesh, model: models.ModelConfig) -> Any:
  """The parameters' shapes with the shardings of the training layout: no memory.

  Raises:
    UserError: a dimension does not divide over the mesh.
  """
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    models.abstract_params(model),
    training_shardings(mesh)(model),
  )


def _check_sizes(config, mesh, update_config):
  """Raises UserError for batch sizes that do not divide, before an hour of compute finds out."""
  n, shards = config.rollout.n, sharding.batch_shards(mesh)
  for name, size, divisor_name, divisor in (
    ("rollouts", config.rollouts, "rollout.n", n),
    ("rollouts", config.rollouts, "train.minibatch_size", update_config.minibatch_size),
    ("prompts a step (rollouts / rollout.n)", config.rollouts // n, "batch shards", shards),
    ("train.microbatch_size", update_config.microbatch_size, "batch shards", shards),
    ("eval_batch", config.eval_batch, "batch shards", shards),
    ("steps", config.steps, "one step", 1),
    ("eval_every", config.eval_every, "one step", 1),
    ("max_skipped_updates", config.max_skipped_updates, "one update", 1),
  ):
    if size < 1 or size % divisor:
      what = f"the mesh's {divisor_name}" if divisor_name == "batch shards" else divisor_name
      raise UserError(f"{name}={size} is not a positive multiple of {what}={divisor}")
  if config.rollout.temperature == 0:
    raise UserError("rollout.temperature=0 explores nothing; training needs it above 0")
  truncates = config.rollout.top_p < 1 or config.rollout.top_k
  if truncates and update_config.old_logprobs == "sampler":
    raise UserError(
      "train.old_logprobs='sampler' needs rollout.top_p=1 and rollout.top_k=0: the loss's ratio is "
      "of the full distribution; use 'recompute'"
    )


def _check_together(config, reward, collecting):
  """Raises UserError for options that would silently do something else than they say."""
  for option in ("dynamic_sampling", "greso_target"):
    if getattr(collecting, option) and config.estimator not in estimators.GROUP:
      raise UserError(
        f"collect.{option} leaves out groups for having no difference within; estimator "
        f"{config.estimator!r} learns from those as well. It works with "
        f"{', '.join(estimators.GROUP)}"
      )
  if config.estimator == "sppo" and (reward.kl_coef or reward.overlong_buffer):
    raise UserError(
      "sppo's critic is a probability: its rewards must be in [0, 1], so reward.kl_coef and "
      "reward.overlong_buffer must be 0"
    )
  if config.probe.model == "logistic" and (reward.kl_coef or reward.overlong_buffer):
    raise UserError(
      "a logistic probe predicts a probability: its rewards must be in [0, 1], so reward.kl_coef "
      "and reward.overlong_buffer must be 0"
    )
  if not 0 < config.reference_n:
    raise UserError(f"reference_n={config.reference_n} must be at least 1")


def _check_held_out(task, sets):
  """Raises UserError for a test set that is trained on."""
  trained = {example.question for example in task.train}
  for test in sets:
    known = [e.question for e in test.examples if e.question in trained]
    if known:
      raise UserError(
        f"eval.tasks.{test.name}: {len(known)} of its {len(test.examples)} questions are in the "
        f"training set too, such as {known[0][:60]!r}; evaluate another task or seed"
      )


def train_tokenizer(task: tasks.Task, template: str) -> bytes:
  """A sentencepiece model (characters) of the task's own text, for models made from scratch."""
  text = [f"{template.replace('{question}', e.question)} {e.worked}" for e in task.train[:2000]]
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(text), model_writer=model, model_type="char", minloglevel=2
  )
  return model.getvalue()


def train(config: ConfigDict, workdir: str, allow_config_change: bool = False, overwrite: str = ""):
  """Trains as `config` says and leaves in `workdir` what docs/architecture.md lists.

  The same call on the same workdir goes on from the last whole checkpoint.

  Args:
    config: see configs/common.py.
    workdir: the run's folder.
    allow_config_change: go on with another config than the one that the run began with.
    overwrite: the workdir's name, to delete the run in it and start again.

  Raises:
    UserError, OSError: before training, see `setup`, `open_workdir` and `Checkpoints.restore`.
    FloatingPointError: config.max_skipped_updates optimizer steps in a row were not finite.
    OSError: the disk was full, or verifiers died. What was saved before stays as it is.
    SystemExit: a signal asked to stop; 128 + its number. The run was saved.
  """
  clock = time.perf_counter()
  config = config.copy_and_resolve_references()
  workdir = pathlib.Path(workdir)
  run = setup(config)
  with files.disk_explained(workdir):
    processes.check_alike("config", config.to_json())
    changes = processes.on_first(open_workdir, workdir, config, allow_config_change, overwrite)
    processes.check_alike(f"{workdir}, which must be on a disk that all share,", workdir.is_dir())
    if max(run_checkpoint.steps_of(workdir), default=0) >= config.steps:
      if processes.is_first():
        print(f"{workdir} has finished all {config.steps} steps; nothing to do")
      return
    data.remember(run.task, workdir)
    with (
      Checkpoints(workdir, config.checkpoint_keep_every) as checkpoints,
      Interrupts() as interrupts,
      Pool(run.verifier.workers, run.verifier.time_limit) as pool,
      jax.set_mesh(run.mesh),
    ):
      judge = Judge(pool, run.verifier)
      asked = [*run.task.train, *(example for test in run.held_out for example in test.examples)]
      judge.load(example.check for example in asked)
      _train(run, workdir, judge, checkpoints, interrupts, changes, clock)


def _train(run, workdir, judge, checkpoints, interrupts, changes, clock):
  """The loop; see `train`. `clock`: time.perf_counter() when the process began to work."""
  config, prompts_a_step = run.config, run.config.rollouts // run.rollout.n
  stream = data.order(len(run.task.train), config.seed)  # collect.State keeps the position
  start, remembered, elapsed, best = 0, None, 0.0, {"step": 0, "eval/accuracy": -1.0}
  if run_checkpoint.steps_of(workdir):
    params, run.params = run.params, None
    remembered, saved = checkpoints.restore(_abstract(_beginning(run, params)))
    del params
    start, elapsed, best = saved["step"], saved["elapsed"], saved["best"]
  processes.on_first(write_config, workdir, config)  # a change that is allowed fits what is there

  kept = -1 if remembered is None else start  # of what metrics.jsonl and samples.jsonl hold
  logger = Logger if processes.is_first() else Silent
  with (
    logger(workdir, config, kept, clock - elapsed) as log,
    Profiler(workdir / "profile", config.profile_steps) as profiler,
  ):
    processes.on_first(_begin_files, run, workdir, start, changes)
    log.console.print(data.summary(run.task))
    if remembered is None:
      params, run.params = run.params, None  # donated by the first update
      if run.warm_start.steps:
        params = _warmed_up(run, params, log, interrupts)
      remembered = _beginning(run, params)
      log.phase("evaluating")
      metrics = _evaluate(run, judge, workdir, 0, run.sampling_params(params))
      best = {"step": 0, "eval/accuracy": metrics["eval/accuracy"]}
      log.log(0, metrics)
      del params
    else:
      log.console.print(f"resuming {workdir} after step {start}")
    state, estimator_state, reference, collected = remembered
    del remembered

    def save(step):
      log.phase(f"step {step}: saving")
      about = {
        "config": json.loads(config.to_json()),
        "model": run.model.to_hf(),
        "best": best,
        "elapsed": time.perf_counter() - log.clock,
      }
      checkpoints.save(step, (state, estimator_state, reference, collected), about)

    if kept < 0 and run.warm_start.steps:
      save(0)  # the warm start is not made twice
    done = start
    for step in range(start + 1, config.steps + 1):
      profiler.at(step)
      laps = Clock(checkpoint=checkpoints.held_up())
      log.phase(f"step {step}: sampling")
      policies = (run.sampling_params(state.params), state.params, reference)
      prefer = run.estimator.priorities and run.estimator.priorities(estimator_state)
      prefer = sharding.fetch(prefer)

      experience, groups, collected_after, metrics = collect.collect(
        stream,
        functools.partial(_generate, run, judge, policies, step, laps),
        collected,
        prompts_a_step,
        run.collect,
        config.seed,
        prefer,
      )
      del policies  # the memory of a second copy of the weights is the update's now
      if interrupts.agreed():
        break  # nothing of this step is remembered yet: the resumed run samples it again
      collected = collected_after
      if run.collect.dynamic_sampling:
        experience = sharding.put_batch(run.mesh, experience)
        if groups < prompts_a_step:
          log.console.print(
            f"step {step}: {groups} of {prompts_a_step} groups after collect.max_generations="
            f"{run.collect.max_generations} batches; training on those"
          )
      rollouts = experience.rollouts

      # Predict with what was learned in earlier steps, and only then learn from this one.
      advantages, baselines, seen = run.estimator.estimate(estimator_state, experience)
      metrics |= sharding.fetch(seen)
      advantages = jax.block_until_ready(advantages)
      laps.lap("estimate")

      log.phase(f"step {step}: updating")
      if step > run.estimator.pretrain_steps and groups:
        learned = rollouts
        if run.reward.overlong_filter:
          learned = rollouts.replace(mask=rollouts.mask & ~rollouts.truncated[..., None])
        dynamic = run.collect.dynamic_sampling
        state, seen = update.step(
          run.model,
          state,
          learned,
          advantages,
          run.update,
          reference,
          age=experience.age if dynamic else None,
          groups=groups,
        )
        metrics |= sharding.fetch(seen)
      if reference and config.reference_every and step % config.reference_every == 0:
        reference = _copy(state.params)
      laps.lap("update")
      if _finite((rollouts.features, experience.token_rewards)):  # or a probe would never forget
        estimator_state = run.estimator.update(estimator_state, experience, state.params)
      jax.block_until_ready(estimator_state)
      laps.lap("estimate")

      shown = min(config.log_samples, groups)
      if skipped := int(state.skipped_in_a_row):
        log.console.print(
          f"step {step}: loss or gradient not finite, policy left as it was; {skipped} optimizer "
          f"steps in a row, max_skipped_updates={config.max_skipped_updates}"
        )
      learned_from = sharding.fetch((experience, baselines, advantages))
      if skipped >= config.max_skipped_updates:
        rows = _samples(run, step, groups, *learned_from)
        path = processes.on_first(
          faults.write_post_mortem, workdir, step, learned_from[0], learned_from[2], rows
        )
        raise FloatingPointError(
          f"loss or gradient were not finite in {skipped} optimizer steps in a row, up to step "
          f"{step}; its batch is in {path}. Lower train.learning_rate or train.max_grad_norm and "
          "go on from the last checkpoint with --allow_config_change"
        )
      if judge.crashed:
        log.console.print(f"step {step}: a verifier crashed, the last time with {judge.crashed}")
      metrics |= judge.metrics()
      metrics |= _summary(run, groups, *learned_from) | laps.metrics()
      due = config.checkpoint_every and step % config.checkpoint_every == 0
      if step % config.eval_every == 0 or step == config.steps:
        log.phase(f"step {step}: evaluating")
        metrics |= _evaluate(run, judge, workdir, step, run.sampling_params(state.params))
        if metrics["eval/accuracy"] > best["eval/accuracy"]:
          best, due = {"step": step, "eval/accuracy": metrics["eval/accuracy"]}, True
      log.samples(_samples(run, step, shown, *learned_from))
      log.log(step, metrics)
      done = step
      if interrupts.agreed():
        break
      if due:
        save(step)
    save(done)  # if it is not there yet
    if interrupts.signal and done < config.steps:
      log.console.print(f"stopped; step {done} is saved, and the same command goes on there")
      raise SystemExit(interrupts.exit_code)


def _beginning(run, params):
  """What is remembered between steps, before the first one: the states of policy and estimator,
  the reference policy, and what was collected."""
  trained = (
    update.init(params, run.update),
    run.estimator.init(params),
    _copy(params) if run.keeps_reference else (),
  )
  collected = collect.init(
    run.collect,
    groups=run.config.rollouts // run.rollout.n,
    n=run.rollout.n,
    t=run.rollout.max_new_tokens,
    prompt=run.config.task.max_prompt_length,
    features=rollout.feature_size(run.model, run.rollout),
    prompts=len(run.task.train),
  )
  return (*sharding.spread(run.mesh, trained), collected)


def _begin_files(run, workdir, start, changes):
  """What a start leaves in the workdir before anything is trained."""
  with (workdir / "provenance.jsonl").open("a") as file:
    file.write(json.dumps({**provenance(), "step": start, "config_changes": changes}) + "\n")
  if run.made_tokenizer:
    (workdir / "tokenizer.model").write_bytes(run.made_tokenizer)


def _abstract(tree):
  """Shapes, dtypes and shardings of a tree's arrays, without the memory."""
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


@jax.jit
def _finite(tree):
  return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _warmed_up(run, params, log, interrupts):
  def report(done, loss):
    log.phase(f"warm start {done}/{run.warm_start.steps}")
    log.console.print(f"warm start {done:4d}/{run.warm_start.steps}  loss {loss:.3f}")
    if interrupts.agreed():
      log.console.print("stopped in the warm start, which the same command begins again")
      raise SystemExit(interrupts.exit_code)

  return warmed_up(run, params, report)


def _summary(run, groups, experience, _, advantages):
  """Metrics of the groups that a step trained on."""
  if not groups:
    return {}
  seen = jax.tree.map(lambda x: x[:groups], experience)
  rewards, said = seen.rewards, seen.rollouts
  by_difficulty = collections.defaultdict(list)
  for prompt, earned in zip(seen.prompt_ids, rewards, strict=True):
    by_difficulty[run.task.train[prompt].difficulty].append(earned)
  return {
    **{f"reward/mean/{name}": np.mean(earned) for name, earned in sorted(by_difficulty.items())},
    "reward/mean": rewards.mean(),
    "reward/std": rewards.std(),
    "reward/score": seen.scores.mean(),
    "advantage/std": advantages[:groups].std(),
    "rollout/tokens": said.mask.sum(),
    "rollout/length": said.mask.sum(-1).mean(),
    "rollout/truncated_fraction": said.truncated.mean(),
    "rollout/entropy": said.entropies.sum() / said.mask.sum(),
  }


def _samples(run, step, groups, experience, baselines, advantages):
  """The first groups' answers as rows of samples.jsonl."""
  seen = jax.tree.map(lambda x: x[:groups], experience)
  tokens, mask, rewards = seen.rollouts.tokens, seen.rollouts.mask, seen.rewards
  entropies = seen.rollouts.entropies.astype(np.float64).round(3)  # nats
  rows = []
  for p, i in np.ndindex(rewards.shape):
    example = run.task.train[seen.prompt_ids[p]]
    ids = tokens[p, i][mask[p, i]].tolist()
    rows.append(
      {
        "step": step,
        "question": example.question,
        "answer": example.answer,
        "difficulty": example.difficulty,
        "response": run.encoder.tokenizer.decode(ids),
        "tokens": models.token_texts(run.encoder.tokenizer, ids),
        "entropies": entropies[p, i][mask[p, i]].tolist(),
        "reward": float(rewards[p, i]),
        "baseline": float(baselines[p, i]),
        "advantage": float(advantages[p, i].flat[0]),  # of the first token, if each has its own
      }
    )
  return rows


def _generate(run, judge, policies, step, laps, ids, generation):
  """Samples prompts and judges what was said.

  Args:
    run: the experiment.
    judge: scores the answers and counts those without a verdict.
    policies: the policy in the sampling layout, in the training layout, and the reference.
    step: of training.
    laps: a Clock.
    ids: the prompts' places in the training set [P].
    generation: how many batches this step has sampled before.
  """
  decoding, params, reference = policies
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(run.config.seed), step), generation)
  examples = [run.task.train[i] for i in ids]
  prompts = sharding.put_rows(
    run.mesh, len(examples), lambda rows: run.encoder([examples[i] for i in rows])
  )
  rollouts = rollout.sample(run.model, decoding, prompts, key, run.rollout)
  jax.block_until_ready(rollouts)
  laps.lap("rollout")
  laps.add("collect/tokens", rollouts.mask.sum())
  scores = score(run, judge, examples, rollouts)
  laps.lap("reward")
  reference_scores = ()
  if run.estimator.reference_n:
    options = dataclasses.replace(run.rollout, n=run.estimator.reference_n, feature_layers=())
    of_reference = run.sampling_params(reference)
    told = rollout.sample(run.model, of_reference, prompts, jax.random.fold_in(key, 0), options)
    reference_scores = score(run, judge, examples, told)
    laps.lap("reference")
    laps.add("collect/tokens", told.mask.sum())
  logprobs = ()
  if run.reward.kl_coef:
    logprobs = tuple(
      update.sequence_logprobs(run.model, of, rollouts, run.update) for of in (params, reference)
    )
  domains = {name: i for i, name in enumerate(run.task.domains)}
  batch = sharding.put_batch(
    run.mesh,
    {
      "scores": scores,
      "domains": np.array([domains[e.domain] for e in examples], np.int32),
      "prompt_ids": np.asarray(ids, np.int32),
      "age": np.zeros(len(ids), np.int32),
      "reference_scores": reference_scores,
    },
  )
  earned = rewards.token_rewards(batch["scores"], rollouts.mask, run.reward, *logprobs)
  laps.lap("reward")
  return Experience(rollouts=rollouts, token_rewards=earned, **batch)


def score(run: Run, judge: Judge, examples: list[tasks.Example], rollouts) -> np.ndarray:
  """The verifier's verdicts [P, n] float32 on what was said."""
  tokens, mask = sharding.fetch((rollouts.tokens, rollouts.mask))
  rows = zip(np.concatenate(tokens), np.concatenate(mask), strict=True)
  said, decode = [row[kept].tolist() for row, kept in rows], run.encoder.tokenizer.decode
  texts = processes.divided(lambda part: [decode(ids) for ids in part], said)
  checks = [example.check for example in examples for _ in range(tokens.shape[1])]
  verdicts = judge.score(checks, texts)
  return np.array([verdict.score for verdict in verdicts], np.float32).reshape(mask.shape[:2])


class Clock:
  """Wall-clock seconds of a step and of its parts, and what else adds up over its batches."""

  def __init__(self, checkpoint: float = 0.0):
    """checkpoint: seconds for which saving held the loop up since the step before."""
    self.last = time.perf_counter()
    self.start = self.last - checkpoint
    self.parts = {"time/checkpoint": checkpoint}

  def lap(self, name: str):
    """Adds the time since the last lap to a part; the caller has waited for its arrays."""
    now = time.perf_counter()
    self.add(f"time/{name}", now - self.last)
    self.last = now

  def add(self, metric: str, value: float):
    """Adds to a metric of this step."""
    self.parts[metric] = self.parts.get(metric, 0.0) + float(value)

  def metrics(self) -> dict[str, float]:
    """time/step and time/<part>, in seconds, and what was added."""
    return {"time/step": self.last - self.start, **self.parts}


def _copy(params):
  """The same parameters in memory of their own: the update donates those of its state."""
  return jax.tree.map(jnp.copy, params)


def warmed_up(run: Run, params: Any, report: Callable[[int, float], None]):
  """`params` (donated) after the config's supervised warm start; see supervised.warm_start."""
  length, seed = run.rollout.max_new_tokens, run.config.seed
  return warm_start(
    run.model, params, run.encoder, run.task.train, length, run.warm_start, seed, report
  )


def _evaluate(run, judge, workdir, step, params):
  """Held-out metrics; keeps the answers in answers/step_N.jsonl and, of those that are sampled
  beside the greedy ones, in answers_sampled/step_N.jsonl."""
  score, batch = functools.partial(judge.score, training=False), run.config.eval_batch
  metrics, *answers = evaluate(
    run.model, params, run.held_out, run.rollout, run.eval, batch, run.mesh, score
  )
  for name, rows in zip(("answers", "answers_sampled"), answers, strict=True):
    if rows and processes.is_first():
      (workdir / name).mkdir(exist_ok=True)
      lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
      (workdir / name / f"step_{step}.jsonl").write_text("".join(lines))
  return metrics
