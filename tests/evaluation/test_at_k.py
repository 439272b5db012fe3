"""pass@k, maj@k and the bootstrap against enumeration of all possible draws."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from poise_jax.evaluation.at_k import maj_at_k, pass_at_k, standard_error


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n):
  for c in range(n + 1):
    for k in range(1, n + 1):
      subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
      expected = sum(any(subset) for subset in subsets) / len(subsets)
      assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_many_answers_is_exact_where_binomials_overflow():
  for n, c, k in ((10_000, 3, 5_000), (4_000, 1, 1), (2_000, 1_000, 7), (3_000, 2, 2_999)):
    missed = Fraction(1)
    for i in range(k):
      missed *= Fraction(n - c - i, n - i)
    assert pass_at_k(n, c, k) == pytest.approx(float(1 - missed), rel=1e-9)


@pytest.mark.parametrize("n,c,k", [(4, 2, 5), (4, 2, 0), (4, 5, 2), (4, -1, 2), (0, 0, 1)])
def test_arguments_out_of_range_are_an_error(n, c, k):
  with pytest.raises(ValueError, match=f"n={n}"):
    pass_at_k(n, c, k)


def majority_of(subset):
  """The expected score of one subset's winner, by the definition."""
  votes = Counter(vote for vote, _ in subset if vote is not None)
  if not votes:
    return 0.0
  most = max(votes.values())
  leaders = [vote for vote, count in votes.items() if count == most]
  means = [np.mean([score for vote, score in subset if vote == leader]) for leader in leaders]
  return float(np.mean(means))


CASES = {
  "unanimous": (["7"] * 4, [1.0] * 4),
  "all differ": (list("abcde"), [0, 1, 0, 0, 1]),
  "two tie": (list("aabb"), [1, 1, 0, 0]),
  "three tie": (list("aabbcc"), [1, 1, 0, 0, 0, 0]),
  "the wrong one leads": (list("aaab"), [0, 0, 0, 1]),
  "some abstain": (["a", None, "b", None, "a", None], [1, 0, 0, 0, 1, 0]),
  "all abstain": ([None] * 3, [0, 0, 0]),
  "partial scores within a vote": (list("aabbbc"), [0.2, 0.9, 0.5, 0.0, 0.1, 1.0]),
}


@pytest.mark.parametrize("votes,scores", CASES.values(), ids=CASES)
def test_maj_at_k_is_the_mean_over_all_subsets(votes, scores):
  answers = list(zip(votes, scores, strict=True))
  for k in range(1, len(answers) + 1):
    subsets = list(itertools.combinations(answers, k))
    expected = np.mean([majority_of(subset) for subset in subsets])
    assert maj_at_k(votes, scores, k) == pytest.approx(expected, abs=1e-12), k


def test_maj_at_k_of_random_answers_is_the_mean_over_all_subsets():
  rng = np.random.default_rng(0)
  for _ in range(30):
    n = int(rng.integers(1, 9))
    votes = [None if v == 0 else str(v) for v in rng.integers(0, 4, n)]
    scores = rng.integers(0, 3, n) / 2
    k = int(rng.integers(1, n + 1))
    subsets = itertools.combinations(list(zip(votes, scores, strict=True)), k)
    assert maj_at_k(votes, scores, k) == pytest.approx(np.mean([*map(majority_of, subsets)]))


def test_maj_at_k_of_many_answers_is_a_probability():
  votes = ["a"] * 155 + ["b"] * 145
  value = maj_at_k(votes, [1.0] * 155 + [0.0] * 145, 151)
  draws = np.random.default_rng(1).hypergeometric(155, 145, 151, size=100_000)
  assert value == pytest.approx((draws > 75).mean(), abs=0.007)  # more than four standard errors


def test_the_standard_error_is_that_of_all_resamples():
  values = np.array([0.0, 0.25, 1.0, 0.5, 0.5])
  means = [np.mean(resample) for resample in itertools.product(values, repeat=len(values))]
  assert standard_error(values) == pytest.approx(np.std(means), abs=1e-12)


def test_a_single_prompt_has_no_standard_error():
  assert np.isnan(standard_error(np.array([0.5])))
