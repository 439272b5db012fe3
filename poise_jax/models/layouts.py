"""The two layouts of the weights, and where they live on a mesh.

Training stacks the parameters of all layers and keeps linear maps apart. Sampling has a subtree per
layer and kernels [*out, in], of which queries, keys and values share one; decoding from stacked
weights would slice, and so copy, every layer again for every token.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from poise_jax.distributed import sharding
from poise_jax.models.config import ModelConfig
from poise_jax.models.transformer import abstract_params, logical_axes


@jax.named_scope("sampling_params")
def sampling_params(
  config: ModelConfig, params: PyTree[Array], dtype: DTypeLike = jnp.float32
) -> PyTree[Array]:
  """Copies parameters from the training layout to the sampling layout, cast to `dtype`."""
  groups = config.num_key_value_heads

  def by_key_head(x):  # [in, heads * K] or [heads * K] -> [G, heads / G, K, in] or [G, ..., K]
    return x.T.reshape(groups, -1, config.head_dim, *x.shape[:-1])

  def one_layer(i):
    layer = jax.tree.map(lambda x: x[i], params["layers"])
    attention = dict(layer["self_attn"])
    q, k, v = (attention.pop(f"{name}_proj") for name in "qkv")
    attention["o_proj"] = jax.tree.map(jnp.transpose, attention["o_proj"])
    attention["qkv_proj"] = jax.tree.map(
      lambda *parts: jnp.concatenate([by_key_head(x) for x in parts], axis=1), q, k, v
    )
    return {**layer, "self_attn": attention, "mlp": jax.tree.map(jnp.transpose, layer["mlp"])}

  layers = [one_layer(i) for i in range(config.num_hidden_layers)]
  return jax.tree.map(lambda x: x.astype(dtype), {**params, "layers": layers})


def sampling_axes(config: ModelConfig) -> PyTree[tuple[str | None, ...]]:
  """The logical axis names of every parameter in the sampling layout, as tuples."""
  axes = logical_axes(config)
  is_names = lambda x: type(x) is tuple  # noqa: E731
  # Without "layers" in front, and with the two axes of kernels swapped.
  layer = jax.tree.map(lambda names: names[:0:-1], axes["layers"], is_leaf=is_names)
  attention = dict(layer["self_attn"])
  _, k, _ = (attention.pop(f"{name}_proj") for name in "qkv")
  attention["qkv_proj"] = jax.tree.map(
    lambda names: ("kv_heads", None, "head_dim", *names[1:]), k, is_leaf=is_names
  )
  layer = {**layer, "self_attn": attention}
  return {**axes, "layers": [layer] * config.num_hidden_layers}


def training_shardings(mesh: Mesh | AbstractMesh) -> Callable[[ModelConfig], PyTree[NamedSharding]]:
  """Maps a model to the shardings of its parameters in the training layout on `mesh`."""

  def shardings(model):
    shapes, axes = abstract_params(model), logical_axes(model)
    return sharding.param_shardings(mesh, shapes, axes)

  return shardings


def sampling_layout(
  mesh: Mesh | AbstractMesh, model: ModelConfig, dtype: DTypeLike
) -> Callable[[PyTree[Array]], PyTree[Array]]:
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
