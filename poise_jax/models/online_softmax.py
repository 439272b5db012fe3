"""Attention of one query a row to keys that are read block after block, without all scores at once.

Letters: G key heads, R rows, H query heads, K head dimension, Q positions of a block.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from poise_jax.models.attention import NEGATIVE
from poise_jax.models.products import matmul


class Parts(NamedTuple):
  """What the blocks so far say, in float32."""

  queries: Float[Array, "G R H/G K"]  # scaled, in the dtype of the computation
  top: Float[Array, "G R H/G 1"]  # highest score
  mass: Float[Array, "G R H/G 1"]  # sum of exp(score - top)
  summed: Float[Array, "G R H/G K"]  # values weighted by exp(score - top)


def start(q: Float[Array, "R H K"], groups: int) -> Parts:
  """No block yet; query head h reads key head h // (H / groups)."""
  rows, heads, dim = q.shape
  q = (q * dim**-0.5).reshape(rows, groups, heads // groups, dim).swapaxes(0, 1)
  zeros = jnp.zeros((*q.shape[:3], 1))
  return Parts(q, zeros + NEGATIVE, zeros, jnp.zeros(q.shape))


def read(
  parts: Parts,
  keys: Shaped[Array, "G R K Q"],
  values: Shaped[Array, "G R Q K"],
  key_scales: Float[Array, "G R Q"] | None,
  value_scales: Float[Array, "G R Q"] | None,
  written: Bool[Array, "R Q"],
) -> Parts:
  """Adds a block.

  Args:
    parts: of the blocks before.
    keys: in columns.
    values: in rows.
    key_scales: multipliers of int8 keys; they multiply the scores instead of the keys.
    value_scales: multipliers of int8 values; they multiply the weights.
    written: positions that count.
  """
  q, top, mass, summed = parts
  scores = matmul(q, keys.astype(q.dtype), jnp.float32)
  if key_scales is not None:
    scores *= key_scales[:, :, None]
  scores = jnp.where(written[:, None], scores, NEGATIVE)
  new_top = jnp.maximum(top, scores.max(-1, keepdims=True))
  weights, before = jnp.exp(scores - new_top), jnp.exp(top - new_top)
  mass = before * mass + weights.sum(-1, keepdims=True)
  if value_scales is not None:
    weights *= value_scales[:, :, None]
  read = matmul(weights.astype(q.dtype), values.astype(q.dtype), jnp.float32)
  return Parts(q, new_top, mass, before * summed + read)


def context(parts: Parts) -> Float[Array, "R H K"]:
  """The result, once at least one block was read."""
  groups, rows, ratio, dim = parts.queries.shape
  mean = (parts.summed / parts.mass).swapaxes(0, 1).reshape(rows, groups * ratio, dim)
  return mean.astype(parts.queries.dtype)
