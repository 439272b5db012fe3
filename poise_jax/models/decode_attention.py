"""Attention of one new token per row to the row's own cache, as long as the row.

`paged_tpu` and `paged_gpu` are kernels that JAX ships; they take a length per row and read nothing
behind it. A cache [G, R, S, K] is a row of pages to them. `xla` runs anywhere and reads no
further than the longest row. Which one runs follows from the implementation that
models/attention.py has for whole sequences: a kernel goes with a kernel.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import paged_attention as gpu
from jax.experimental.pallas.ops.tpu import paged_attention as tpu
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from poise_jax.distributed import sharding
from poise_jax.models import attention, cpu_cache, online_softmax
from poise_jax.models.config import ModelConfig
from poise_jax.models.cpu_cache import CpuCache
from poise_jax.models.kv_cache import PAGE, KVCache

KEY_BLOCK = 512  # positions that `xla` reads at once


def resolve(name: str, config: ModelConfig, dtype: DTypeLike, cache_dtype: DTypeLike) -> str:
  """The implementation of a decode step: a key of IMPLEMENTATIONS.

  Kernels compute in bfloat16. That of TPUs needs vectors of 128 numbers; its int8 pages would need
  4 bytes for the scale of every number.

  Args:
    name: a key of models.attention.IMPLEMENTATIONS, or "auto".
    config: the decoder's shape.
    dtype: dtype of the computation.
    cache_dtype: dtype of the caches.
  """
  platform = sharding.platform()
  if name == "auto":
    name = attention.resolve(name, platform)
  if dtype == jnp.bfloat16:
    if name == "splash" and cache_dtype == jnp.bfloat16 and config.head_dim % 128 == 0:
      return "paged_tpu"
    if name == "cudnn" and config.head_dim in (16, 32, 64, 128, 256):
      return "paged_gpu"
  return "cpu" if platform == "cpu" and name == "xla" else "xla"


def cache_type(implementation: str) -> type[KVCache] | type[CpuCache]:
  """The class of the caches that an implementation reads."""
  return CpuCache if implementation == "cpu" else KVCache


@jax.named_scope("attention")
def append_and_attend(
  q: Float[Array, "R H K"],
  k: Float[Array, "R G K"],
  v: Float[Array, "R G K"],
  cache: KVCache | CpuCache,
  lengths: Int[Array, " R"],
  alive: Bool[Array, " R"],
  implementation: str,
  window: int = 0,
) -> tuple[Float[Array, "R H K"], KVCache | CpuCache]:
  """Writes each row's new token to its cache and attends to all of the row's tokens.

  Args:
    q: queries of the new tokens; query head h reads key head h // (H / G).
    k: their keys.
    v: their values.
    cache: of one layer, in which a row has `lengths` tokens, or the last of them.
    lengths: positions of the new tokens.
    alive: rows to compute; the results of others are finite but meaningless.
    implementation: a key of IMPLEMENTATIONS.
    window: keys that a query attends to at most, its own included, in a ring; 0: all.

  Returns:
    The context, and the cache with one more token per row.
  """

  def local(q, k, v, cache, lengths, alive):
    cache = cache.append(k, v, lengths % window if window else lengths)
    count = jnp.minimum(lengths + 1, window) if window else lengths + 1
    return IMPLEMENTATIONS[implementation](q, cache, jnp.where(alive, count, 0)), cache

  rows, queries, keys = ("batch",), ("batch", "heads"), ("batch", "kv_heads")
  caches = ("kv_heads", "batch")
  local = sharding.per_device(local, (queries, keys, keys, caches, rows, rows), [queries, caches])
  return local(q, k, v, cache, lengths, alive)


def xla(
  q: Float[Array, "R H K"], cache: KVCache, lengths: Int[Array, " R"]
) -> Float[Array, "R H K"]:
  """By matrix products, block after block of positions up to the longest row."""
  size = math.gcd(cache.positions, KEY_BLOCK)

  def read_block(i, parts):
    block = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size, 2), cache)
    written = i * size + jnp.arange(size) < lengths[:, None]
    keys = block.keys.swapaxes(2, 3)
    scales = block.key_scales, block.value_scales
    return online_softmax.read(parts, keys, block.values, *scales, written)

  blocks = jnp.maximum(-(-lengths.max() // size), 1)  # a row of length 0 has a mass, too
  parts = online_softmax.start(q, cache.keys.shape[0])
  return online_softmax.context(jax.lax.fori_loop(0, blocks, read_block, parts))


def paged_tpu(
  q: Float[Array, "R H K"], cache: KVCache, lengths: Int[Array, " R"]
) -> Float[Array, "R H K"]:
  """By the paged attention kernel for TPUs; `lengths` of 0 cost nothing."""
  keys, values, table = _pages(cache)
  return tpu.paged_attention(
    q * q.shape[-1] ** -0.5,
    keys,
    values,
    lengths,
    table,
    pages_per_compute_block=math.gcd(table.shape[1], 4),
  )


def paged_gpu(
  q: Float[Array, "R H K"], cache: KVCache, lengths: Int[Array, " R"], interpret: bool = False
) -> Float[Array, "R H K"]:
  """By the paged attention kernel for GPUs; `lengths` of 0 cost nothing. With `interpret` the
  kernel runs without a GPU."""
  keys, values, table = _pages(cache)
  scales = {}
  if cache.key_scales is not None:
    shape = keys.shape[:3]
    scales["k_scales_pages"] = cache.key_scales.reshape(shape)
    scales["v_scales_pages"] = cache.value_scales.reshape(shape)
  return gpu.paged_attention(
    q * q.shape[-1] ** -0.5,
    keys,
    values,
    table,
    lengths,
    **scales,
    pages_per_compute_block=1,
    k_splits=math.gcd(table.shape[1], 16),
    interpret=interpret,
  )


def _pages(cache):
  """Keys and values [G, pages, PAGE, K], and the table [R, pages a row]: a row's own, in order."""
  heads, rows, size, dim = cache.keys.shape
  shape = (heads, rows * size // PAGE, PAGE, dim)
  table = jnp.arange(shape[1], dtype=jnp.int32).reshape(rows, -1)
  return cache.keys.reshape(shape), cache.values.reshape(shape), table


KERNELS = ("paged_tpu", "paged_gpu")  # a free slot costs them nothing
IMPLEMENTATIONS = {
  "xla": xla,
  "paged_tpu": paged_tpu,
  "paged_gpu": paged_gpu,
  "cpu": cpu_cache.attend,
}
