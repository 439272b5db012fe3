"""Keys and values of past tokens, a KVCache per layer; int8 ones have a scale per token.

Token s of a row lies at position s, its prompt included, so that a length per row says what is
written. Prompts are copied to each of their samples: attention kernels read one cache per row, and
combining two of their results would need the softmax's normaliser, which they do not return. With
prompts of 150 tokens and responses of thousands a copy takes a few percent of the memory.

The cache of a layer with a window of W keys is a ring: token s lies at position s % W and replaces
token s - W, which no later token attends to. Softmax does not depend on the order of its keys, and
they are rotated before they are written, so attention reads a ring like any other cache.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from poise_jax.distributed.sharding import constrain
from poise_jax.models.config import LayerSpec, ModelConfig

CACHE_DTYPES = ("", "bfloat16", "int8")  # "": computation dtype
PAGE = 128  # positions are a multiple of it, so that kernels can read a cache as whole pages
LONG = 4096  # positions; longer caches are a multiple of 4 pages, which kernels read at once


@flax.struct.dataclass
class KVCache:
  """Keys and values of R rows, S positions and G key heads, in the order that kernels read."""

  keys: Shaped[Array, "G R S K"]
  values: Shaped[Array, "G R S K"]
  key_scales: Float[Array, "G R S"] | None = None  # multipliers of int8 keys, float32
  value_scales: Float[Array, "G R S"] | None = None  # multipliers of int8 values, float32

  @classmethod
  def empty(cls, config: ModelConfig, rows: int, positions: int, dtype: DTypeLike) -> "KVCache":
    """A cache with room for at least `positions` tokens per row."""
    size = positions + -positions % (PAGE if positions <= LONG else 4 * PAGE)
    keys = jnp.zeros((config.num_key_value_heads, rows, size, config.head_dim), dtype)
    scales = jnp.zeros(keys.shape[:3]) if keys.dtype == jnp.int8 else None
    return _pinned(cls(keys, keys, scales, scales))

  @property
  def positions(self) -> int:
    """Number of positions S that the cache has room for."""
    return self.keys.shape[2]

  def append(
    self, k: Float[Array, "R G K"], v: Float[Array, "R G K"], lengths: Int[Array, " R"]
  ) -> "KVCache":
    """Writes a row's new token after its `lengths` tokens; a full row's last one is replaced.

    Works on one device's heads. Vectors are written to a flat array: along other axes XLA for TPUs
    would choose another layout for the scatter, and copy the cache twice for every token.
    """
    heads, rows, size = self.keys.shape[:3]
    row = jnp.arange(heads)[:, None] * rows + jnp.arange(rows)
    index = (row * size + jnp.minimum(lengths, size - 1)).reshape(-1)

    def put(cache, new):  # [G, R, S, ...] and [G, R, ...]
      flat = cache.reshape(-1, *cache.shape[3:])
      new = new.reshape(-1, *cache.shape[3:])
      options = dict(unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds")
      return flat.at[index].set(new, **options).reshape(cache.shape)

    (k, k_scales), (v, v_scales) = (numbers(x.swapaxes(0, 1), self.keys.dtype) for x in (k, v))
    new = KVCache(k, v, k_scales, v_scales)
    return jax.tree.map(put, self, new)

  def insert(
    self, prompts: "KVCache", source: Int[Array, " R"], chosen: Bool[Array, " R"]
  ) -> "KVCache":
    """Begins the `chosen` rows with the prompts that `source` counts in `prompts`."""

    def put(cache, new):
      size, rows = new.shape[2], chosen[:, None, None] if new.ndim == 4 else chosen[:, None]
      return cache.at[:, :, :size].set(jnp.where(rows, new[:, source], cache[:, :, :size]))

    return _pinned(jax.tree.map(put, self, prompts))

  def take(self, rows: Int[Array, " N"]) -> "KVCache":
    """The cache of some rows."""
    return _pinned(jax.tree.map(lambda x: x[:, rows], self))


def store(k: Float[Array, "R S G K"], v: Float[Array, "R S G K"], dtype: DTypeLike) -> KVCache:
  """A cache of keys and values, with room for nothing else."""
  heads_first = (x.transpose(2, 0, 1, 3) for x in (k, v))
  (k, k_scales), (v, v_scales) = (numbers(x, dtype) for x in heads_first)
  return _pinned(KVCache(k, v, k_scales, v_scales))


def numbers(
  x: Float[Array, "*rows K"], dtype: DTypeLike
) -> tuple[Shaped[Array, "*rows K"], Float[Array, "*rows"] | None]:
  """Vectors in `dtype` and, for int8, the scales that map a vector's largest number to 127."""
  if dtype != jnp.int8:
    return x.astype(dtype), None
  x = x.astype(jnp.float32)
  scale = jnp.maximum(jnp.abs(x).max(-1, keepdims=True), 1e-30) / 127
  return jnp.round(x / scale).astype(dtype), scale[..., 0]


def room(layer: LayerSpec, positions: int) -> int:
  """Number of positions, of so many, that the cache of a layer keeps."""
  return min(positions, layer.window or positions)


def ring(
  x: Float[Array, "R S G K"], lengths: Int[Array, " R"], window: int
) -> Float[Array, "R W G K"]:
  """The last `window` of the `lengths` tokens of each row, in the order of a ring.

  What lies at other positions is meaningless. 0: all tokens, in their order.
  """
  if not 0 < window < x.shape[1]:
    return x
  last = lengths[:, None] - 1
  token = jnp.maximum(last - (last - jnp.arange(window)) % window, 0)
  return jnp.take_along_axis(x, token[:, :, None, None], axis=1)


def row_bytes(config: ModelConfig, positions: int, dtype: DTypeLike) -> int:
  """Size of a row of so many tokens in the caches of all layers, in bytes."""
  return sum(room(layer, positions) for layer in config.layers) * position_bytes(config, dtype)


def position_bytes(config: ModelConfig, dtype: DTypeLike) -> int:
  """Size of a token in the cache of one layer, in bytes."""
  dtype = np.dtype(dtype)
  vector = config.head_dim * dtype.itemsize + (4 if dtype == np.int8 else 0)
  return 2 * config.num_key_value_heads * vector


def _pinned(cache):
  """Constrains the layout on the mesh."""
  return jax.tree.map(lambda x: constrain(x, "kv_heads", "batch"), cache)
