"""Attention over whole sequences in three implementations.

`xla` runs anywhere. `splash` (JAX's Pallas kernel for TPUs) and `cudnn` never store the scores; in
float32, for which neither has products, both are `xla`.

The code transposes operands to [batch..., rows, K] itself, with the query heads of one key head as
rows; otherwise XLA transposes the score matrices, which are far larger.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Array, Bool, Float, Int

from poise_jax.distributed import sharding
from poise_jax.errors import UserError, unknown_name
from poise_jax.models.chunks import chunk_size
from poise_jax.models.products import matmul

NEGATIVE = -1e30  # masked score; finite, so that a row without valid keys does not become NaN
WHOLE = 1024  # most query positions for which xla holds all scores [B, H, S, T] at once
QUERY_BLOCK = 512  # most query positions that it holds at once for longer sequences
# Name of splash's residuals [B, H, T, K]; where they are saved, no forward pass is repeated.
RESIDUALS = "attention"
Segments = Bool[Array, "B T"] | Int[Array, "B T"]
BEST = {"tpu": "splash", "gpu": "cudnn"}  # implementation of a platform; others: xla


def resolve(name: str, platform: str) -> str:
  """The implementation of a name, or of "auto", on a jax.Device's `platform`.

  Raises:
    UserError: the name is unknown, or its kernel does not run on this platform.
  """
  if name not in ("auto", *IMPLEMENTATIONS):
    raise unknown_name("train.attention", name, ("auto", *IMPLEMENTATIONS))
  best = BEST.get(platform, "xla")
  if name not in ("auto", "xla", best):
    raise UserError(
      f"train.attention={name!r} does not run on {platform} devices; use 'auto' or 'xla'"
    )
  return best if name == "auto" else name


def attention(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T G K"],
  v: Float[Array, "B T G K"],
  segments: Segments,
  implementation: str = "xla",
  window: int = 0,
) -> Float[Array, "B T H K"]:
  """Causal grouped-query attention; query head h reads key head h // (H / G). Softmax in float32.

  Args:
    q: queries; they attend to the keys of their segment up to their own position.
    k: keys.
    v: values.
    segments: numbers of the sequences that a row holds one after the other, 0 on padding; or, for
      one sequence a row, False on padding, which is before or after its tokens, not between them.
      The result on padding is finite but meaningless; without a cotangent it has no gradient.
    implementation: a key of IMPLEMENTATIONS, or "auto": the best one for the devices in use.
    window: keys that a query attends to at most, its own included; 0: all.
  """
  if implementation == "auto":
    implementation = resolve("auto", sharding.platform())
  return IMPLEMENTATIONS[implementation](q, k, v, segments, window=window)


def xla(
  q: Float[Array, "B S H K"],
  k: Float[Array, "B T G K"],
  v: Float[Array, "B T G K"],
  segments: Segments,
  start: Int[Array, ""] | int = 0,
  window: int = 0,
) -> Float[Array, "B S H K"]:
  """`attention` by matrix products; the S queries are those from position `start` on."""
  batch, length, heads, dim = q.shape
  groups = k.shape[2]
  ratio = heads // groups
  q = (q * dim**-0.5).reshape(batch, length, groups, ratio, dim).transpose(0, 2, 3, 1, 4)
  k, v = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)  # [B, G, K, T], [B, G, T, K]

  def attend(q, start):  # [B, G, ratio, S, K]
    length = q.shape[3]
    back = start + jnp.arange(length)[:, None] - jnp.arange(k.shape[3])
    near = (back >= 0) & (back < window) if window else back >= 0
    mask = near & segments.astype(bool)[:, None, :]
    if segments.dtype != bool:
      queries = jax.lax.dynamic_slice_in_dim(padded, start, length, axis=1)
      mask &= queries[:, :, None] == segments[:, None, :]
    scores = matmul(q.reshape(batch, groups, ratio * length, dim), k, jnp.float32)
    scores = scores.reshape(batch, groups, ratio, length, -1)
    scores = jnp.where(mask[:, None, None], scores, NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    context = matmul(weights.reshape(batch, groups, ratio * length, -1), v)
    return context.reshape(batch, groups, ratio, length, dim)

  size = chunk_size(length, WHOLE if length <= WHOLE else QUERY_BLOCK)
  padded = jnp.pad(segments, ((0, 0), (0, size)))  # the last block reads beyond the end
  if size == length:
    context = attend(q, start)
  else:  # the backward pass computes a block's scores again
    q = jnp.pad(q, [(0, 0)] * 3 + [(0, -length % size), (0, 0)])
    q = jnp.moveaxis(q.reshape(batch, groups, ratio, -1, size, dim), 3, 0)
    starts = start + size * jnp.arange(len(q))
    context = jax.lax.map(lambda x: jax.checkpoint(attend)(*x), (q, starts))
    context = jnp.moveaxis(context, 0, 3).reshape(batch, groups, ratio, -1, dim)[:, :, :, :length]
  return context.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim)


def splash(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T G K"],
  v: Float[Array, "B T G K"],
  segments: Segments,
  window: int = 0,
  interpret: bool = False,
) -> Float[Array, "B T H K"]:
  """`attention` by splash attention, on each device for its rows and heads.

  Padding is a segment of its own, so every position attends at least to itself. The kernel
  multiplies float32 operands in bfloat16; `xla` computes float32. With `interpret` the kernel runs
  without a TPU, in any dtype.
  """
  if q.dtype == jnp.float32 and not interpret:
    return xla(q, k, v, segments, window=window)
  length, dim = q.shape[1], q.shape[3]
  unit = 512 if length >= 4096 else 128  # blocks of 512 are faster; 128 is the minimum
  pad = -length % unit
  block = math.gcd(length + pad, 512)
  q, k, v = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (q * dim**-0.5, k, v))
  segments = jnp.pad(segments, ((0, 0), (0, pad))).astype(jnp.int32)

  def attend(q, k, v, segments):
    shape = (length + pad, length + pad)
    mask = splash_attention.CausalMask(shape)
    if window:
      mask = splash_attention.LocalMask(shape, (window - 1, 0), 0)
    kernel = splash_attention.make_splash_mha(
      splash_attention.MultiHeadMask([mask] * q.shape[2]),
      # The fused backward kernel computes 5 products, two separate kernels 7. It stores dq once
      # per block of keys, so its blocks are larger.
      block_sizes=splash_attention.BlockSizes(
        *[block] * 4, math.gcd(length + pad, 1024), block, use_fused_bwd_kernel=True
      ),
      residual_checkpoint_name=RESIDUALS,
      head_shards=1,
      q_seq_shards=1,
      interpret=interpret,
    )
    heads_first = [x.swapaxes(1, 2) for x in (q, k, v)]
    context = jax.vmap(kernel)(*heads_first, splash_attention.SegmentIds(segments, segments))
    return context.swapaxes(1, 2)

  return _per_device(attend)(q, k, v, segments)[:, :length]


def cudnn(
  q: Float[Array, "B T H K"],
  k: Float[Array, "B T G K"],
  v: Float[Array, "B T G K"],
  segments: Segments,
  window: int = 0,
  backend: str = "cudnn",
) -> Float[Array, "B T H K"]:
  """`attention` by cuDNN through jax.nn; `backend` "xla" runs anywhere.

  Rows of one sequence are rolled so that their tokens come first: a length then describes the
  padding. Rows of several need a mask [B, 1, T, T], shared by all heads. cuDNN has no float32
  kernel; `xla` computes float32.
  """
  if q.dtype == jnp.float32:
    return xla(q, k, v, segments, window=window)
  length = q.shape[1]
  odd = length % 2  # cuDNN's backward pass needs an even length
  q, k, v = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (q, k, v))
  segments = jnp.pad(segments, ((0, 0), (0, odd)))

  def attend(q, k, v, segments):
    by_backend = functools.partial(
      jax.nn.dot_product_attention,
      is_causal=True,
      implementation=backend,
      local_window_size=(window - 1, 0) if window else None,
    )
    if segments.dtype != bool:
      mask = (segments[:, :, None] == segments[:, None, :])[:, None]
      return by_backend(q, k, v, mask=mask)
    roll = jax.vmap(lambda x, by: jnp.roll(x, by, axis=0))
    first = jnp.argmax(segments, axis=1)
    lengths = jnp.maximum(segments.sum(1, dtype=jnp.int32), 1)  # a softmax needs at least one key
    rolled = (roll(x, -first) for x in (q, k, v))
    context = by_backend(*rolled, query_seq_lengths=lengths, key_value_seq_lengths=lengths)
    return roll(context, first)

  return _per_device(attend)(q, k, v, segments)[:, :length]


def _per_device(attend):
  """`attend` of queries, keys, values and [B, T], on each device for its rows and heads."""
  queries, keys = (("batch", None, name, None) for name in ("heads", "kv_heads"))
  return sharding.per_device(attend, (queries, keys, keys, ("batch", None)), queries)


IMPLEMENTATIONS = {"xla": xla, "splash": splash, "cudnn": cudnn}
