"""The analysis of `cross_rollout` on synthetic runs and gradients."""

import numpy as np
import pytest
from claim_logs import SEEDS, outcomes, runs_of

from experiments.claims import claim as claims
from experiments.claims.cross_rollout import claim as cross_rollout


def crossed(gains, single=0.2, pair=0.2):
  """The outcome of the claim about cross-rollout baselines; single, pair: biases of the own
  rollout's with n = 1 and n = 2."""
  arms = {arm.name: gains.get(arm.name, 0.3) for arm in cross_rollout.ARMS}
  rng = np.random.default_rng(0)
  true = dict.fromkeys(cross_rollout.BASELINES, 0.0)
  true |= {cross_rollout.OWN.name: single, cross_rollout.OWN_PAIR.name: pair}
  gradients = {
    title: [biased({name: b + 0.02 * rng.normal() for name, b in true.items()}) for _ in SEEDS]
    for title in cross_rollout.POLICIES
  }
  return cross_rollout.outcome(runs_of(arms), gradients)


def biased(shares, squared=0.5):
  """What `experiments.gradients` says of the bias."""
  return {"squared bias": shares, "squared gradient": squared}


def test_a_seed_without_a_gradient_does_not_decide_the_bias():
  """A squared gradient near 0 makes its share of bias huge, and says nothing."""
  seeds = [biased({"own": 0.2}), biased({"own": 0.2}), biased({"own": -40.0}, 0.0005)]
  assert cross_rollout.relative_bias(seeds, "own").value == pytest.approx(0.18, abs=0.001)


def test_the_cross_rollout_construction_is_found_to_matter():
  arms = "OWN", "PROMPT", "OWN_PAIR", "PROMPT_PAIR"
  gains = {getattr(cross_rollout, arm).name: 0.2 for arm in arms}
  outcome = crossed(gains)
  assert outcomes(outcome) == [True] * 6 and claims.verdict(outcome.checks, 5, 5) == claims.HOLDS
  assert claims.verdict(outcome.checks, 4, 5) == claims.UNKNOWN
  gains.pop(cross_rollout.PROMPT_PAIR.name)
  partly = crossed(gains, pair=0.0)
  assert outcomes(partly) == [True, True, True, None, True, None]
  assert claims.verdict(partly.checks, 5, 5) == claims.PART


def test_accuracy_is_that_of_sampled_answers_with_held_out_problems_beside_it():
  better = cross_rollout.POISE.name
  members = runs_of({arm.name: 0.3 for arm in cross_rollout.ARMS})
  for row in (row for member in members[better] for row in member.rows):
    row |= {"eval/accuracy": 0.9} if "eval/accuracy" in row else {}
  gradients = {
    title: [biased(dict.fromkeys(cross_rollout.BASELINES, 0.0)) for _ in SEEDS]
    for title in cross_rollout.POLICIES
  }
  outcome = cross_rollout.outcome(members, gradients)
  assert True not in outcomes(outcome)
  row = next(x for x in outcome.tables["Accuracy"].splitlines() if x.startswith(f"| {better} "))
  _, _, sampled, _, held_out, *_ = row.split("|")
  assert float(held_out.split()[0]) == 0.9 and float(sampled.split()[0]) < 0.7
