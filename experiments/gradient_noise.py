"""Bias and variance of policy gradients, from the scores of single answers.

An answer's gradient is its advantage times its score, d log pi(y | x) / d parameters. So scores of
one set of answers give the gradient under every baseline. Letters: P prompts, n answers a prompt, S
dimensions of a score or of its sketch, m answers a group, G = n / m groups, B answers a batch.

All means of squares are U-statistics over prompts: products of a prompt with itself, which contain
its noise, are left out. They may be negative where the true number is near 0.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from poise_jax.estimators import statistics

Vectors = Float[np.ndarray, "P S"]


def product(a: Vectors, b: Vectors) -> float:
  """The inner product of the means of a and b, of which rows with equal numbers are dependent."""
  count = len(a)
  together = float(a.sum(0, dtype=np.float64) @ b.sum(0, dtype=np.float64))
  return (together - float((a * b).sum(dtype=np.float64))) / (count * (count - 1))


def share(a: float, b: float) -> float:
  """a / b; NaN where b is 0, as where all rewards are equal."""
  return a / b if b else float("nan")


def of_prompts(scores: Float[np.ndarray, "P n S"], advantages: Float[np.ndarray, "P n"]) -> Vectors:
  """Each prompt's mean gradient."""
  return np.einsum("pn,pns->ps", advantages, scores) / scores.shape[1]


def squared_bias(
  scores: Float[np.ndarray, "P n S"],
  baselines: Float[np.ndarray, "P n"],
  fixed: Float[np.ndarray, "P 1"],
  gradient: Vectors,
) -> float:
  """The squared bias that a baseline gives to the gradient, as a share of the squared gradient.

  The bias is the mean of -b times the score, which is 0 for a baseline that does not depend on the
  answer itself. So b minus such a baseline has the same mean, and less noise the closer both are.

  Args:
    scores: of the answers.
    baselines: of the answers.
    fixed: baselines of the prompts, which do not depend on these answers.
    gradient: each prompt's gradient under a baseline without bias.
  """
  bias = of_prompts(scores, baselines - fixed)
  return share(product(bias, bias), product(gradient, gradient))


def components(gradients: Float[np.ndarray, "P n S"]) -> tuple[float, float]:
  """Traces of Sigma_w, the covariance of answers to a prompt, and of Sigma_b, that of prompts."""
  n = gradients.shape[1]
  within = float(gradients.var(1, ddof=1, dtype=np.float64).sum(-1).mean())
  between = float(gradients.mean(1).var(0, ddof=1, dtype=np.float64).sum()) - within / n
  return within, between


def predicted_variance(within: float, between: float, batch: int, m: int) -> float:
  """Total variance of a batch's mean gradient by Proposition 1: Sigma_w / B + m Sigma_b / B."""
  return (within + m * between) / batch


def batch_means(
  gradients: Float[np.ndarray, "P G S"], groups: int, order: Int[np.ndarray, " P"]
) -> Float[np.ndarray, "G K S"]:
  """Mean gradients of K batches of `groups` groups of different prompts, for each place G.

  Args:
    gradients: of groups.
    groups: groups a batch; prompts that do not fill one are left out.
    order: permutation of the prompts.
  """
  count = len(order) // groups
  rows = gradients[order[: count * groups]].reshape(count, groups, *gradients.shape[1:])
  return np.moveaxis(rows.mean(1), 0, 1)


def measured_variance(
  gradients: Float[np.ndarray, "P n S"], batch: int, m: int, repeats: int = 20
) -> float:
  """Total variance of the mean gradient of batches of B / m prompts with m answers each.

  Batches of a permutation have no prompt in common. Averaged over permutations and over the places
  of a group among a prompt's answers.

  Args:
    gradients: of answers; m divides n and B, and there are prompts for 2 batches.
    batch: B.
    m: answers a prompt.
    repeats: permutations.
  """
  p, n, s = gradients.shape
  groups, rng = gradients.reshape(p, n // m, m, s).mean(2), np.random.default_rng(0)
  variances = [
    batch_means(groups, batch // m, rng.permutation(p)).var(1, ddof=1).sum(-1).mean()
    for _ in range(repeats)
  ]
  return float(np.mean(variances))


def by_halves(
  gradients: Float[np.ndarray, "P n S"], batch: int, sizes: Sequence[int]
) -> dict[str, dict[str, dict[str, float]]]:
  """Measured variances of each half of the prompts, and those that the other half predicts.

  On the prompts that are measured the formula would hold by construction: its two parts are then a
  decomposition of the measured variance.

  Args:
    gradients: of answers; half of the prompts are enough for 2 batches.
    batch: B.
    sizes: m of `measured_variance`.

  Returns:
    {"first half": {"measured": {m: variance}, "formula": {m: variance}}, "second half": ...}, named
    by the half that is measured.
  """
  half = len(gradients) // 2
  first, second = gradients[:half], gradients[half:]
  found = {}
  for name, measured, other in (("first half", first, second), ("second half", second, first)):
    within, between = components(other)
    found[name] = {
      "measured": {str(m): measured_variance(measured, batch, m) for m in sizes},
      "formula": {str(m): predicted_variance(within, between, batch, m) for m in sizes},
    }
  return found


def adam_proxy(gradients: Float[np.ndarray, "K S"], b1: float = 0.9, b2: float = 0.999) -> float:
  """sum(v_hat - m_hat^2) over Adam's moments after K steps, which v3 takes for the variance.

  Both sums are squared norms of averages, so a sketch of the gradients suffices.
  """
  mean, square = np.zeros(gradients.shape[1]), 0.0
  for gradient in gradients:
    mean = b1 * mean + (1 - b1) * gradient
    square = b2 * square + (1 - b2) * float(gradient @ gradient)
  mean = mean / (1 - b1 ** len(gradients))
  return square / (1 - b2 ** len(gradients)) - float(mean @ mean)


def under_baseline(
  scores: Float[np.ndarray, "P n S"],
  advantages: Float[np.ndarray, "P n"],
  m: int,
  gradient: Vectors,
  batch: int,
  rewards: Float[np.ndarray, "P n"] | None = None,
) -> dict[str, float]:
  """What a baseline leaves of the variance, for groups of m answers.

  Args:
    scores: of the answers.
    advantages: of the answers; those of a group depend on its own answers alone.
    m: answers a group.
    gradient: each prompt's gradient under a baseline without bias.
    batch: answers a batch for "adam", rounded down to whole groups but at least one.
    rewards: given for DAPO alone, which leaves out groups of equal rewards and divides by the
      group's deviation.

  Returns:
    "variance": total variance of a batch's gradient times its answers. DAPO's gradient has another
    scale, and to first order a step along m raises the objective by <g, m>, where g is the true
    gradient; so it is multiplied by <g, g> / <g, m>, with which both make the same progress. All
    others have the true mean and the scale 1. "per sampled": the same times the answers sampled for
    it, those of groups that are left out included. "unscaled": "variance" with the scale 1. "adam":
    the proxy of v3 with the same scale, times the answers of its batches. "kept": the share of
    groups that count.
  """
  p, n, s = scores.shape
  groups = (advantages[..., None] * scores).reshape(p, n // m, m, s).mean(2)
  used = np.ones(groups.shape[:2], bool)
  if rewards is not None:
    used = statistics.mixed(rewards.reshape(-1, m)).reshape(used.shape)
  share_used = float(used.mean())
  if used.sum() < 2:
    unknown = dict.fromkeys(("variance", "per sampled", "unscaled", "adam"), np.nan)
    return {**unknown, "kept": share_used}
  scale = 1.0
  if rewards is not None:
    weights = used / share_used  # for the mean over the groups in use
    means = (groups * weights[..., None]).mean(1)
    scale = share(product(gradient, gradient), product(gradient, means))
  chosen = groups[used]
  unscaled = float(chosen.var(0, ddof=1, dtype=np.float64).sum()) * m
  variance = unscaled * scale**2
  count = min(max(batch // m, 1), len(chosen))
  order = np.random.default_rng(0).permutation(len(chosen))
  batches = batch_means(chosen[:, None], count, order)[0]
  return {
    "variance": variance,
    "per sampled": variance / share_used,
    "unscaled": unscaled,
    "adam": adam_proxy(batches) * scale**2 * count * m,
    "kept": share_used,
  }
