"""Log-probs and entropies of tokens, without the logits of all tokens at once.

Letters: B sequences, T response positions, D model width, V vocabulary, N chunks of C tokens.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from poise_jax.distributed.sharding import BATCH, batch_shards
from poise_jax.models.chunks import chunk_size
from poise_jax.models.products import matmul


def token_logprobs(
  hidden: Float[Array, "B T D"],
  unembed: Float[Array, "D V"],
  targets: Int[Array, "B T"],
  temperature: float = 1.0,
  chunk: int = 0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Log-probs of `targets` and entropies of softmax(hidden @ unembed / temperature), in nats.

  A device holds the logits of at most `chunk` tokens at a time, in the forward pass and in the
  backward pass, which recomputes them. Differentiable with respect to hidden and unembed through
  both outputs. The matrix products have operands of the hidden states' dtype; all else is float32,
  the sums over tokens and devices included.

  Args:
    hidden: final hidden states, one before each target.
    unembed: unembedding matrix; its gradient has its dtype.
    targets: token ids.
    temperature: divides the logits.
    chunk: most tokens whose logits exist at once; 0: as many as `chunk_of` allows.
  """
  mesh = jax.sharding.get_abstract_mesh()
  chunk = chunk or chunk_of(unembed.shape[1] // (1 if mesh.empty else mesh.shape["tensor"]))
  return _logprobs(hidden, unembed, targets, temperature, chunk)


def chunk_of(vocab: int) -> int:
  """Number of tokens whose float32 logits take 256 MiB, for `vocab` tokens on a device.

  At least 128: smaller chunks would be bound by reading the unembedding.
  """
  return max(2**28 // (4 * vocab), 128)


def _softmax(rows, unembed, targets, temperature):
  """Softmax of one chunk.

  Args:
    rows: hidden states [C, D].
    unembed: [D, V].
    targets: [C].
    temperature: divides the logits.

  Returns:
    Log-probs of the targets [C], entropies [C], all log-probs [C, V] and probabilities [C, V].
  """
  logits = matmul(rows, unembed, jnp.float32) / temperature
  top = logits.max(-1, keepdims=True)
  # Not logits - log-sum-exp, which cancels where logits are large.
  shifted = logits - top
  weights = jnp.exp(shifted)
  # Both sums are one reduction, and a target's log-prob starts from `logits`, not from `shifted`:
  # otherwise XLA fuses exp into each sum and the maximum into the product, which is slow on a CPU.
  total, moment = jax.lax.reduce(
    (weights, weights * shifted),
    (0.0, 0.0),
    lambda x, y: (x[0] + y[0], x[1] + y[1]),
    dimensions=(1,),
  )
  log_total = jnp.log(total)
  logprob = (jnp.take_along_axis(logits, targets[:, None], axis=-1) - top)[:, 0] - log_total
  entropy = log_total - moment / total  # both terms are at least 0: no cancellation
  return logprob, entropy, shifted - log_total[:, None], weights / total[:, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _logprobs(hidden, unembed, targets, temperature, chunk):
  """[B, T, D], [D, V], [B, T] -> log-probs and entropies [B, T]."""

  def on_one_device(hidden, unembed, targets):
    def one(_, x):
      logprob, entropy, *_ = _softmax(x[0], unembed, x[1], temperature)
      return None, (logprob, entropy)

    _, outputs = jax.lax.scan(one, None, _in_chunks((hidden, targets), chunk))
    return tuple(_from_chunks(x, targets.shape) for x in outputs)

  split = _over_batch_shards(on_one_device, (P(BATCH), P(), P(BATCH)), P(BATCH))
  return split(hidden, unembed.astype(hidden.dtype), targets)


def _logprobs_forward(hidden, unembed, targets, temperature, chunk):
  return _logprobs(hidden, unembed, targets, temperature, chunk), (hidden, unembed, targets)


def _logprobs_backward(temperature, chunk, saved, cotangents):
  hidden, unembed, targets = saved

  def on_one_device(unembed, *arrays):
    def one(d_unembed, x):
      rows, targets, d_logprob, d_entropy = x
      _, entropy, log_p, p = _softmax(rows, unembed, targets, temperature)
      # d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy)
      scale = d_logprob[:, None] + d_entropy[:, None] * (log_p + entropy[:, None])
      chosen = jnp.arange(p.shape[-1]) == targets[:, None]
      d_logits = (jnp.where(chosen, d_logprob[:, None], 0.0) - p * scale) / temperature
      d_logits = d_logits.astype(rows.dtype)
      d_unembed += matmul(rows.T, d_logits, jnp.float32)
      return d_unembed, matmul(d_logits, unembed.T, jnp.float32).astype(rows.dtype)

    zeros = jnp.zeros(unembed.shape, jnp.float32)
    d_unembed, d_rows = jax.lax.scan(one, zeros, _in_chunks(arrays, chunk))
    if _split():  # here, where the sum is float32
      d_unembed = jax.lax.psum(d_unembed, BATCH)
    return d_unembed, _from_chunks(d_rows, arrays[0].shape)

  split = _over_batch_shards(on_one_device, (P(), *[P(BATCH)] * 4), (P(), P(BATCH)))
  arrays = (hidden, targets, *cotangents)
  d_unembed, d_hidden = split(unembed.astype(hidden.dtype), *arrays)
  return d_hidden, d_unembed.astype(unembed.dtype), None


_logprobs.defvjp(_logprobs_forward, _logprobs_backward)


def _in_chunks(arrays, chunk):
  """Each [B, T, ...] as chunks [N, C, ...] of at most `chunk` tokens; all are about as large, and
  the last one is filled up with zeros."""
  tokens = arrays[0].shape[0] * arrays[0].shape[1]
  size = chunk_size(tokens, chunk)

  def cut(x):
    x = x.reshape(tokens, *x.shape[2:])
    return jnp.pad(x, [(0, -tokens % size)] + [(0, 0)] * (x.ndim - 1)).reshape(
      -1, size, *x.shape[1:]
    )

  return tuple(cut(x) for x in arrays)


def _from_chunks(x, shape):
  """[N, C, ...] -> `shape`, [B, T, ...]."""
  x = x.reshape(-1, *x.shape[2:])
  return x[: shape[0] * shape[1]].reshape(shape)


def _split():
  """Whether the batch is split over devices."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and batch_shards(mesh) > 1


def _over_batch_shards(function, in_specs, out_specs):
  """`function` on each device for its rows.

  Left to itself, GSPMD has each device compute the logits of all devices' tokens.
  """
  if not _split():
    return function
  return jax.shard_map(
    function, in_specs=in_specs, out_specs=out_specs, axis_names=set(BATCH), check_vma=False
  )
