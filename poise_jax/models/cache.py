"""Keys and values of past tokens, one KVCache a layer, as they are or in int8 with a scale a token.

The arrays have the shapes in which attention multiplies them: a reshape in between would make XLA
update (and copy) each of them twice.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from poise_jax.models.config import ModelConfig
from poise_jax.sharding import constrain

CACHE_DTYPES = ("", "bfloat16", "int8")  # "": that of the computation


@flax.struct.dataclass
class KVCache:
  """Of B rows, S positions and G key heads; int8 ones are to be multiplied by their scales."""

  keys: jax.Array  # [B, G, K, S]
  values: jax.Array  # [B, G, S, K]
  key_scales: jax.Array | None = None  # [B, G, 1, S] float32
  value_scales: jax.Array | None = None  # [B, G, 1, S] float32


POSITION_AXES = {"keys": 3, "values": 2, "key_scales": 3, "value_scales": 3}


def _each(function, *caches: KVCache) -> KVCache:
  """function(axis of positions, array of each cache) for every array, laid out on the mesh."""
  arrays = {}
  for name, axis in POSITION_AXES.items():
    if getattr(caches[0], name) is not None:
      array = function(axis, *(getattr(cache, name) for cache in caches))
      arrays[name] = constrain(array, "batch", "kv_heads", None, None)
  return KVCache(**arrays)


def store(k: jax.Array, v: jax.Array, dtype) -> KVCache:
  """A cache of keys and values [B, S, G, K]."""
  k, v = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
  if dtype != jnp.int8:
    return _each(lambda axis, x: x, KVCache(k.astype(dtype), v.astype(dtype)))

  def integers(x, axis):  # the largest of a token's K numbers becomes 127
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(x).max(axis, keepdims=True), 1e-30) / 127
    return jnp.round(x / scale).astype(dtype), scale

  (k, k_scale), (v, v_scale) = integers(k, 2), integers(v, 3)
  return _each(lambda axis, x: x, KVCache(k, v, k_scale, v_scale.swapaxes(2, 3)))


def write(cache: KVCache, new: KVCache, start: jax.Array) -> KVCache:
  """`cache` with `new` in its positions from `start` on."""

  def put(axis, old, new):
    return jax.lax.dynamic_update_slice_in_dim(old, new, start, axis)

  return _each(put, cache, new)


def grow(cache: KVCache, size: int) -> KVCache:
  """`cache` with room for `size` positions."""

  def pad(axis, x):
    return jnp.pad(x, [(0, size - x.shape[axis] if i == axis else 0) for i in range(4)])

  return _each(pad, cache)


def token_bytes(config: ModelConfig, dtype) -> int:
  """What one token takes in the caches of all layers."""
  dtype = np.dtype(dtype)
  vector = config.head_dim * dtype.itemsize + (4 if dtype == np.int8 else 0)
  return 2 * config.num_hidden_layers * config.num_key_value_heads * vector
