"""Keys and values of past tokens, one KVCache a layer, as they are or in int8 with a scale a token.

The arrays have the shapes in which attention multiplies them: a reshape in between would make XLA
update (and copy) each of them twice. On a CPU they are cut into blocks of W = 32 columns, which its
products read where they lie; anything wider they copy first, for every token (measured: 1.7 times
as long). Elsewhere there is one block, as wide as the whole.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from poise_jax.distributed.sharding import constrain, platform
from poise_jax.models.config import ModelConfig

CACHE_DTYPES = ("", "bfloat16", "int8")  # "": that of the computation
CPU_BLOCK = 32


@flax.struct.dataclass
class KVCache:
  """Of B rows, S positions and G key heads; int8 ones are to be multiplied by their scales.

  Keys are cut along the positions, values along head_dim. S is rounded up to whole blocks.
  """

  keys: jax.Array  # [B, G, S / W, K, W]
  values: jax.Array  # [B, G, K / W, S, W]
  key_scales: jax.Array | None = None  # [B, G, S] float32
  value_scales: jax.Array | None = None  # [B, G, S] float32

  @property
  def positions(self) -> int:
    """S."""
    return self.values.shape[3]


def store(k: jax.Array, v: jax.Array, dtype) -> KVCache:
  """A cache of keys and values [B, S, G, K]."""
  (k, k_scales), (v, v_scales) = (_numbers(x.swapaxes(1, 2), dtype) for x in (k, v))
  blocks, width = _key_blocks(k.shape[2])
  k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, blocks * width - x.shape[2]), (0, 0))) for x in (k, v))
  k = k.reshape(*k.shape[:2], blocks, width, k.shape[3]).swapaxes(3, 4)
  v = v.reshape(*v.shape[:3], *_value_blocks(v.shape[3])).swapaxes(2, 3)
  return grow(KVCache(k, v, k_scales, v_scales), blocks * width)


def write(cache: KVCache, k: jax.Array, v: jax.Array, position: jax.Array) -> KVCache:
  """`cache` with keys and values [B, G, K] at `position`."""
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
  """`cache` with room for `size` positions."""
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


def token_bytes(config: ModelConfig, dtype) -> int:
  """What one token takes in the caches of all layers."""
  dtype = np.dtype(dtype)
  vector = config.head_dim * dtype.itemsize + (4 if dtype == np.int8 else 0)
  return 2 * config.num_hidden_layers * config.num_key_value_heads * vector


def _numbers(x, dtype):
  """[..., K] in `dtype` and, of int8, scales [...]: a token's largest number becomes 127."""
  if dtype != jnp.int8:
    return x.astype(dtype), None
  x = x.astype(jnp.float32)
  scale = jnp.maximum(jnp.abs(x).max(-1, keepdims=True), 1e-30) / 127
  return jnp.round(x / scale).astype(dtype), scale[..., 0]


def _key_blocks(size):
  """Number and width of the blocks that hold so many positions."""
  return (-(-size // CPU_BLOCK), CPU_BLOCK) if platform() == "cpu" else (1, size)


def _value_blocks(dim):
  """Number and width of the blocks of head_dim."""
  width = math.gcd(dim, CPU_BLOCK) if platform() == "cpu" else dim
  return dim // width, width


def _pinned(cache):
  """Laid out on the mesh."""
  return jax.tree.map(lambda x: constrain(x, "batch", "kv_heads", *[None] * (x.ndim - 2)), cache)
