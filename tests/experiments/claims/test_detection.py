"""The analysis of `detection` on synthetic runs."""

import numpy as np
import pytest
from claim_logs import SEEDS, controls, outcomes, run

from experiments.claims.detection import claim as detection


def collected(arm, seed, unused, skipped=None):
  """A log in which a share of the sampled tokens is discarded; sampling and judging take half of
  the time."""
  made = run(arm, seed, 0.3)
  rng = np.random.default_rng(seed)
  for row in made.rows[1:]:
    share = np.clip(unused + 0.02 * rng.normal() * (unused > 0), 0, 1)
    row |= {
      "rollout/tokens": row["collect/tokens"] * (1 - share),
      "collect/groups": 8 * (1 - share),
    }
    row |= {"time/rollout": 20.0, "time/reward": 10.0, "time/step": 60.0}
    row |= {} if skipped is None else {"collect/skipped": skipped}
  made.rows[1] |= {"time/rollout": 600.0, "time/step": 610.0}  # compiles
  return made


@pytest.mark.parametrize(
  "dapo, greso, poise, expected",
  ((0.5, 0.25, 0.0, [True, True, True]), (0.02, 0.02, 0.01, [False, None, False])),
)
def test_what_is_discarded_is_found(dapo, greso, poise, expected):
  shares = {detection.POISE.name: poise, detection.DAPO.name: dapo, detection.GRESO.name: greso}
  runs = {
    arm: [
      collected(arm, seed, share, 3.0 if arm == detection.GRESO.name else None) for seed in SEEDS
    ]
    for arm, share in shares.items()
  }
  outcome = detection.outcome(runs)
  assert outcomes(outcome) == expected and controls(outcome) == [3]
  time = outcome.numbers["time for unused tokens by seed"][detection.DAPO.name]
  np.testing.assert_allclose(np.mean(time), dapo / 2, atol=0.01)
  assert "| 3.0 |" in outcome.tables["Sampled and discarded"]


def test_rollouts_per_step_are_counted_by_third():
  made = run("dapo", 0, 0.3, steps=60)
  for row in made.rows[1:]:
    row["collect/generated"] = 16.0 * (1 + row["step"] // 21)
  assert detection.sampled_per_step([made], 0) == "16"
  assert detection.sampled_per_step([made, run("dapo", 1, 0.3)], -1) == "40"  # 20 of 47.2, 6 of 16
