"""The default of probe.min_rows, and the peak of ridge with almost no penalty."""

import pytest

from experiments import probe_rows
from poise_jax.estimators import ProbeOptions

POISE, V2, _ = probe_rows.PROBES.values()


@pytest.fixture
def mean_squares(monkeypatch):
  monkeypatch.setattr(probe_rows, "SEEDS", 2)
  monkeypatch.setattr(probe_rows, "TEST_PROMPTS", 400)
  monkeypatch.setattr(probe_rows, "ROWS", (2, 64, 256, 1024))
  return probe_rows.mean_squares


def test_with_min_rows_the_probe_beats_rloo_and_with_one_group_it_may_not(mean_squares):
  assert ProbeOptions().min_rows == probe_rows.ROWS[2]
  for signal in probe_rows.SIGNALS.values():
    rewards = probe_rows.rollouts(400, signal, seed=1000)[0]
    rloo = ((rewards - rewards[:, ::-1]) ** 2).mean()
    squares = mean_squares(POISE, signal)
    assert squares[2] < rloo and squares[3] < squares[2]
  assert squares[0] > 1.5 * rloo  # where the value is easy to see in a reward


def test_ridge_with_almost_no_penalty_needs_many_times_as_many_rows_as_features(mean_squares):
  few, near, more, many = mean_squares(V2, probe_rows.SIGNALS["medium"])  # of 195 features
  assert min(near, more) > 0.25 > many  # 0.25: a constant baseline
