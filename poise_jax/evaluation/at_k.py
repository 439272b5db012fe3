"""What n answers to a prompt say about any k of them: pass@k and maj@k, exactly, without drawing
subsets; and the standard error of a mean over prompts."""

import functools
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from poise_jax.errors import UserError

RIGHT = 1 - 1e-6  # an answer with this reward or more counts as right


def pass_at_k(n: int, c: int, k: int) -> float:
  """The probability that k of n answers, drawn without replacement, hold one of the c right ones.

  1 - C(n-c, k) / C(n, k) as a product of ratios, so that no binomial overflows; the unbiased
  estimate of pass@k (Chen et al. 2021, arXiv 2107.03374, eq. 1).

  Raises:
    UserError: k is not in [1, n] or c is not in [0, n].
  """
  _check_k(n, k)
  if not 0 <= c <= n:
    raise UserError(f"c={c} right answers of n={n} cannot be")
  if n - c < k:
    return 1.0
  return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def maj_at_k(votes: Sequence[str | None], scores: Sequence[float], k: int) -> float:
  """The expected score of the majority's answer among k of n answers drawn without replacement.

  Exact: the mean over all C(n, k) subsets, each with ties between the leading answers resolved
  by chance. Answers with the same vote may differ in score; then one of the winner's is picked by
  chance. None does not vote; a subset without a vote scores 0.

  Args:
    votes: what each answer votes for.
    scores: in the order of `votes`.
    k: the size of a subset.

  Raises:
    UserError: k is not in [1, n].
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
  """maj@k of groups (votes, mean score).

  How many votes each group has in a random subset is distributed like independent binomials, with
  any probability, given that they sum to k; k / n keeps every number in the range of a float.
  """
  n = abstained + sum(size for size, _ in groups)

  def binomial(m):
    p = k / n
    return [math.comb(m, j) * p**j * (1 - p) ** (m - j) for j in range(min(m, k) + 1)]

  nobody = binomial(abstained)
  chances = [(binomial(size), score) for size, score in groups]
  total = 0.0
  for most in range(1, min(k, max((size for size, _ in groups), default=0)) + 1):
    # [votes, groups that have `most` of them]: probability, and its product with their scores' sum.
    chance = np.zeros((k + 1, k // most + 1))
    chance[: len(nobody), 0] = nobody
    score_sum = np.zeros_like(chance)
    for of_votes, score in chances:
      new_chance, new_sum = np.zeros_like(chance), np.zeros_like(chance)
      for j, p in enumerate(of_votes[: most + 1]):
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


def standard_error(values: np.ndarray) -> float:
  """The bootstrap standard error of the mean of `values` [P], one a prompt.

  It is the standard deviation of the mean of P values drawn with replacement. For a mean that is
  known without drawing: std(values) / sqrt(P), with ddof=0. nan for a single prompt, which cannot
  tell how much prompts differ.
  """
  return float(np.std(values) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _check_k(n, k):
  if not 1 <= k <= n:
    raise UserError(f"k={k} is not in [1, {n}]: k of n={n} answers are drawn, none of them twice")
