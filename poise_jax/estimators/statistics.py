"""Statistics that several estimators need."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from poise_jax.errors import UserError

STD_EPSILON = 1e-6  # as in verl; TRL has 1e-4


def whiten(
  values: Float[Array, "*shape"],
  weights: Real[Array, "*shape"] | Bool[Array, "*shape"] | None = None,
) -> Float[Array, "*shape"]:
  """Scales values to mean 0 and standard deviation 1 (ddof=1).

  Args:
    values: anything.
    weights: number of times that each entry counts. None: once.

  Raises:
    UserError: a single entry, which has no standard deviation.
  """
  if values.size < 2:
    raise UserError(
      "advantages of a single response cannot be whitened: rollouts must be at least 2"
    )
  weights = jnp.ones_like(values) if weights is None else weights
  total = jnp.maximum(weights.sum(), 2)
  centred = values - (weights * values).sum() / total
  variance = (weights * centred**2).sum() / (total - 1)
  return centred / (jnp.sqrt(variance) + STD_EPSILON)


def explained_variance(
  values: Float[Array, "*shape"], targets: Float[Array, "*shape"], mask: Bool[Array, "*shape"]
) -> Float[Array, ""]:
  """1 - Var(target - value) / Var(target) over the entries in mask; 0 if all targets are equal."""
  variance = jnp.var(targets, where=mask)
  residual = jnp.var(targets - values, where=mask)
  return jnp.where(variance > 0, 1 - residual / jnp.where(variance > 0, variance, 1.0), 0.0)
