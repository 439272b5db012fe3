"""Keys and values of past tokens, a KVCache per layer; int8 ones have a scale per token.

The arrays have the shapes that attention multiplies: a reshape in between would make XLA update
(and copy) each of them twice. On a CPU they are split into blocks of W = 32 columns, which its
matrix products read in place; wider ones are copied first, for every token (measured: 1.7 times as
slow). Elsewhere there is one block of full width.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from poise_jax.distributed.sharding import constrain, platform
from poise_jax.models.config import ModelConfig

CACHE_DTYPES = ("", "bfloat16", "int8")  # "": computation dtype
CPU_BLOCK = 32  # W on a CPU


@flax.struct.dataclass
class KVCache:
  """Keys and values of B rows, S positions and G key heads.

  Keys are split into blocks of width W along the positions, values along head_dim. S is rounded up
  to whole blocks.
  """

  keys: Shaped[Array, "B G S_blocks K W"]
  values: Shaped[Array, "B G K_blocks S W_K"]
  key_scales: Float[Array, "B G S"] | None = None  # multipliers of int8 keys, float32
  value_scales: Float[Array, "B G S"] | None = None  # multipliers of int8 values, float32

  @property
  def positions(self) -> int:
    """Number of positions S that the cache has room for."""
    return self.values.shape[3]


def store(k: Float[Array, "B S G K"], v: Float[Array, "B S G K"], dtype: DTypeLike) -> KVCache:
  """Makes a cache of keys and values."""
  (k, k_scales), (v, v_scales) = (_numbers(x.swapaxes(1, 2), dtype) for x in (k, v))
  blocks, width = _key_blocks(k.shape[2])
  k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, blocks * width - x.shape[2]), (0, 0))) for x in (k, v))
  k = k.reshape(*k.shape[:2], blocks, width, k.shape[3]).swapaxes(3, 4)
  v = v.reshape(*v.shape[:3], *_value_blocks(v.shape[3])).swapaxes(2, 3)
  return grow(KVCache(k, v, k_scales, v_scales), blocks * width)


def write(
  cache: KVCache, k: Float[Array, "B G K"], v: Float[Array, "B G K"], position: Int[Array, ""]
) -> KVCache:
  """Writes the keys and values of one token per row at `position`."""
  width = cache.keys.shape[4]
  (k, k_scales), (v, v_scales) = (_numbers(x, cache.keys.dtype) for x in (k, v))
  v = v.reshape(*v.shape[:2], *_value_blocks(v.shape[2]))
  places = {
    "keys": (k[:, :, None, :, None], (position // width, 0, position % width)),
    "values": (v[:, :, :, None], (0, position, 0)),
  }
  if k_scales is not None:
    places["key_scales"] = k_scales[:, :, None], (position,)
    places["value_scales"] = v_scales[:, :, None], (position,)
  arrays = {
    name: jax.lax.dynamic_update_slice(getattr(cache, name), new, (0, 0, *place))
    for name, (new, place) in places.items()
  }
  return _pinned(KVCache(**arrays))


def grow(cache: KVCache, size: int) -> KVCache:
  """Makes room for `size` positions; new ones are zero."""
  rows, dim = cache.keys.shape[:2], cache.keys.shape[3]
  blocks, width = _key_blocks(size)
  size = blocks * width
  shapes = {
    "keys": (blocks, dim, width),
    "values": (cache.values.shape[2], size, cache.values.shape[4]),
    "key_scales": (size,),
    "value_scales": (size,),
  }

  def pad(x, shape):
    return jnp.pad(x, [(0, new - old) for old, new in zip(x.shape, (*rows, *shape), strict=True)])

  arrays = {name: (getattr(cache, name), shape) for name, shape in shapes.items()}
  return _pinned(KVCache(**{k: pad(*v) for k, v in arrays.items() if v[0] is not None}))


def token_bytes(config: ModelConfig, dtype: DTypeLike) -> int:
  """Size of one token in the caches of all layers, in bytes."""
  dtype = np.dtype(dtype)
  vector = config.head_dim * dtype.itemsize + (4 if dtype == np.int8 else 0)
  return 2 * config.num_hidden_layers * config.num_key_value_heads * vector


def _numbers(x, dtype):
  """[..., K] in `dtype` and, for int8, scales [...] that map a vector's largest number to 127."""
  if dtype != jnp.int8:
    return x.astype(dtype), None
  x = x.astype(jnp.float32)
  scale = jnp.maximum(jnp.abs(x).max(-1, keepdims=True), 1e-30) / 127
  return jnp.round(x / scale).astype(dtype), scale[..., 0]


def _key_blocks(size):
  """Number and width of the blocks of `size` positions."""
  return (-(-size // CPU_BLOCK), CPU_BLOCK) if platform() == "cpu" else (1, size)


def _value_blocks(dim):
  """Number and width of the blocks of head_dim."""
  width = math.gcd(dim, CPU_BLOCK) if platform() == "cpu" else dim
  return dim // width, width


def _pinned(cache):
  """Constrains the layout on the mesh."""
  return jax.tree.map(lambda x: constrain(x, "batch", "kv_heads", *[None] * (x.ndim - 2)), cache)
