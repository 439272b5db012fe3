"""pass@k and maj@k from n answers a prompt, exact and without drawing subsets; standard errors of
means over prompts."""

import functools
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

RIGHT = 1 - 1e-6  # smallest score of a right answer


def pass_at_k(n: int, c: int, k: int) -> float:
  """The probability that k of n answers, drawn without replacement, include a right one.

  The unbiased estimate of pass@k (Chen et al. 2021, arXiv 2107.03374, eq. 1) for c right answers,
  1 - C(n-c, k) / C(n, k), computed as a product of ratios so that no binomial overflows.

  Raises:
    ValueError: k is not in [1, n] or c is not in [0, n].
  """
  _check_k(n, k)
  if not 0 <= c <= n:
    raise ValueError(f"c must be in [0, n={n}], got {c}")
  if n - c < k:
    return 1.0
  return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def maj_at_k(votes: Sequence[str | None], scores: Sequence[float], k: int) -> float:
  """The expected score of the majority answer among k of n answers, drawn without replacement.

  The exact mean over all C(n, k) subsets. Ties between leading answers are broken at random. If
  answers with the same vote differ in score, one of the winners is picked at random. An answer
  whose vote is None abstains; a subset in which all abstain scores 0.

  Args:
    votes: vote of each answer.
    scores: score of each answer.
    k: size of a subset.

  Raises:
    ValueError: k is not in [1, n].
  """
  _check_k(len(votes), k)
  groups = defaultdict(list)
  for vote, score in zip(votes, scores, strict=True):
    groups[vote].append(score)
  abstained = len(groups.pop(None, ()))
  sizes = sorted((len(group), float(np.mean(group))) for group in groups.values())
  return _majority(tuple(sizes), abstained, k)


@functools.lru_cache(maxsize=4096)
def _majority(groups: tuple[tuple[int, float], ...], abstained: int, k: int) -> float:
  """maj@k of groups, each with its number of votes and the mean of their scores.

  The numbers of votes that the groups have in a random subset are distributed like independent
  binomials of any probability, conditioned on their sum being k; the probability k / n keeps all
  terms within the range of a float.
  """
  n = abstained + sum(size for size, _ in groups)

  def binomial(m):
    p = k / n
    return [math.comb(m, j) * p**j * (1 - p) ** (m - j) for j in range(min(m, k) + 1)]

  abstentions = binomial(abstained)
  distributions = [(binomial(size), score) for size, score in groups]
  total = 0.0
  for most in range(1, min(k, max((size for size, _ in groups), default=0)) + 1):
    # [votes so far, groups with `most` votes]: probability, and its product with the sum of the
    # scores of those groups. Groups with more than `most` votes are excluded.
    chance = np.zeros((k + 1, k // most + 1))
    chance[: len(abstentions), 0] = abstentions
    score_sum = np.zeros_like(chance)
    for distribution, score in distributions:
      new_chance, new_sum = np.zeros_like(chance), np.zeros_like(chance)
      for j, p in enumerate(distribution[: most + 1]):
        a, b = p * chance[: k + 1 - j], p * score_sum[: k + 1 - j]
        if j < most:
          new_chance[j:] += a
          new_sum[j:] += b
        else:
          new_chance[j:, 1:] += a[:, :-1]
          new_sum[j:, 1:] += b[:, :-1] + score * a[:, :-1]
      chance, score_sum = new_chance, new_sum
    total += (score_sum[k, 1:] / np.arange(1, chance.shape[1])).sum()
  return float(total / binomial(n)[k])


def standard_error(values: Float[np.ndarray, " P"]) -> float:
  """The bootstrap standard error of the mean of `values`, one value a prompt.

  The standard deviation of the mean of P values drawn with replacement, which for a mean is exactly
  std(values) / sqrt(P) with ddof=0. NaN for a single prompt, which has no spread to estimate.
  """
  return float(np.std(values) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _check_k(n, k):
  if not 1 <= k <= n:
    raise ValueError(f"k must be in [1, n={n}], got {k}")
