"""One training step that is not run: shapes of its arrays, and the programs to compile for it.

Nothing is loaded or allocated. Only this file of planning calls training and learner.
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
from poise_jax.training import train
from poise_jax.types import Experience, Prompts, Rollouts, TrainState

Shapes = PyTree[jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class StepShapes:
  """Everything that a step holds and passes on: trees of jax.ShapeDtypeStruct with shardings."""

  params: Shapes
  state: TrainState
  estimator: Shapes
  reference: Shapes  # () if no reference policy is kept
  sampling_params: Shapes  # parameters in the sampler's layout and dtype
  prompts: Prompts
  rollouts: Rollouts
  batch: dict[str, jax.ShapeDtypeStruct]  # [P * n, ...], cut into mini-batches
  optimizer_steps: int  # per batch


def abstract_programs(config: ConfigDict, mesh: Mesh | AbstractMesh) -> train.Programs:
  """Programs of a step of `config`, without weights, tokenizer or data.

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
  model = models.ModelConfig(**config.model.shape)
  return train.programs(
    config,
    mesh,
    model,
    train.abstract_params(mesh, model),
    eos_ids=(1,),
    think_end=(2,) if config.task.think_end else (),
    prompts=config.task.train,
  )


def step_shapes(run: train.Programs) -> StepShapes:
  """Shapes of a step of `run`, whose mesh may be abstract."""
  config, model = run.config, run.model
  groups, n, length = config.rollouts // run.rollout.n, run.rollout.n, run.rollout.max_new_tokens
  batch_sharding = sharding.batch_sharding(run.mesh)

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding)

  def by_rows(tree):
    return jax.tree.map(lambda x: array(x.dtype, *x.shape), tree)

  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), run.params
  )
  state = sharded_like(params, jax.eval_shape(lambda p: update.init(p, run.update), params))
  estimator = sharded_like(params, jax.eval_shape(run.estimator.init, params))
  reference = params if run.keeps_reference else ()
  sampling_params = jax.eval_shape(run.sampling_params, params)
  width = config.task.max_prompt_length
  prompts = Prompts(array(np.int32, groups, width), array(bool, groups, width))
  sample = functools.partial(rollout.sample, model, rollout=run.rollout)
  rollouts = by_rows(jax.eval_shape(sample, sampling_params, prompts, _key()))

  m = run.estimator.reference_n
  ids = array(np.int32, groups)
  experience = Experience(
    rollouts,
    scores=array(np.float32, groups, n),
    token_rewards=array(np.float32, groups, n, length),
    domains=ids,
    prompt_ids=ids,
    age=ids,
    reference_scores=array(np.float32, groups, m) if m else (),
  )
  advantages = jax.eval_shape(run.estimator.estimate, estimator, experience)[0]
  age = ids if run.collect.dynamic_sampling else None
  optimizer_steps = 0

  def learning_batch(params, rollouts, advantages, reference, age):
    nonlocal optimizer_steps  # a number, which eval_shape would turn into a shape
    batch, optimizer_steps = update.learning_batch(
      model, params, rollouts, advantages, run.update, reference, age
    )
    return batch

  batch = by_rows(jax.eval_shape(learning_batch, params, rollouts, advantages, reference, age))
  return StepShapes(
    params, state, estimator, reference, sampling_params, prompts, rollouts, batch, optimizer_steps
  )


def step_programs(
  run: train.Programs, shapes: StepShapes
) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
  """Jitted functions of a step with the arguments to lower them for, in the order they run."""
  model, n = run.model, run.rollout.n
  sample = jax.jit(rollout.sample, static_argnums=(0, 4))
  programs = {
    "the sampler's layout": (run.sampling_params, (shapes.params,)),
    "the sampler": (sample, (model, shapes.sampling_params, shapes.prompts, _key(), run.rollout)),
  }
  if recomputes_logprobs(run, shapes) or "reference_logprobs" in shapes.batch:
    fields = jax.eval_shape(update.response_batch, shapes.rollouts)
    batch = {name: shapes.batch[name] for name in fields}
    programs["log-probs"] = (update.recompute, (model, shapes.params, batch, run.update, n))
  size = run.update.minibatch_size
  minibatch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype, sharding=x.sharding), shapes.batch
  )
  programs["the update"] = (
    update.minibatch_step,
    (model, run.update, shapes.state, minibatch, n),
  )
  return programs


def recomputes_logprobs(run: train.Programs, shapes: StepShapes) -> bool:
  """Whether a step computes the log-probs of the policy that sampled, once more, for the loss."""
  return "old_logprobs" in shapes.batch and run.update.old_logprobs == "recompute"


def samples_per_pass(run: train.Programs) -> int:
  """Number of a prompt's samples that share one pass over it in the update."""
  return update.samples_together(run.rollout.n, run.update, run.mesh)


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
