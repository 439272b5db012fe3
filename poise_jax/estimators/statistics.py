"""Statistics that several estimators need; what rounding alone makes of equal numbers is 0 in all.

Equal float32 numbers have a mean that differs from them by rounding, and equal rewards that are
computed in different ways differ by rounding themselves (0.1 + 0.2 and 0.3). Divided by a standard
deviation that is as small, such a difference would be an advantage of the size of a real one.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real

from poise_jax.errors import UserError

STD_EPSILON = 1e-6  # as in verl; TRL has 1e-4
_EPS = float(np.finfo(np.float32).eps)
# A spread up to this share of the numbers' size is rounding: 32 units in the last place of float32,
# 3.8e-6. A token of DAPO's length punishment is 1 / overlong_buffer, 2.4e-4 for 4,096.
RESOLUTION = 32 * _EPS

Weights = Real[Array, "*shape"] | Bool[Array, "*shape"]


def deviations(
  values: Float[Array, "*shape"],
  weights: Weights | None = None,
  axis: int | None = None,
  size: Float[Array, "..."] | None = None,
) -> Float[Array, "*shape"]:
  """Values minus their mean; exactly 0 if all values are equal up to rounding.

  Args:
    values: anything; those of weight 0 are not read for the mean, and may be NaN.
    weights: number of times that each entry counts. None: once.
    axis: axis of the mean. None: all axes.
    size: size of the numbers of which `values` are sums or differences. None: the largest value.
  """
  weights = jnp.ones_like(values) if weights is None else weights
  counts = weights > 0
  total = jnp.maximum(weights.sum(axis, keepdims=True), 1)
  mean = jnp.where(counts, weights * values, 0.0).sum(axis, keepdims=True) / total
  if size is None:
    size = jnp.abs(jnp.where(counts, values, 0.0)).max(axis, keepdims=True)
  # Values that were centred before have a mean of rounding: those that are 0 stay 0.
  mean = jnp.where(jnp.abs(mean) <= _EPS * size, 0.0, mean)
  high = values.max(axis, keepdims=True, initial=-jnp.inf, where=counts)
  low = values.min(axis, keepdims=True, initial=jnp.inf, where=counts)
  return jnp.where(high - low <= RESOLUTION * size, 0.0, values - mean)


def whiten(
  values: Float[Array, "*shape"],
  weights: Weights | None = None,
  size: Float[Array, "..."] | None = None,
) -> Float[Array, "*shape"]:
  """Scales values to mean 0 and standard deviation 1 (ddof=1); equal values become 0.

  Args:
    values: anything.
    weights: number of times that each entry counts. None: once.
    size: see `deviations`.

  Raises:
    UserError: a single entry, which has no standard deviation.
  """
  if values.size < 2:
    raise UserError(
      "advantages of a single response cannot be whitened: rollouts must be at least 2"
    )
  weights = jnp.ones_like(values) if weights is None else weights
  centred = deviations(values, weights, size=size)
  squares = jnp.where(weights > 0, weights * centred**2, 0.0).sum()
  return centred / (jnp.sqrt(squares / jnp.maximum(weights.sum() - 1, 1)) + STD_EPSILON)


def variance(
  values: Float[Array, "*shape"],
  mask: Bool[Array, "*shape"],
  size: Float[Array, "..."] | None = None,
) -> Float[Array, ""]:
  """Variance (ddof=0) of the entries in mask; exactly 0 if they are equal.

  Args:
    values: anything.
    mask: entries that count.
    size: see `deviations`.
  """
  squares = jnp.where(mask, deviations(values, mask, size=size) ** 2, 0.0)
  return squares.sum() / jnp.maximum(mask.sum(), 1)


def mixed(scores: Float[np.ndarray, "P n"]) -> Bool[np.ndarray, " P"]:
  """Whether the responses of each group have different scores, by more than rounding."""
  return scores.max(1) - scores.min(1) > RESOLUTION * np.abs(scores).max(1)


def explained_variance(
  values: Float[Array, "*shape"], targets: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Float[Array, ""]:
  """1 - Var(target - value) / Var(target) over the entries in mask; 0 if all targets are equal."""
  total, residual = variance(targets, mask), variance(targets - values, mask)
  return jnp.where(total > 0, 1 - residual / jnp.where(total > 0, total, 1.0), 0.0)
