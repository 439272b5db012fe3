"""From a config to a checked, immutable Experiment, before anything is written to the workdir."""

import collections
import dataclasses
import io
import itertools
import math
import pathlib
import tempfile
from collections.abc import Callable

import jax
import sentencepiece
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from poise_jax import estimators, models, own_functions
from poise_jax.data import tasks, templates
from poise_jax.data.prompts import PromptEncoder, limit_lengths, mark_thoughts
from poise_jax.distributed import sharding
from poise_jax.errors import UserError
from poise_jax.estimators import CriticConfig, Estimator, EstimatorContext, ProbeConfig
from poise_jax.evaluation.answer import EvalConfig
from poise_jax.evaluation.held_out import HELD_OUT, EvalSet, make_sets
from poise_jax.evaluation.judge import VerifierConfig
from poise_jax.learner.config import UpdateConfig, UpdateOptions, check_dtype
from poise_jax.learner.losses import PolicyLossConfig
from poise_jax.learner.warm_start import WarmStartConfig, warm_start, worked_ids
from poise_jax.models import attention
from poise_jax.models.layouts import sampling_layout, training_shardings
from poise_jax.rollout import RolloutConfig
from poise_jax.rollout.features import at_depth, check_layers
from poise_jax.training import checks
from poise_jax.training.collect import CollectConfig
from poise_jax.training.logging import check_loggers
from poise_jax.training.profiling import check_profile_steps
from poise_jax.training.rewards import RewardConfig


@dataclasses.dataclass(frozen=True)
class StepConfig:
  """Everything that the compiled programs of a training step depend on; it needs no task, tokenizer
  or weights."""

  config: ConfigDict  # see configs/common.py
  mesh: Mesh | AbstractMesh
  model: models.ModelConfig
  rollout: RolloutConfig
  update: UpdateConfig
  warm_start: WarmStartConfig
  reward: RewardConfig
  collect: CollectConfig
  estimator: Estimator
  param_shapes: PyTree[jax.ShapeDtypeStruct]  # in the training layout, with their shardings
  # parameters in the training layout -> the same weights in the sampling layout
  sampling_params: Callable[[PyTree[Array]], PyTree[Array]]

  @property
  def groups(self) -> int:
    """P, prompts per step."""
    return self.config.rollouts // self.rollout.n

  @property
  def keeps_reference(self) -> bool:
    """Whether the run needs a reference policy."""
    return bool(self.update.loss.kl_coef or self.reward.kl_coef or self.estimator.reference_n)


@dataclasses.dataclass(frozen=True)
class Experiment(StepConfig):
  """A resolved run: everything that does not change while it trains."""

  task: tasks.Task
  encoder: PromptEncoder
  made_tokenizer: bytes | None  # sentencepiece model trained for this run; None with model.source
  eval: EvalConfig
  held_out: tuple[EvalSet, ...]
  verifier: VerifierConfig

  def summary(self) -> str:
    """What is trained and where, and what a step is made of, in two lines."""
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(self.param_shapes))
    kinds = collections.Counter(device.device_kind for device in self.mesh.devices.flat)
    devices = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    rollouts, train = self.config.rollouts, self.update
    updates = train.epochs * rollouts // train.minibatch_size
    times = "optimizer step" if updates == 1 else "optimizer steps"
    passes = f" in {train.epochs} passes" if train.epochs > 1 else ""
    algorithm = own_functions.algorithm_name(self.config.algorithm, self.config.estimator)
    prompts = "prompt" if self.groups == 1 else "prompts"
    return (
      f"{algorithm}: {size:,} parameters, {self.config.steps} steps, on {devices}\n"
      f"a step: {self.groups:,} {prompts} x {self.rollout.n} = {rollouts:,} rollouts, {updates} "
      f"{times} of {train.minibatch_size:,} sequences{passes}, in micro-batches of "
      f"{train.microbatch_size:,}"
    )

  @property
  def bounded(self) -> str:
    """Why rewards must be in [0, 1], as the end of a sentence; empty if they need not be."""
    return checks.why_bounded(self.config.estimator, self.estimator, self.collect)

  @property
  def difficulties(self) -> tuple[str, ...]:
    """The difficulties of the training examples, in order."""
    return tuple(sorted({example.difficulty for example in self.task.train}))


def build(config: ConfigDict) -> Experiment:
  """Builds and checks an experiment. It reads the model's shape and tokenizer, but no weights.

  Args:
    config: see configs/common.py.

  Raises:
    UserError, OSError: a value cannot work; the message names it and says how to fix it.
  """
  for name in ("seed", "log_samples", "checkpoint_every", "reference_every"):
    if config[name] < 0:
      raise UserError(f"{name} must be at least 0, got {config[name]}")
  check_loggers(config.loggers)
  check_profile_steps(config.profile_steps, config.steps)
  mesh = sharding.make_mesh(**config.mesh)
  check_dtype("model.dtype", config.model.dtype)
  task = tasks.make(config.task, config.seed)
  model, tokenizer, made_tokenizer = _model(config, task)
  encoder = PromptEncoder.from_config(config.task, tokenizer)
  task = limit_lengths(task, encoder, config.task.drop_long)  # fails now, not in step 1,000
  task = mark_thoughts(task, encoder)
  if config.warm_start.steps:
    for example in task.train:
      worked_ids(tokenizer, example, config.rollout.max_new_tokens)
  step = build_step(
    config,
    mesh,
    model,
    eos_ids=tuple(tokenizer.eos_ids),
    pad_id=tokenizer.pad_id,
    think_end=tuple(tokenizer.encode(config.task.think_end)) if config.task.think_end else (),
    domains=task.domains,
    prompts=len(task.train),
  )
  return Experiment(
    **vars(step),
    task=task,
    encoder=encoder,
    made_tokenizer=made_tokenizer,
    eval=EvalConfig(**config.eval),
    held_out=_held_out(config, task, encoder),
    verifier=VerifierConfig(**config.verifier),
  )


def _model(config, task):
  """The model's shape, its tokenizer, and the tokenizer's file if it was trained here."""
  if source := config.model.source:
    tokenizer = models.load_tokenizer(source)
    model = models.read_config(source)
    models.check_fits(tokenizer, model)
    model.check_is(config.model.shape.to_dict())
    return model, tokenizer, None
  made_tokenizer = train_tokenizer(
    task, templates.resolve(config.task.template), config.task.think_end
  )
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "tokenizer.model")
    path.write_bytes(made_tokenizer)
    tokenizer = models.load_tokenizer(path)
  model = models.ModelConfig(vocab_size=tokenizer.vocab_size, **config.model.shape)
  return model, tokenizer, made_tokenizer


def train_tokenizer(task: tasks.Task, template: str, think_end: str = "") -> bytes:
  """A sentencepiece model of characters, trained on the task's text, for models from scratch.

  Args:
    task: its first training examples are the text, and all others with further characters.
    template: text around {question}.
    think_end: marker that becomes one token; empty: none.
  """
  texts = (f"{template.replace('{question}', e.question)} {e.worked}" for e in task.train)
  text = list(itertools.islice(texts, 2000))
  known = set().union(*text)
  for other in texts:  # a training set may be sorted by domain
    if not known.issuperset(other):
      text.append(other)
      known.update(other)
  options = {"character_coverage": 1.0}
  if think_end:
    # Spaces are neither added in front of the marker nor taken from it, so that it is one token.
    options |= dict(
      user_defined_symbols=[think_end.replace(" ", "▁")],
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
    )
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(text), model_writer=model, model_type="char", minloglevel=2, **options
  )
  return model.getvalue()


def initial_params(experiment: Experiment) -> PyTree[Array]:
  """The policy's initial parameters on the mesh: those of config.model.source, or random ones.

  Raises:
    UserError, OSError: a file of the source is missing, truncated or belongs to another model.
  """
  config, shardings = experiment.config, training_shardings(experiment.mesh)
  if config.model.source:
    model, params = models.load(config.model.source, shardings=shardings)
    if model != experiment.model:  # only the weights, now downloaded, tell that it is untied
      raise UserError(
        f"the weights of config.model.source={config.model.source!r} have an unembedding of their "
        "own, although its config.json says tie_word_embeddings; run the same command again"
      )
    return params
  key = jax.random.fold_in(jax.random.key(config.seed), 0)
  params = models.init(experiment.model, key)
  return sharding.place(params, shardings(experiment.model))


def warmed_up(
  experiment: Experiment, params: PyTree[Array], report: Callable[[int, float], None]
) -> PyTree[Array]:
  """The parameters after the supervised warm start; see learner/warm_start.py.

  Args:
    experiment: task and options.
    params: initial parameters; donated.
    report: called with the number of steps taken and the loss.
  """
  return warm_start(
    experiment.model,
    params,
    experiment.encoder,
    experiment.task.train,
    experiment.rollout.max_new_tokens,
    experiment.warm_start,
    experiment.config.seed,
    report,
  )


def param_shapes(
  mesh: Mesh | AbstractMesh, model: models.ModelConfig
) -> PyTree[jax.ShapeDtypeStruct]:
  """Shapes and shardings of the parameters in the training layout; allocates no memory.

  Raises:
    UserError: the mesh does not divide a dimension.
  """
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    models.abstract_params(model),
    training_shardings(mesh)(model),
  )


def build_step(
  config: ConfigDict,
  mesh: Mesh | AbstractMesh,
  model: models.ModelConfig,
  eos_ids: tuple[int, ...],
  pad_id: int = 0,
  think_end: tuple[int, ...] = (),
  domains: tuple[str, ...] = ("",),
  prompts: int = 1,
) -> StepConfig:
  """Builds and checks what the programs of a training step depend on.

  Args:
    config: see configs/common.py.
    mesh: real devices, or an AbstractMesh of devices that are not attached.
    model: the decoder's shape.
    eos_ids: tokens that end a response.
    pad_id: token that fills positions after the end.
    think_end: tokens of config.task.think_end.
    domains: the task's domains.
    prompts: size of the training set.

  Raises:
    UserError: a value cannot work; the message names it and says how to fix it.
  """
  checks.sizes(config, mesh)
  # Nothing is compiled for an abstract mesh, so any kernel will do.
  platform = mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else "cpu"
  kernel = attention.resolve(config.train.attention, platform)
  rollout = RolloutConfig(
    **config.rollout, attention=kernel, eos_ids=eos_ids, pad_id=pad_id, think_end=think_end
  )
  rollout = at_depth(model, rollout)
  loss = PolicyLossConfig(**config.train.loss)
  options = UpdateOptions(**{**config.train, "loss": loss, "attention": kernel})
  # Programs of a constant learning rate do not depend on the number of steps.
  ends = options.schedule != "constant"
  per_step = options.epochs * max(1, config.rollouts // options.minibatch_size)
  update = UpdateConfig(
    **vars(options),
    temperature=config.rollout.temperature,
    optimizer_steps=ends * max(1, config.steps) * per_step,
  )
  reward = RewardConfig(**config.reward)
  collect = CollectConfig(**config.collect)
  context = EstimatorContext(
    rollout=rollout,
    model=model,
    update=update,
    probe=ProbeConfig(**config.probe),
    critic=CriticConfig(**config.critic),
    domains=domains,
    prompts=prompts,
    reference_n=config.reference_n,
  )
  estimator = estimators.make(config.estimator, context)
  # The policy's schedule does not count steps that train the critic alone; the critic's does.
  policy_steps = max(1, config.steps) - estimator.pretrain_steps
  update = dataclasses.replace(update, optimizer_steps=ends * policy_steps * per_step)
  if estimator.reads_features:
    check_layers(model, rollout)
  else:  # nothing else reads them either, so no hidden state is kept
    rollout = dataclasses.replace(rollout, feature_layers=())
  jax.eval_shape(estimator.init, models.abstract_params(model))  # checks sizes
  checks.options(config, estimator, reward, collect)
  return StepConfig(
    config=config,
    mesh=mesh,
    model=model,
    rollout=rollout,
    update=update,
    warm_start=WarmStartConfig(**config.warm_start),
    reward=reward,
    collect=collect,
    estimator=estimator,
    param_shapes=param_shapes(mesh, model),
    sampling_params=sampling_layout(mesh, model, config.model.dtype),
  )


def _held_out(config, task, encoder):
  """The test sets of config.eval.tasks or, without any, that of the task."""
  if not config.eval.tasks:
    return (EvalSet(HELD_OUT, task.test, encoder, config.task.to_dict()),)
  sets = tuple(make_sets(config, encoder.tokenizer))
  check_held_out(task, sets)
  return sets


def check_held_out(task: tasks.Task, sets: tuple[EvalSet, ...]):
  """Raises UserError if a question of a test set is in the training set."""
  training_questions = {example.asked for example in task.train}
  for test in sets:
    leaked = [e.question for e in test.examples if e.asked in training_questions]
    if leaked:
      raise UserError(
        f"eval.tasks.{test.name}: {len(leaked)} of its {len(test.examples)} questions are in the "
        f"training set too, such as {leaked[0][:60]!r}; evaluate another task or seed"
      )
