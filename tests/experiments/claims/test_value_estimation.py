"""The analysis of `value_estimation` on synthetic results."""

import numpy as np
import pytest
from claim_logs import SEEDS, ablation, outcomes

from experiments.claims.value_estimation import claim as value_estimation
from experiments.claims.value_estimation import source_scale

CRITICS = dict.fromkeys((*value_estimation.CRITICS.values(), value_estimation.LONGER), 0.5)


def estimated(probe, **options):
  quality = {value_estimation.PROBE: probe, **CRITICS}
  return value_estimation.outcome([ablation(seed, quality, **options) for seed in SEEDS])


def test_a_better_probe_is_found():
  outcome = estimated(0.8)
  assert outcomes(outcome) == [True] * 4
  assert not any(check.control for check in outcome.checks)
  assert outcome.checks[2].ours.startswith("better on 5 of 5")
  assert "| a |" in outcome.tables["Values in the test half"]
  *_, costs = outcome.tables.values()
  assert "| prompt-only critic | 10.000" in costs and "arithmetic" in costs
  longer = outcome.tables["The prompt-only critic with a longer search"].splitlines()[-1]
  assert longer.startswith("| prompt-only critic, longer | 0.2") and "7, 7, 7, 7, 7" in longer
  assert 0.2 < float(longer.split("|")[5].split()[0]) < 0.4  # the probe's gain in r
  assert outcomes(estimated(0.5))[:2] == [None, None]
  assert outcomes(estimated(0.3)) == [False] * 4


def test_of_few_families_the_probe_must_be_better_on_all():
  outcome = estimated(0.8, families=("a", "b"))
  assert "at least 2 families" in outcome.checks[2].hypothesis
  assert outcomes(outcome) == [True] * 4


@pytest.mark.parametrize(
  "quality, expected",
  (
    ({None: 0.5, "a": 0.9, "b": 0.9, "c": 0.9, "d": 0.2, "e": 0.2}, [None, False]),
    ({None: 0.7, "a": 0.9, "b": 0.9, "c": 0.9, "d": 0.9, "e": 0.2}, [True, True]),
  ),
)
def test_families_are_counted_by_their_means(quality, expected):
  overall, *_, families = outcomes(estimated(quality))
  assert [overall, families] == expected


def test_a_family_counts_without_an_interval_of_its_own():
  """Gains of 0.02 that vary by 0.1 over seeds, so that no interval is above 0."""
  rng = np.random.default_rng(0)
  noise = rng.normal(size=len(SEEDS))
  gains = 0.02 + 0.1 * (noise - noise.mean())
  found = {family: value_estimation.gain(gains, np.zeros(5)) for family in "abcde"}
  assert all(x.above(0) is None for x in found.values())
  assert value_estimation.families_better("r", found).holds is True


def test_a_family_whose_r_is_unknown_counts_on_neither_side():
  results = [ablation(seed, {value_estimation.PROBE: 0.8, **CRITICS}) for seed in SEEDS]
  for result in results:
    for row in result["results"]:
      if row["domain"] in ("a", "b"):
        row["r"] = None
  outcome = value_estimation.outcome(results)
  assert outcomes(outcome) == [True, True, True, None]


def test_memory_at_the_sources_sizes_is_that_of_its_shapes():
  """4,096 rows of 2 x 2,560 + 3 features; weights, gradients and two moments of 4.02 billion."""
  found = source_scale.source_bytes()
  np.testing.assert_allclose(found["probe"], 4096 * 5123 * 4, rtol=0.001)
  assert found["ppo"] == found["sppo"]
  np.testing.assert_allclose(found["sppo"], 16 * 4.022e9, rtol=0.001)
