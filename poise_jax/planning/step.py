"""One training step that is not run: shapes of its arrays, and the programs to compile for it.

Nothing is loaded or allocated.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
from ml_collections import ConfigDict

from poise_jax import models, rollout
from poise_jax.data import sources
from poise_jax.data.tasks.dataset import OWN, split_names
from poise_jax.distributed import sharding
from poise_jax.errors import UserError
from poise_jax.learner import update
from poise_jax.learner.batching import Batch
from poise_jax.learner.micro_batch import MicroBatch
from poise_jax.learner.plan import Lengths, Plan, plan
from poise_jax.planning.lengths import lengths_of
from poise_jax.training import build
from poise_jax.training.build import StepConfig
from poise_jax.types import Experience, Prompts, Rollouts, TrainState

Shapes = PyTree[jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class StepShapes:
  """Everything that a step holds and passes on: trees of jax.ShapeDtypeStruct with shardings."""

  params: Shapes
  state: TrainState
  estimator: Shapes
  reference: Shapes  # () if no reference policy is kept
  sampling_params: Shapes  # parameters in the sampling layout and dtype
  prompts: Prompts
  rollouts: Rollouts
  minibatch: Batch  # the sequences of an optimizer step, with the fields of its loss
  lengths: Lengths  # tokens of the step's sequences
  plans: list[Plan]  # passes of each optimizer step

  @property
  def optimizer_steps(self) -> int:
    """Optimizer steps of a pass over a batch of rollouts."""
    return len(self.plans)

  @property
  def passes(self) -> list[tuple[MicroBatch, int]]:
    """The shapes of the update's passes with their number in a step, the largest first.

    Log-probs of the whole batch need the same passes.
    """
    counts = Counter(
      (micro.positions, micro.rows, micro.width, micro.prompt, micro.responses)
      for made in self.plans
      for micro in made.micro_batches
    )
    table = jax.ShapeDtypeStruct(self.minibatch.group.shape, np.int32)
    return [(MicroBatch(table, table, *shape[1:]), counts[shape]) for shape in sorted(counts)[::-1]]


def pass_shape(micro: MicroBatch) -> str:
  """Rows and positions of a pass, over all devices, as text."""
  if micro.responses == 1:
    return f"{micro.rows} x {micro.width}"
  responses = f"{micro.responses} x {micro.width - micro.prompt}"
  return f"{micro.rows // micro.responses} x ({micro.prompt} + {responses})"


def abstract_step(config: ConfigDict, mesh: Mesh | AbstractMesh) -> StepConfig:
  """A step of `config`, without weights, tokenizer or data.

  Token ids of the tokenizer are made up, and the training set has config.task.train prompts:
  neither changes a shape that matters. Domains are those that the config names.

  Raises:
    UserError: config.model.shape is incomplete, or a size does not fit the mesh.
  """
  required = {"model_type", "vocab_size", "hidden_size", "num_hidden_layers"}
  if missing := required - set(config.model.shape):
    raise UserError(
      f"config.model.shape lacks {', '.join(sorted(missing))}; planning loads no weights "
      "and needs the complete shape, as in configs/qwen3_4b_dapo_math.py"
    )
  config = config.copy_and_resolve_references()
  return build.build_step(
    config,
    mesh,
    models.ModelConfig(**config.model.shape),
    eos_ids=(1,),
    think_end=(2,) if config.task.think_end else (),
    domains=_domains(config),
    prompts=config.task.train,
  )


def _domains(config):
  """Domains of the published training sets and of the probe's fields; ("",) if there are none."""
  names = split_names(config.task.dataset.train_on) if config.task.name == "dataset" else ()
  domains = {sources.find(name).domain for name in names if name != OWN}
  shared = config.probe.domain_probes
  domains |= set(shared) | (set(config.probe.domain_buffer_rows) - set(shared.values()))
  return tuple(sorted(domains)) or ("",)


def step_shapes(step: StepConfig, lengths: Lengths | None = None) -> StepShapes:
  """Shapes of a step, whose mesh may be abstract.

  Args:
    step: describes the step.
    lengths: of its sequences; None: all at the limit.
  """
  lengths = lengths or lengths_of(step)
  mesh = step.mesh if isinstance(step.mesh, AbstractMesh) else step.mesh.abstract_mesh
  with jax.sharding.use_abstract_mesh(mesh):
    params = step.param_shapes
    state = jax.eval_shape(lambda p: update.init(p, step.update), params)
    state = sharded_like(params, state)
    estimator = sharded_like(params, jax.eval_shape(step.estimator.init, params))
    reference = params if step.keeps_reference else ()
    sampling_params = jax.eval_shape(step.sampling_params, params)
    prompts, experience = _experience(step, sampling_params)
    advantages = jax.eval_shape(step.estimator.estimate, estimator, experience).advantages
    arguments = params, experience, advantages, reference
    minibatch = jax.eval_shape(
      lambda *args: update.policy_minibatches(step.model, step.update, *args)[0].batch, *arguments
    )
  size, shards = step.update.minibatch_size, sharding.batch_shards(mesh)
  return StepShapes(
    params=params,
    state=state,
    estimator=estimator,
    reference=reference,
    sampling_params=sampling_params,
    prompts=prompts,
    rollouts=experience.rollouts,
    minibatch=_split_rows(step.mesh, minibatch),
    lengths=lengths,
    plans=[
      plan(lengths.part(start, start + size), step.update.microbatch_size, shards)
      for start in range(0, len(lengths), size)
    ],
  )


def _experience(step, sampling_params):
  """Prompts and Experience of a step."""
  groups, n, m = step.groups, step.rollout.n, step.estimator.reference_n
  length, width = step.rollout.max_new_tokens, step.config.task.max_prompt_length

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(step.mesh))

  prompts = Prompts(array(np.int32, groups, width), array(bool, groups, width))
  sample = functools.partial(rollout.sample, step.model, rollout=step.rollout)
  rollouts = jax.eval_shape(sample, sampling_params, prompts, _key())
  ids = array(np.int32, groups)
  experience = Experience(
    rollouts=_split_rows(step.mesh, rollouts),
    scores=array(np.float32, groups, n),
    token_rewards=array(np.float32, groups, n, length),
    domains=ids,
    prompt_ids=ids,
    age=ids if step.collect.dynamic_sampling else (),
    reference_scores=array(np.float32, groups, m) if m else (),
  )
  return prompts, experience


def _split_rows(mesh, tree):
  """`tree` with its leading axis split over the batch axes of the mesh."""
  split = sharding.batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), tree)


def step_programs(
  step: StepConfig, shapes: StepShapes
) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
  """Jitted functions of a step with the arguments to lower them for, in the order they run.

  The passes of log-probs and of the update are a program for each of their shapes.
  """
  model, batch = step.model, shapes.minibatch
  sample = jax.jit(rollout.sample, static_argnums=(0, 4))
  programs = {
    "the sampler's layout": (step.sampling_params, (shapes.params,)),
    "the sampler": (sample, (model, shapes.sampling_params, shapes.prompts, _key(), step.rollout)),
  }
  micros = [micro for micro, _ in shapes.passes]
  if recomputes_logprobs(step, shapes) or "reference_logprobs" in batch.fields:
    tokens = batch.replace(fields={})
    for micro in micros:
      arguments = (model, step.update, shapes.params, tokens, micro)
      programs[f"log-probs, {pass_shape(micro)}"] = (update.microbatch_logprobs, arguments)
  weights = jax.ShapeDtypeStruct(batch.mask.shape, np.float32, sharding=batch.mask.sharding)
  weighted = batch.replace(fields={**batch.fields, "weights": weights})
  for micro in micros:
    arguments = (model, step.update, shapes.params, shapes.params, weighted, micro)
    programs[f"the update, {pass_shape(micro)}"] = (update.microbatch_gradient, arguments)
  mesh = step.mesh if isinstance(step.mesh, AbstractMesh) else step.mesh.abstract_mesh
  with jax.sharding.use_abstract_mesh(mesh):
    gradient = functools.partial(update.microbatch_gradient, model, step.update)
    _, sums = jax.eval_shape(gradient, *arguments[2:])
  arguments = (step.update, shapes.state, shapes.params, sums, batch)
  programs["the optimizer"] = (update.optimizer_step, arguments)
  return programs


def recomputes_logprobs(step: StepConfig, shapes: StepShapes) -> bool:
  """Whether the trainer recomputes the log-probs of the policy that sampled."""
  return "old_logprobs" in shapes.minibatch.fields and step.update.old_logprobs == "recompute"


def sharded_like(params: Shapes, tree: Shapes) -> Shapes:
  """`tree` with the shardings of `params` on all that is derived from them: optimizer moments and
  critics have the path and shape of a parameter. Everything else is replicated."""
  by_path = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(params)}
  mesh = next(iter(by_path.values())).sharding.mesh
  replicated = NamedSharding(mesh, PartitionSpec())

  def leaf(path, x):
    for start in range(len(path)):
      param = by_path.get(jax.tree_util.keystr(path[start:]))
      if param is not None and param.shape == x.shape:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=param.sharding)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated)

  return jax.tree_util.tree_map_with_path(leaf, tree)


def _key():
  return jax.eval_shape(lambda: jax.random.key(0))
