"""Statistics that several estimators need. Differences due to rounding alone count as 0 in all.

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


def pearson(
  x: Float[Array, "*shape"], y: Float[Array, "*shape"], where: Bool[Array, "*shape"]
) -> Float[Array, ""]:
  """Pearson's r over the entries in `where`: 0 if a side is constant, NaN if there are none."""
  dx, dy = (jnp.where(where, deviations(v, where), 0.0) for v in (x, y))
  norms = jnp.linalg.norm(dx) * jnp.linalg.norm(dy)
  r = jnp.where(norms > 0, (dx * dy).sum() / jnp.where(norms > 0, norms, 1.0), 0.0)
  return jnp.where(where.any(), r, jnp.nan)


def value_variance(
  rewards: Float[Array, "P n"], real: Bool[Array, " P"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Variance of the prompts' values V(x) = E[r | x], and the mean variance of a reward around them.

  The estimators of the one-way random-effects model (Searle, Casella and McCulloch, "Variance
  Components", 1992, section 3.5) from the mean squares between and within prompts: with
  MSB = n sum_x (mean_x - mean)^2 / (P - 1) and MSW = sum (r - mean_x)^2 / (P (n - 1)),
  E[MSW] = E[Var(r | x)] and E[MSB] = n Var(V) + E[Var(r | x)], so that (MSB - MSW) / n, which is
  the covariance of two samples of a prompt, estimates Var(V) without bias. Both assume samples that
  are independent given their prompt.

  Args:
    rewards: independent samples of each prompt.
    real: prompts that count; the rewards of others may be anything.

  Returns:
    Var(V), which may be negative by chance, and E[Var(r | x)], in squared units of reward. NaN with
    one sample a prompt or fewer than two prompts.
  """
  n, count = rewards.shape[1], real.sum()
  if n < 2:
    return jnp.full((), jnp.nan), jnp.full((), jnp.nan)
  rewards = jnp.where(real[:, None], rewards, 0.0)
  within = (deviations(rewards, axis=1) ** 2).sum() / (jnp.maximum(count, 1) * (n - 1))
  means = jnp.where(real, deviations(rewards.mean(1), real), 0.0)
  between = n * (means**2).sum() / jnp.maximum(count - 1, 1)
  known = count >= 2
  return jnp.where(known, (between - within) / n, jnp.nan), jnp.where(known, within, jnp.nan)


def noise_ceiling(
  rewards: Float[Array, "P n"], real: Bool[Array, " P"], samples: int = 1
) -> Float[Array, ""]:
  """Pearson's r of a perfect predictor of V(x) against means of `samples` rewards of a prompt.

  sqrt(Var(V) / (Var(V) + E[Var(r | x)] / samples)). The square is the share of the variance that
  the baseline V(x) removes, 1 - Var(r - V) / Var(r) for one sample. No prediction that is
  independent of the rewards given x has a higher r, except by chance in a batch. One that reads the
  rewarded response itself may have it: the probe with own_rollout, or GRPO's group mean.

  The estimate is too low in small batches, since it is the root of a noisy ratio: over several
  batches, average squares and take the root of the mean.

  Args:
    rewards: independent samples of each prompt.
    real: prompts that count.
    samples: rewards in a mean that predictions are compared with.

  Returns:
    A number in [0, 1]; NaN with one sample a prompt, with fewer than two prompts, or where all
    rewards are equal.
  """
  value, noise = value_variance(rewards, real)
  value = jnp.maximum(value, 0.0)
  total = value + noise / samples
  return jnp.where(total > 0, jnp.sqrt(value / jnp.where(total > 0, total, 1.0)), jnp.nan)
