"""The analysis of `tracking` on synthetic runs."""

import numpy as np
import pytest
from claim_logs import NOISE, SEEDS, controls, outcomes, run

from experiments.claims.tracking import claim as tracking


def bootstrapped(seed, length, gain=0.3):
  """A log with predictions after a bootstrap; their r is 0.7 in the first 4 steps, then 0."""
  made = run("poise", seed, gain)
  made.config["probe"] = {"bootstrap_steps": length}
  for row in made.rows[1:]:
    row["probe/variance_reduction"] = -1.0
    if row["step"] > length:
      r = 0.7 if row["step"] <= length + 4 else 0.0
      row |= {"probe/pearson": r, "probe/variance_reduction": r**2}
  return made


def shadowed(seed, r):
  """A log of the shadows' metrics; r: name -> Pearson's r in the second half of the steps."""
  made = bootstrapped(seed, 3)
  rng = np.random.default_rng(seed)
  for row in made.rows[1:]:
    for name in (*tracking.VARIANTS, *tracking.CRITICS):
      value = (r.get(name, 0.6) if row["step"] > 10 else -1.0) + NOISE * rng.normal()
      numbers = {"mae": 1 - value, "pearson": value, "variance_reduction": value**3}
      row |= {f"shadow/{tracking.slug(name)}/{key}": x for key, x in numbers.items()}
  return made


@pytest.mark.parametrize(
  "r, end, expected",
  (
    ({}, 0.7, [True, True, True, True]),
    ({"probe": 0.4}, 0.3, [False, False, True, True]),
    ({"probe": -0.3, **dict.fromkeys(tracking.CRITICS, -0.25)}, 0.61, [None, None, False, True]),
    (
      {"probe": 0.6, "critic": 0.3, "critic at a tenth of the rate": 0.8},
      0.7,
      [False, True, True, True],
    ),
    (
      {"probe": 0.6, "critic": 0.8, "critic at a tenth of the rate": 0.3},
      0.7,
      [False, True, True, True],
    ),
  ),
)
def test_a_probe_that_falls_behind_is_found(r, end, expected):
  rng = np.random.default_rng(3)
  held_out = {
    step: [{"MAE": 0.2, "r": x + 0.02 * rng.normal(), "ceiling": 0.9} for _ in SEEDS]
    for step, x in ((20, 0.7), (60, end))
  }
  others = [[bootstrapped(seed, length) for seed in SEEDS] for length in (16, 1)]
  outcome = tracking.outcome([shadowed(seed, r) for seed in SEEDS], held_out, others)
  assert outcomes(outcome) == expected and controls(outcome) == [3]
  assert "| refitted every 16 steps |" in next(iter(outcome.tables.values()))


@pytest.mark.parametrize("gain, flat", ((0.3, True), (0.25, False)))
def test_a_bootstrap_that_costs_accuracy_is_found(gain, flat):
  main = [shadowed(seed, {}) for seed in SEEDS]
  others = [
    [bootstrapped(seed, 16, gain) for seed in SEEDS],
    [bootstrapped(seed, 1) for seed in SEEDS],
  ]
  held_out = {step: [{"MAE": 0.2, "r": 0.7, "ceiling": 0.9} for _ in SEEDS] for step in (20, 60)}
  outcome = tracking.outcome(main, held_out, others)
  assert outcome.checks[3].holds is flat and "1, 3 or 16" in outcome.checks[3].hypothesis
  rows = outcome.tables["Length of the bootstrap"].splitlines()[2:]
  assert [row.split("|")[1].strip() for row in rows] == ["1", "3", "16"]
  assert all("| 0.700 [0.700, 0.700] | 0.490 [0.490, 0.490] |" in row for row in rows)
