"""Exact draws of one token per row, from two random numbers a row and without sorting.

A Gumbel draw would need a random number for every token of the vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from poise_jax.models import ModelConfig, unembedding
from poise_jax.models.block import norm
from poise_jax.models.products import matmul
from poise_jax.rollout.config import RolloutConfig

Drawn = tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]]  # see `draw`

BLOCKS = 256  # number of token blocks; a draw picks a block (id modulo BLOCKS), then its token


def next_tokens(
  config: ModelConfig,
  params: PyTree[Array],
  hidden: Float[Array, "R D"],
  keys: Key[Array, " R"],
  t: Int[Array, " R"],
  rollout: RolloutConfig,
) -> Drawn:
  """Draws each row's token t.

  Args:
    config: the decoder's shape.
    params: parameters in the sampling layout.
    hidden: states of the tokens before, after the last block.
    keys: a key per response, into which t is folded.
    t: number of the token in its response.
    rollout: sampling options.

  Returns:
    See `draw`.
  """
  with jax.named_scope("head"):
    hidden = norm(config, "norm").apply({"params": params["norm"]}, hidden)
    logits = matmul(hidden, unembedding(config, params), jnp.float32)
  with jax.named_scope("draw"):
    return draw(logits, jax.vmap(jax.random.fold_in)(keys, t), rollout)


def is_eos(tokens: Int[Array, "*rows"], rollout: RolloutConfig) -> Bool[Array, "*rows"]:
  """Which tokens end a response."""
  return jnp.isin(tokens, jnp.array(rollout.eos_ids, jnp.int32))


def keep_top(
  scores: Float[Array, "R V"], enough: Callable[[Bool[Array, "R V"]], Bool[Array, " R"]]
) -> Bool[Array, "R V"]:
  """The smallest set of highest scores in each row for which `enough` holds.

  Bisects the threshold over the 32 bits of a float, which can be ordered like integers: exact after
  32 cheap passes, where sorting the vocabulary is slow on every accelerator. Ties stay together.
  """
  bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
  order = jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)

  def halve(_, bounds):  # `low` always keeps enough, and the threshold is in [low, high]
    low, high = bounds
    middle = (low | high) - ((low ^ high) >> 1)  # the mean rounded up, without overflow
    ok = enough(order >= middle[:, None])
    return jnp.where(ok, middle, low), jnp.where(ok, high, middle - 1)

  low = jnp.full(len(scores), jnp.iinfo(jnp.int32).min)
  threshold, _ = jax.lax.fori_loop(0, 32, halve, (low, order.max(-1)))
  return order >= threshold[:, None]


def pick(weights: Float[Array, "R N"], u: Float[Array, " R"]) -> Int[Array, " R"]:
  """Index drawn with probability weight / sum, never one of weight 0; u is uniform in [0, 1).

  Each row has a positive weight.
  """
  cumulative, positive = jnp.cumsum(weights, axis=-1), weights > 0
  # Rounded sums need not increase, and u times the last one may be rounded up to it.
  beyond = positive & (cumulative > (u * cumulative[:, -1])[:, None])
  last = weights.shape[-1] - 1 - jnp.argmax(positive[:, ::-1], axis=-1)
  return jnp.where(beyond.any(-1), jnp.argmax(beyond, axis=-1), last)


def draw(logits: Float[Array, "R V"], keys: Key[Array, " R"], rollout: RolloutConfig) -> Drawn:
  """Draws a token per row.

  Applies the temperature, then top-k, then top-p to the tokens that top-k left, in the order of
  transformers.

  Args:
    logits: of each row's next token.
    keys: a key per row.
    rollout: sampling options.

  Returns:
    tokens, int32; log-probabilities in nats under the truncated, renormalised distribution that the
    tokens were drawn from (0 at temperature 0, a point mass); entropies in nats of the untruncated
    softmax at the temperature (at temperature 0: at 1).
  """
  scaled = logits.astype(jnp.float32) / (rollout.temperature or 1.0)
  scaled = scaled - jax.lax.stop_gradient(scaled.max(-1, keepdims=True))
  # Without the barrier XLA computes the exponentials again for each use.
  weights = jax.lax.optimization_barrier(jnp.exp(scaled))
  total = weights.sum(-1)
  entropies = jnp.log(total) - (weights * scaled).sum(-1) / total
  if rollout.temperature == 0:
    return jnp.argmax(scaled, -1).astype(jnp.int32), jnp.zeros_like(total), entropies
  if rollout.top_k:
    top = keep_top(scaled, lambda top: top.sum(-1) >= rollout.top_k)
    weights = jnp.where(top, weights, 0.0)
  if rollout.top_p < 1:
    mass = rollout.top_p * weights.sum(-1)
    top = keep_top(scaled, lambda top: jnp.where(top, weights, 0).sum(-1) >= mass)
    weights = jnp.where(top, weights, 0.0)
  rows, vocab = weights.shape
  padded = jnp.pad(weights, ((0, 0), (0, -vocab % BLOCKS))).reshape(rows, -1, BLOCKS)
  blocks = padded.sum(1)
  u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
  block = pick(blocks, u[:, 0])
  # Not a gather: of an array that is split along both axes, XLA's partitioner cannot compile one.
  inside = jnp.where(jnp.arange(BLOCKS) == block[:, None, None], padded, 0).sum(-1)
  tokens = (pick(inside, u[:, 1]) * BLOCKS + block).astype(jnp.int32)
  chosen = jnp.take_along_axis(scaled, tokens[:, None], axis=1)[:, 0]
  return tokens, chosen - jnp.log(blocks.sum(-1)), entropies
