"""The training loop: sample, score, predict baselines, update the policy, refit the probe.

Read `train` from top to bottom; `Run` is what it needs, built and checked before anything is
written to the workdir.
"""

import dataclasses
import functools
import io
import json
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from grain import MapDataset
from jax.sharding import Mesh
from ml_collections import ConfigDict

from poise_jax import estimators, models, rollout, sharding, tasks, update
from poise_jax.checkpoints import Checkpoints
from poise_jax.evaluate import evaluate
from poise_jax.losses import PolicyLossConfig
from poise_jax.metrics import Logger
from poise_jax.prompts import PromptEncoder
from poise_jax.provenance import provenance
from poise_jax.rollout import RolloutConfig
from poise_jax.rollout.features import check_layers
from poise_jax.supervised import WarmStartConfig, warm_start, worked_ids
from poise_jax.update import UpdateConfig


@dataclasses.dataclass
class Run:
  """A resolved experiment: everything that does not change while it trains."""

  config: ConfigDict
  mesh: Mesh
  task: tasks.Task
  encoder: PromptEncoder
  made_tokenizer: bytes | None  # the sentencepiece model made for this run, if there was none
  model: models.ModelConfig
  rollout: RolloutConfig
  update: UpdateConfig
  warm_start: WarmStartConfig
  estimator: estimators.Estimator
  params: Any  # before training
  sampling_params: Callable[[Any], Any]  # params -> the same weights in the sampler's layout


def setup(config: ConfigDict) -> Run:
  """Builds and checks a run; touches no file but the model's.

  Raises:
    ValueError, OSError: one sentence that names the value that cannot work and the way out.
  """
  mesh = sharding.make_mesh(**config.mesh)
  update.check_dtype("model.dtype", config.model.dtype)
  warm_start_config = WarmStartConfig(**config.warm_start)
  task = tasks.arithmetic.make(
    tuple(config.task.kinds),
    config.task.train,
    config.task.test,
    config.seed,
    config.task.careless,
  )
  made_tokenizer = None
  if config.model.source:
    tokenizer = models.load_tokenizer(config.model.source)
    model, params = models.load(config.model.source)
    models.check_fits(tokenizer, model)
  else:
    made_tokenizer = train_tokenizer(task, config.task.template)
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, "tokenizer.model")
      path.write_bytes(made_tokenizer)
      tokenizer = models.load_tokenizer(path)
    model = models.ModelConfig(vocab_size=tokenizer.vocab_size, **config.model.shape)
    params = models.init(model, jax.random.fold_in(jax.random.key(config.seed), 0))
  axes, shapes = models.logical_axes(model), models.abstract_params(model)
  params = jax.device_put(params, sharding.param_shardings(mesh, shapes, axes))
  encoder = PromptEncoder(
    tokenizer,
    config.task.template,
    config.task.chat,
    config.task.system,
    config.task.max_prompt_length,
  )
  for example in (*task.test, *task.train):
    encoder.encode(example)  # a prompt that is too long is found now, not in step 1,000
    if warm_start_config.steps:
      worked_ids(tokenizer, example, config.rollout.max_new_tokens)
  rollout_config = RolloutConfig(
    **config.rollout,
    eos_ids=tuple(tokenizer.eos_ids),
    pad_id=tokenizer.pad_id,
    think_end=tuple(tokenizer.encode(config.task.think_end)) if config.task.think_end else (),
  )
  check_layers(model, rollout_config)
  loss = PolicyLossConfig(**config.train.loss)
  fields = {k: v for k, v in config.train.items() if k != "loss"}
  update_config = UpdateConfig(loss=loss, temperature=config.rollout.temperature, **fields)
  _check_sizes(config, mesh, update_config)
  estimator = estimators.make(
    config.estimator,
    config.rollout.n,
    rollout.feature_size(model, rollout_config),
    len(task.domains),
    estimators.ProbeConfig(**config.probe),
  )
  jax.eval_shape(estimator.init)  # raises what probe and buffer cannot be
  return Run(
    config=config,
    mesh=mesh,
    task=task,
    encoder=encoder,
    made_tokenizer=made_tokenizer,
    model=model,
    rollout=rollout_config,
    update=update_config,
    warm_start=warm_start_config,
    estimator=estimator,
    params=params,
    sampling_params=_sampling_layout(mesh, model, config.model.dtype),
  )


def _check_sizes(config, mesh, update_config):
  """Raises ValueError for batch sizes that do not divide, before an hour of compute finds out."""
  n, shards = config.rollout.n, sharding.batch_shards(mesh)
  for name, size, divisor_name, divisor in (
    ("rollouts", config.rollouts, "rollout.n", n),
    ("rollouts", config.rollouts, "train.minibatch_size", update_config.minibatch_size),
    ("prompts a step (rollouts / rollout.n)", config.rollouts // n, "batch shards", shards),
    ("train.microbatch_size", update_config.microbatch_size, "batch shards", shards),
    ("eval_batch", config.eval_batch, "batch shards", shards),
    ("steps", config.steps, "one step", 1),
    ("eval_every", config.eval_every, "one step", 1),
  ):
    if size < 1 or size % divisor:
      what = f"the mesh's {divisor_name}" if divisor_name == "batch shards" else divisor_name
      raise ValueError(f"{name}={size} is not a positive multiple of {what}={divisor}")
  if config.rollout.temperature == 0:
    raise ValueError("rollout.temperature=0 explores nothing; training needs it above 0")
  truncates = config.rollout.top_p < 1 or config.rollout.top_k
  if truncates and update_config.old_logprobs == "sampler":
    raise ValueError(
      "train.old_logprobs='sampler' needs rollout.top_p=1 and rollout.top_k=0: the loss's ratio is "
      "of the full distribution; use 'recompute'"
    )


def train_tokenizer(task: tasks.Task, template: str) -> bytes:
  """A sentencepiece model (characters) of the task's own text, for models made from scratch."""
  text = [f"{template.replace('{question}', e.question)} {e.worked}" for e in task.train[:2000]]
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(text), model_writer=model, model_type="char", minloglevel=2
  )
  return model.getvalue()


def train(config: ConfigDict, workdir: str):
  """Trains as `config` says and leaves in `workdir` what docs/architecture.md lists.

  The same call on the same workdir goes on from the last whole checkpoint.

  Raises:
    ValueError, OSError: before training, see `setup` and `open_workdir`.
    FloatingPointError: loss or gradient are not finite.
  """
  clock = time.perf_counter()
  config = config.copy_and_resolve_references()
  run = setup(config)
  workdir = open_workdir(pathlib.Path(workdir), config)
  key = jax.random.key(config.seed)
  n, prompts_a_step = run.rollout.n, config.rollouts // run.rollout.n
  # Random access by position, reshuffled every epoch: the step number is the input position.
  data = MapDataset.range(len(run.task.train)).seed(config.seed).shuffle().repeat()
  domains_of = {name: i for i, name in enumerate(run.task.domains)}
  checkpoints = Checkpoints(workdir)
  start = checkpoints.latest() or 0

  with Logger(workdir, config.steps, start, clock) as log, jax.set_mesh(run.mesh):
    if start >= config.steps:
      log.console.print(f"{workdir} has finished all {config.steps} steps; nothing to do")
      return
    with (workdir / "provenance.jsonl").open("a") as file:
      file.write(json.dumps(provenance()) + "\n")
    if run.made_tokenizer:
      (workdir / "tokenizer.model").write_bytes(run.made_tokenizer)
    params = run.params
    if not start and run.warm_start.steps:
      params = _warm_start(run, params, log)
    state, estimator_state = update.init(params, run.update), run.estimator.init()
    reference = _copy(params) if run.update.loss.kl_coef else ()
    del params
    run.params = None  # donated by the first update
    if start:
      state, estimator_state, reference = checkpoints.restore((state, estimator_state, reference))
      log.console.print(f"resuming {workdir} after step {start}")
    else:
      log.phase("evaluating")
      log.log(0, _evaluate(run, workdir, 0, run.sampling_params(state.params)))

    for step in range(start + 1, config.steps + 1):
      laps = Clock()

      log.phase(f"step {step}: sampling")
      first = (step - 1) * prompts_a_step
      examples = [run.task.train[data[first + i]] for i in range(prompts_a_step)]
      prompts = sharding.put_batch(run.mesh, run.encoder(examples))
      decoding = run.sampling_params(state.params)
      step_key = jax.random.fold_in(key, step)
      rollouts = rollout.sample(run.model, decoding, prompts, step_key, run.rollout)
      del decoding  # the memory of a second copy of the weights is the update's now
      tokens, mask = jax.device_get((rollouts.tokens, rollouts.mask))
      laps.lap("rollout")

      decode = run.encoder.tokenizer.decode
      texts = [
        [decode(tokens[p, i][mask[p, i]].tolist()) for i in range(n)] for p in range(prompts_a_step)
      ]
      rewards = np.array(
        [[run.task.score(e, t) for t in group] for e, group in zip(examples, texts, strict=True)],
        np.float32,
      )
      laps.lap("reward")

      # Predict with the probe of earlier steps, and only then let it learn from this one.
      domains = np.array([domains_of[e.domain] for e in examples], np.int32)
      seen = (jnp.asarray(rewards), rollouts.features, jnp.asarray(domains))
      advantages, baselines, probe_metrics = run.estimator.estimate(estimator_state, *seen)
      estimator_state = jax.block_until_ready(run.estimator.update(estimator_state, *seen))
      laps.lap("estimate")

      log.phase(f"step {step}: updating")
      state, metrics = update.step(
        run.model, state, rollouts, advantages, run.update, reference
      )
      if reference and config.reference_every and step % config.reference_every == 0:
        reference = _copy(state.params)
      metrics = jax.device_get(metrics)
      laps.lap("update")

      for name in ("policy/loss", "policy/grad_norm"):
        if not np.isfinite(metrics[name]):
          raise FloatingPointError(
            f"{name} is {metrics[name]} at step {step}; lower train.learning_rate, or look at the "
            f"last lines of {workdir / 'samples.jsonl'}"
          )
      advantages, baselines = np.asarray(advantages), np.asarray(baselines)
      metrics |= jax.device_get(probe_metrics) | {
        "reward/mean": rewards.mean(),
        "reward/std": rewards.std(),
        "advantage/std": advantages.std(),
        "rollout/tokens": mask.sum(),
        "rollout/length": mask.sum(-1).mean(),
        "rollout/truncated_fraction": np.asarray(rollouts.truncated).mean(),
        "rollout/entropy": np.asarray(rollouts.entropies).sum() / mask.sum(),
        **laps.metrics(),
      }
      if step % config.eval_every == 0 or step == config.steps:
        log.phase(f"step {step}: evaluating")
        metrics |= _evaluate(run, workdir, step, run.sampling_params(state.params))
      log.samples(
        [
          {
            "step": step,
            "question": examples[p].question,
            "answer": examples[p].answer,
            "difficulty": examples[p].difficulty,
            "response": texts[p][i],
            "reward": float(rewards[p, i]),
            "baseline": float(baselines[p, i]),
            "advantage": float(advantages[p, i]),
          }
          for p in range(min(config.log_samples, prompts_a_step))
          for i in range(n)
        ]
      )
      log.log(step, metrics)
      if step == config.steps or (config.checkpoint_every and step % config.checkpoint_every == 0):
        log.phase(f"step {step}: saving")
        checkpoints.save(step, (state, estimator_state, reference))
  checkpoints.close()


class Clock:
  """Wall-clock seconds of a step and of its parts."""

  def __init__(self):
    self.start = self.last = time.perf_counter()
    self.parts = {}

  def lap(self, name: str):
    """Books the time since the last lap; the caller has waited for the part's arrays."""
    now = time.perf_counter()
    self.parts[f"time/{name}"] = now - self.last
    self.last = now

  def metrics(self) -> dict[str, float]:
    """time/step and time/<part>, in seconds."""
    return {"time/step": self.last - self.start, **self.parts}


def _copy(params):
  """The same parameters in memory of their own: the update donates those of its state."""
  return jax.tree.map(jnp.copy, params)


def _sampling_layout(mesh, model, dtype):
  """params -> the same weights as the sampler wants them, one jitted call a step."""
  layout = functools.partial(models.sampling_params, model, dtype=jnp.dtype(dtype))
  shapes = jax.eval_shape(layout, models.abstract_params(model))
  axes = models.sampling_axes(model)
  out = sharding.param_shardings(mesh, shapes, axes, sharding.SAMPLING_RULES)
  return jax.jit(layout, out_shardings=out)


def _warm_start(run, params, log):
  def report(step, loss):
    log.phase(f"warm start {step}/{run.warm_start.steps}")
    log.console.print(f"warm start {step:4d}/{run.warm_start.steps}  loss {loss:.3f}")

  length, seed = run.rollout.max_new_tokens, run.config.seed
  return warm_start(
    run.model, params, run.encoder, run.task.train, length, run.warm_start, seed, report
  )


def _evaluate(run, workdir, step, params):
  """Held-out metrics; keeps the answers in answers/step_N.jsonl."""
  metrics, answers = evaluate(
    run.model, params, run.encoder, run.task, run.rollout, run.config.eval_batch, run.mesh
  )
  folder = workdir / "answers"
  folder.mkdir(exist_ok=True)
  lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
  (folder / f"step_{step}.jsonl").write_text("".join(lines))
  return metrics


def open_workdir(workdir: pathlib.Path, config: ConfigDict) -> pathlib.Path:
  """Creates the workdir with its config.json, or checks that it is of this very run.

  Raises:
    ValueError: the folder holds a run with another configuration, or something else altogether.
  """
  path = workdir / "config.json"
  resolved = json.loads(config.to_json())
  if path.exists():
    before = json.loads(path.read_text())
    a, b = _flat(before), _flat(resolved)
    changed = [
      f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in sorted(a | b) if a.get(k) != b.get(k)
    ]
    if changed:
      raise ValueError(
        f"{workdir} holds a run with another configuration ({'; '.join(changed)}); "
        "choose another --workdir, or delete this one"
      )
    return workdir
  if workdir.exists() and any(workdir.iterdir()):
    raise ValueError(f"{workdir} is not empty and holds no run; choose another --workdir")
  workdir.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(resolved, indent=2) + "\n")
  shutil.move(partial, path)
  return workdir


def _flat(tree, prefix=""):
  if not isinstance(tree, dict):
    return {prefix[:-1]: tree}
  return {k: v for name, sub in tree.items() for k, v in _flat(sub, f"{prefix}{name}.").items()}
