"""Drawing one token a row: exact, with two random numbers a row instead of one for every entry of
the vocabulary, and without sorting the vocabulary."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from poise_jax.rollout.config import RolloutConfig

BLOCKS = 256  # a token is drawn in two stages: first its block (id modulo BLOCKS), then the token


def keep_top(scores: Float[Array, "V R"], enough) -> Bool[Array, "V R"]:
  """The smallest set of highest scores for which `enough(kept [V, R]) -> [R]` holds.

  Bisects the cut over the 32 bits of a float, which can be ordered as integers are: exact after 32
  cheap passes, where a sort of the vocabulary is slow on every accelerator. Ties stay together.
  """
  bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
  order = jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)

  def halve(_, bounds):  # `low` always keeps enough, and the answer lies in [low, high]
    low, high = bounds
    middle = (low | high) - ((low ^ high) >> 1)  # the mean rounded up, without overflow
    ok = enough(order >= middle)
    return jnp.where(ok, middle, low), jnp.where(ok, high, middle - 1)

  low = jnp.full(scores.shape[1:], jnp.iinfo(jnp.int32).min)
  cut, _ = jax.lax.fori_loop(0, 32, halve, (low, order.max(0)))
  return order >= cut


def pick(weights: Float[Array, "N R"], u: Float[Array, " R"]) -> Int[Array, " R"]:
  """Index drawn with probability weight / sum; u is uniform in [0, 1). Never one of weight 0."""
  cumulative = jnp.cumsum(weights, axis=0)
  return jnp.sum(cumulative <= u * cumulative[-1], axis=0)


def draw(
  logits: Float[Array, "V R"], keys: Key[Array, " R"], rollout: RolloutConfig
) -> tuple[Int[Array, " R"], Float[Array, " R"], Float[Array, " R"]]:
  """Draws a token a column.

  Temperature comes first, then top-k, then top-p of what top-k left (transformers' order).

  Returns:
    tokens [R] int32; log-probabilities [R] in nats under the truncated, renormalised distribution
    that was drawn from (0 at temperature 0, which is a point mass); entropies [R] in nats of the
    untruncated softmax at the temperature (at temperature 0: at 1).
  """
  scaled = logits.astype(jnp.float32) / (rollout.temperature or 1.0)
  scaled = scaled - jax.lax.stop_gradient(scaled.max(0))
  # Without the barrier XLA computes it again for each of its uses.
  weights = jax.lax.optimization_barrier(jnp.exp(scaled))
  total = weights.sum(0)
  entropies = jnp.log(total) - (weights * scaled).sum(0) / total
  if rollout.temperature == 0:
    return jnp.argmax(scaled, 0), jnp.zeros_like(total), entropies
  if rollout.top_k:
    kept = keep_top(scaled, lambda kept: kept.sum(0) >= rollout.top_k)
    weights = jnp.where(kept, weights, 0.0)
  if rollout.top_p < 1:
    goal = rollout.top_p * weights.sum(0)
    kept = keep_top(scaled, lambda kept: jnp.where(kept, weights, 0).sum(0) >= goal)
    weights = jnp.where(kept, weights, 0.0)
  vocab, rows = weights.shape
  padded = jnp.pad(weights, ((0, -vocab % BLOCKS), (0, 0))).reshape(-1, BLOCKS, rows)
  blocks = padded.sum(0)
  u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys).T
  block = pick(blocks, u[0])
  inside = jnp.take_along_axis(padded, block[None, None], axis=1)[:, 0]
  tokens = pick(inside, u[1]) * BLOCKS + block
  chosen = jnp.take_along_axis(scaled, tokens[None], axis=0)[0]
  return tokens, chosen - jnp.log(blocks.sum(0)), entropies
