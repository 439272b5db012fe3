"""One training step that is not run: shapes of its arrays, and the programs to compile for it.

Nothing is loaded or allocated.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
from ml_collections import ConfigDict

from poise_jax import models, rollout
from poise_jax.distributed import sharding
from poise_jax.errors import UserError
from poise_jax.learner import update
from poise_jax.learner.batching import Batch
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
  batch: Batch  # all rows of the update, before they are cut into mini-batches
  optimizer_steps: int  # per batch

  @property
  def responses_per_row(self) -> int:
    """m, responses that share one pass over their prompt in the update."""
    return self.batch.tokens.shape[1]


def abstract_step(config: ConfigDict, mesh: Mesh | AbstractMesh) -> StepConfig:
  """A step of `config`, without weights, tokenizer or data.

  Token ids of the tokenizer are made up, and the training set has config.task.train prompts:
  neither changes a shape that matters.

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
    prompts=config.task.train,
  )


def step_shapes(step: StepConfig) -> StepShapes:
  """Shapes of a step, whose mesh may be abstract."""
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
    optimizer_steps = 0

    def policy_batch(*args):
      nonlocal optimizer_steps  # a number, which eval_shape would turn into a shape
      batch, optimizer_steps = update.policy_batch(step.model, step.update, *args)
      return batch

    batch = jax.eval_shape(policy_batch, params, experience, advantages, reference)
    return StepShapes(
      params=params,
      state=state,
      estimator=estimator,
      reference=reference,
      sampling_params=sampling_params,
      prompts=prompts,
      rollouts=experience.rollouts,
      batch=_split_rows(step.mesh, batch),
      optimizer_steps=optimizer_steps,
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
  """Jitted functions of a step with the arguments to lower them for, in the order they run."""
  model, batch = step.model, shapes.batch
  sample = jax.jit(rollout.sample, static_argnums=(0, 4))
  programs = {
    "the sampler's layout": (step.sampling_params, (shapes.params,)),
    "the sampler": (sample, (model, shapes.sampling_params, shapes.prompts, _key(), step.rollout)),
  }
  if recomputes_logprobs(step, shapes) or "reference_logprobs" in batch.fields:
    tokens = batch.replace(fields={})
    programs["log-probs"] = (update.batch_logprobs, (model, shapes.params, tokens, step.update))
  rows = step.update.minibatch_size // shapes.responses_per_row
  minibatch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=x.sharding), batch
  )
  arguments = (model, step.update, shapes.state, minibatch)
  programs["the update"] = (update.minibatch_step, arguments)
  return programs


def recomputes_logprobs(step: StepConfig, shapes: StepShapes) -> bool:
  """Whether the trainer recomputes the log-probs of the policy that sampled."""
  return "old_logprobs" in shapes.batch.fields and step.update.old_logprobs == "recompute"


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
