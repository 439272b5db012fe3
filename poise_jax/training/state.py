"""The state that the training loop carries from step to step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from poise_jax import rollout
from poise_jax.distributed import sharding
from poise_jax.learner import update
from poise_jax.training import collect
from poise_jax.training.build import Experiment
from poise_jax.training.step import copy
from poise_jax.types import TrainState


class LoopState(NamedTuple):
  """Everything that the loop remembers between steps; checkpoints hold it."""

  policy: TrainState
  estimator: PyTree[Array]
  reference: PyTree[Array]  # the reference policy's parameters; () if the run needs none
  collected: collect.State


def initial_state(experiment: Experiment, params: PyTree[Array]) -> LoopState:
  """The state before the first step.

  Args:
    experiment: decides which parts the state has.
    params: the policy's parameters.
  """
  states = (
    update.init(params, experiment.update),
    experiment.estimator.init(params),
    copy(params) if experiment.keeps_reference else (),
  )
  collected = collect.init(
    experiment.collect,
    groups=experiment.groups,
    n=experiment.rollout.n,
    response_length=experiment.rollout.max_new_tokens,
    prompt_length=experiment.config.task.max_prompt_length,
    features=rollout.feature_size(experiment.model, experiment.rollout),
    prompts=len(experiment.task.train),
  )
  return LoopState(*sharding.spread(experiment.mesh, states), collected)


def abstract_state(experiment: Experiment) -> LoopState:
  """Shapes, dtypes and shardings of the state, for `Checkpoints.restore`."""
  shapes = experiment.param_shapes
  zeros = jax.jit(
    lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
    out_shardings=jax.tree.map(lambda x: x.sharding, shapes),
  )
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, initial_state(experiment, zeros()))
