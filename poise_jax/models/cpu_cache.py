"""What a CPU needs: caches that its matrix products read in place, keys in columns.

A product with keys in rows takes 1.7 times as long. Positions are split into segments, of which a
step reads only those that the longest row has reached: a slice of one array would be copied first.
Nothing else in the project knows about this layout.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from poise_jax.distributed.sharding import constrain
from poise_jax.models import online_softmax
from poise_jax.models.config import ModelConfig
from poise_jax.models.kv_cache import KVCache, numbers

UNIT = 32  # positions; the size of a segment is a multiple
SEGMENTS = 4  # at most; each is a branch of the program
LEAST_SEGMENT = 64  # positions


@flax.struct.dataclass
class Segment:
  """Keys, transposed, and values at Q consecutive positions."""

  keys: Shaped[Array, "G R K Q"]
  values: Shaped[Array, "G R Q K"]
  key_scales: Float[Array, "G R Q"] | None
  value_scales: Float[Array, "G R Q"] | None

  @property
  def positions(self) -> int:
    """Number of positions Q."""
    return self.values.shape[2]


@flax.struct.dataclass
class CpuCache:
  """A kv_cache.KVCache for CPUs, with the same methods."""

  segments: tuple[Segment, ...]

  @classmethod
  def empty(cls, config: ModelConfig, rows: int, positions: int, dtype: DTypeLike) -> "CpuCache":
    """A cache with room for at least `positions` tokens per row."""
    units = -(-positions // UNIT)
    size = UNIT * max(LEAST_SEGMENT // UNIT, -(-units // SEGMENTS))
    starts = range(0, UNIT * units, size)
    sizes = [min(size, UNIT * units - start) for start in starts]
    shape = (config.num_key_value_heads, rows)

    def segment(size):
      zeros = jnp.zeros((*shape, size, config.head_dim), dtype)
      scales = jnp.zeros((*shape, size)) if zeros.dtype == jnp.int8 else None
      return _segment(KVCache(zeros, zeros, scales, scales))

    return _pinned(cls(tuple(map(segment, sizes))))

  @property
  def positions(self) -> int:
    """Number of positions that the cache has room for."""
    return sum(segment.positions for segment in self.segments)

  @property
  def starts(self) -> tuple[int, ...]:
    """First position of each segment."""
    sizes = [segment.positions for segment in self.segments]
    return tuple(sum(sizes[:i]) for i in range(len(sizes)))

  def append(
    self, k: Float[Array, "R G K"], v: Float[Array, "R G K"], lengths: Int[Array, " R"]
  ) -> "CpuCache":
    """Writes a row's new token after its `lengths` tokens, and nothing to a full row."""
    dtype, rows = self.segments[0].keys.dtype, jnp.arange(len(k))
    (k, k_scales), (v, v_scales) = (numbers(x, dtype) for x in (k, v))
    segments = []
    for start, old in zip(self.starts, self.segments, strict=True):
      inside = (lengths >= start) & (lengths < start + old.positions)
      at = jnp.where(inside, lengths - start, old.positions)  # beyond the end nothing is written
      options = dict(unique_indices=True, mode="drop")
      new = {
        "keys": old.keys.at[:, rows, :, at].set(k, **options),
        "values": old.values.at[:, rows, at].set(v.swapaxes(0, 1), **options),
      }
      if k_scales is not None:
        new["key_scales"] = old.key_scales.at[:, rows, at].set(k_scales.T, **options)
        new["value_scales"] = old.value_scales.at[:, rows, at].set(v_scales.T, **options)
      segments.append(old.replace(**new))
    return CpuCache(tuple(segments))

  def insert(
    self, prompts: KVCache, source: Int[Array, " R"], chosen: Bool[Array, " R"]
  ) -> "CpuCache":
    """Begins the `chosen` rows with the prompts that `source` counts in `prompts`."""

    def put(old, new):
      rows = chosen.reshape(-1, *[1] * (old.ndim - 2))
      region = tuple(slice(size) for size in new.shape[2:])
      return old.at[:, :, *region].set(jnp.where(rows, new[:, source], old[:, :, *region]))

    segments = []
    for start, segment in zip(self.starts, self.segments, strict=True):
      part = jax.tree.map(lambda x: x[:, :, start : start + segment.positions], prompts)  # noqa: B023
      if part.positions:
        segment = jax.tree.map(put, segment, _segment(part))
      segments.append(segment)
    return _pinned(CpuCache(tuple(segments)))

  def take(self, rows: Int[Array, " N"]) -> "CpuCache":
    """The cache of some rows."""
    return _pinned(jax.tree.map(lambda x: x[:, rows], self))


def attend(
  q: Float[Array, "R H K"], cache: CpuCache, lengths: Int[Array, " R"]
) -> Float[Array, "R H K"]:
  """See models/decode_attention.py."""

  def read(parts, segment, start):
    written = start + jnp.arange(segment.positions) < lengths[:, None]
    scales = segment.key_scales, segment.value_scales
    return online_softmax.read(parts, segment.keys, segment.values, *scales, written)

  first, *others = cache.segments
  parts = read(online_softmax.start(q, first.keys.shape[0]), first, 0)
  for start, segment in zip(cache.starts[1:], others, strict=True):
    reached = lengths.max() > start
    parts = jax.lax.cond(
      reached,
      lambda parts, segment, start=start: read(parts, segment, start),
      lambda parts, segment: parts,
      parts,
      segment,
    )
  return online_softmax.context(parts)


def _segment(cache):
  """A Segment of the same keys and values."""
  keys = cache.keys.swapaxes(2, 3)
  return Segment(keys, cache.values, cache.key_scales, cache.value_scales)


def _pinned(cache):
  """Constrains the layout on the mesh."""
  return jax.tree.map(lambda x: constrain(x, "kv_heads", "batch"), cache)
