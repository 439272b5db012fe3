"""Where parameters live on a mesh: the training layout and the sampling layout of one model."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from poise_jax.distributed import sharding
from poise_jax.models.config import ModelConfig
from poise_jax.models.transformer import (
  abstract_params,
  logical_axes,
  sampling_axes,
  sampling_params,
)


def training_shardings(mesh: Mesh) -> Callable[[ModelConfig], PyTree]:
  """Maps a model to the shardings of its parameters in the training layout on `mesh`."""

  def shardings(model):
    shapes, axes = abstract_params(model), logical_axes(model)
    return sharding.param_shardings(mesh, shapes, axes)

  return shardings


def sampling_layout(mesh: Mesh, model: ModelConfig, dtype: str) -> Callable[[PyTree], PyTree]:
  """The jitted conversion of training parameters to the sampling layout, called once a step.

  Args:
    mesh: the parameters are placed on it by SAMPLING_RULES.
    model: the decoder's shape.
    dtype: sampling dtype.
  """
  layout = functools.partial(sampling_params, model, dtype=jnp.dtype(dtype))
  shapes = jax.eval_shape(layout, abstract_params(model))
  axes = sampling_axes(model)
  out = sharding.param_shardings(mesh, shapes, axes, sharding.SAMPLING_RULES)
  return jax.jit(layout, out_shardings=out)
