"""The analysis of `diversity` on synthetic gradients."""

import numpy as np
from claim_logs import NOISE, SEEDS, outcomes

from experiments.claims import claim as claims
from experiments.claims.diversity import claim as diversity


def noise(seed, ratio, poise=0.8, dapo=1.5, other=None):
  """Results of experiments.gradients: 8 answers a prompt have `ratio` times the variance of one
  and, in the second half of the prompts, `other` times."""
  rng = np.random.default_rng(seed)

  def half(ratio):
    size = rng.uniform(0.5, 2)  # of gradients; no matter of the ratio
    return {
      str(m): size * (1 + (ratio - 1) * (m - 1) / 7 + NOISE * rng.normal()) for m in (1, 2, 4, 8)
    }

  first, second = half(ratio), half(other or ratio)
  left = {"poise, n = 2": poise, "rloo, n = 2": 1.0, "dapo, n = 8": dapo, "fixed": 0.7}
  baselines = {
    name: dict.fromkeys(diversity.KINDS, x * (1 + NOISE * rng.normal())) for name, x in left.items()
  }
  halves = {"first half": (first, second), "second half": (second, first)}
  halves = {name: {"measured": a, "formula": b} for name, (a, b) in halves.items()}
  return {"halves": halves, "baselines": baselines}


def test_the_variance_of_few_prompts_is_found():
  def outcome(**options):
    policies = {p: [noise(seed, **options) for seed in SEEDS] for p in diversity.POLICIES}
    return diversity.outcome(policies)

  found = outcome(ratio=1.8)
  assert outcomes(found) == [True] * 4
  assert [check.control for check in found.checks] == [False, False, False, True]
  other = outcome(ratio=1.0, poise=1.0, dapo=0.5)
  assert outcomes(other) == [False, None, False, True]
  assert "| dapo, n = 8 |" in other.tables["Variance over RLOO's, n = 2"]
  unlike = outcome(ratio=1.3, other=1.9)  # a proposition that the same prompts could not refute
  assert outcomes(unlike) == [True, True, True, False]
  assert claims.verdict(unlike.checks, 5, 5) == claims.HOLDS
