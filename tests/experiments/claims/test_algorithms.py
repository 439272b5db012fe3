"""The analysis of `algorithms` on synthetic runs."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from claim_logs import SEEDS, outcomes, run

from experiments.claims import claim as claims
from experiments.claims import intervals, runner
from experiments.claims.algorithms import claim as algorithms
from experiments.claims.algorithms import search
from experiments.claims.lab import Lab, sampled_accuracy
from poise_jax.errors import UserError
from poise_jax.reports.run_log import Run

ARMS = [arm.name for arm in algorithms.ARMS]


@pytest.fixture(autouse=True, scope="module")
def _fewer_resamples():
  before, intervals.RESAMPLES = intervals.RESAMPLES, 400
  intervals.draws.cache_clear()
  yield
  intervals.RESAMPLES = before
  intervals.draws.cache_clear()


def compared(gains, cost):
  """The outcome of the claim about algorithms; cost: tokens per step of some arms."""
  runs = {
    arm: [run(arm, seed, gains.get(arm, 0.3), cost.get(arm, 100.0)) for seed in SEEDS]
    for arm in ARMS
  }
  axes = {"flops": "tokens"}
  curves = {
    axis: {
      arm: [
        (
          np.array(
            [
              x
              for x, row in zip(r.positions(axes.get(axis, axis)), r.rows, strict=True)
              if "eval/accuracy" in row
            ]
          ),
          algorithms.accuracy(r),
        )
        for r in members
      ]
      for arm, members in runs.items()
    }
    for axis in algorithms.AXES
  }
  lab = Lab(pathlib.Path("unused"), SEEDS)
  searched = search.record(lab, {arm: [0.2, 0.5, 0.7, 0.7, 0.6, 0.3] for arm in ARMS})
  return algorithms.outcome(runs, curves, searched)


def test_a_better_and_cheaper_algorithm_is_found():
  outcome = compared({"poise": 0.4}, {"dapo": 150.0})
  assert outcomes(outcome) == [True, True, True, True]
  shares = outcome.numbers["cost by share of DAPO's gain"]
  for share, arms in shares.items():
    ratio = arms["poise"]["tokens"]
    assert 0.4 < ratio["value"] < 0.6, share  # 3 / 4 of 2 / 3
    assert ratio["low"] <= ratio["value"] <= ratio["high"] < 0.8
  assert set(shares) == {"0.9", "1"}
  by_sampled = outcome.numbers["tokens by share of DAPO's gain in sampled accuracy"]["poise"]
  assert 0.4 < by_sampled["0.9"]["value"] < 0.6
  equal = next(
    x for x in outcome.tables["Held-out accuracy at equal cost"].splitlines() if "poise" in x
  )
  minus = float(equal.split("|")[5].split()[0])  # at equal tokens
  assert 0.1 < minus < 0.2
  assert "<svg" in outcome.figure and "| poise |" in outcome.tables["Accuracy"]
  row = next(x for x in outcome.tables["Cost of a whole run"].splitlines() if "poise" in x)
  _, rollouts, tokens, _, minutes, early = (cell.split() for cell in row.split("|")[1:-1])
  assert (rollouts, tokens[0], minutes[0]) == (["16"], "0.667", "1.000")
  assert 0.25 < float(early[0]) < 0.42  # a third, after 5 of 15 steps
  json.dumps(outcome.numbers, allow_nan=False)


def test_the_trials_of_the_search_are_shown():
  *_, table = compared({}, {}).tables.values()
  assert (
    "| arm | 5e-05 | 0.0001 | 0.0002 | 0.0004 | 0.0008 | the best, max_grad_norm=0.2 |" in table
  )
  assert (
    "| ppo | 0.200 | 0.500 | **0.700** | 0.700 | 0.600 | 0.300 |" in table
  )  # of equal ones the first
  quick = search.table({"poise": [0.2, 0.1, 0.3]})
  assert "| arm | 5e-05 | 0.0001 | the best, max_grad_norm=0.2 |" in quick


@pytest.mark.parametrize("steps, counted", ((60, 20), (30, 10), (4, 2), (1, 1)))
def test_sampled_accuracy_is_that_of_the_last_third_of_the_steps(steps, counted):
  rows = [{"step": 0}] + [{"step": i, "collect/score": i / 100} for i in range(1, steps + 1)]
  made = Run(pathlib.Path("unused"), {"rollouts": 16}, rows, [])
  expected = np.mean(np.arange(steps - counted + 1, steps + 1)) / 100
  assert sampled_accuracy(made) == pytest.approx(expected)
  del rows[-1]["collect/score"]  # the pool held enough groups
  expected = np.mean(np.arange(steps - counted + 1, steps)) / 100 if counted > 1 else np.nan
  assert sampled_accuracy(made) == pytest.approx(expected, nan_ok=True)


def test_sampled_accuracy_is_a_mean_over_answers():
  """Dynamic sampling needs three batches in one step, a step of other arms has one."""
  rows = [{"step": step, "collect/score": 0.2} for step in range(10)]
  rows[8] |= {"collect/score": 0.9, "collect/generated": 48}
  made = Run(pathlib.Path("unused"), {"rollouts": 16}, rows, [])
  assert sampled_accuracy(made) == pytest.approx((0.2 + 3 * 0.9 + 0.2) / 5)


def curves(*finals):
  """One seed whose DAPO gains from 0.2 to 0.5 and is flat at its end, and POISE to `finals`."""
  x = np.arange(7.0)
  dapo = np.array([0.2, 0.3, 0.4, 0.45, 0.5, 0.5, 0.5])
  poise = np.array([0.2, 0.35, 0.45, 0.48, *finals])
  return {"dapo": [(x, dapo)], "poise": [(x / 2, poise)]}


def test_a_curve_that_ends_just_below_reaches_nearly_the_gain():
  close = curves(0.499, 0.499, 0.499)
  whole = algorithms.to_reach(close, "poise", "dapo", 1.0)
  assert np.isinf(whole.value)
  nearly = algorithms.to_reach(close, "poise", "dapo", 0.9)  # 0.47 = 0.2 + 0.9 * 0.3
  np.testing.assert_allclose(nearly.value, (2 + 2 / 3) / 2 / 3.4, rtol=0.01)
  far = algorithms.to_reach(curves(0.46, 0.44, 0.44), "poise", "dapo", 0.99)
  assert np.isinf(far.value)


def test_the_groups_that_are_trained_on_are_shown():
  made = [run("dapo", seed, 0.3) for seed in SEEDS]
  assert algorithms.groups(made) == "8.0"
  for one in made:
    for row in one.rows[1:]:
      row["collect/groups"] = 8 if row["step"] < 11 else 5
  assert algorithms.groups(made) == "6.5"


def test_the_choice_goes_by_sampled_accuracy(tmp_path, monkeypatch):
  lab, (poise, *_) = Lab(tmp_path, SEEDS), algorithms.ARMS
  gains = {"5e_05": 0.0, "0_0001": 0.0, "0_0002": 0.1, "0_0004": 0.3, "0_0008": 0.2, "clipped": 0.2}

  def read(path):
    name = path.name.removeprefix("poise_").removesuffix(f"-{search.SEED}")
    gain = gains[name]
    made = run("poise", 0, gain)
    for row in made.rows:
      row["eval/accuracy"] = 1 - gain  # which would choose another
    return made

  monkeypatch.setattr(search.run_log, "read", read)
  trials = search.trials(lab, poise)
  assert search.best(lab, poise, trials) == {"train.learning_rate": 4e-4}
  gains["clipped"] = 0.4
  expected = {"train.learning_rate": 4e-4, "train.max_grad_norm": 0.2}
  assert search.best(lab, poise, trials) == expected
  assert "--config.train.max_grad_norm=0.2" in trials[-1].unit.arguments()


def test_a_recorded_search_stands_for_its_runs(tmp_path):
  lab = Lab(tmp_path, (3,))
  searching = algorithms.CLAIM.units(lab)
  scores = {arm: [0.2, 0.3, 0.5, 0.6, 0.4, 0.3] for arm in ARMS}
  scores["ppo"] = [0.2, 0.3, 0.5, 0.6, 0.4, 0.7]
  (tmp_path / "search.json").write_text(json.dumps(search.record(lab, scores)))
  made = runner.check(algorithms.CLAIM.units(lab))
  assert [unit.name for unit in made] == [u.name for u in searching if u.seed == 3]
  assert all(unit.needs in ((), ("start-3",)) for unit in made)
  chosen = {unit.name: " ".join(unit.arguments()) for unit in made}
  for arm in ARMS:
    arguments = chosen[f"algorithms/{arm}-3"]
    assert "--config.train.learning_rate=0.0004" in arguments
    assert ("--config.train.max_grad_norm=0.2" in arguments) == (arm == "ppo")
  with pytest.raises(UserError, match="delete the file to search again"):
    algorithms.CLAIM.units(dataclasses.replace(lab, quick=True))


def test_equal_algorithms_cannot_be_told_apart():
  outcome = compared({}, {})
  cheaper, as_good, above_rloo, above_ppo = outcomes(outcome)
  assert cheaper is None and as_good is True and above_rloo is None and above_ppo is None
  for found in outcome.numbers["tokens by share of DAPO's gain in sampled accuracy"].values():
    assert 0.9 < found["0.9"]["value"] < 1.1


def test_a_worse_algorithm_never_reaches_the_level():
  outcome = compared({"poise": 0.1}, {})
  assert outcomes(outcome) == [False, False, False, False]
  assert "not reached" in outcome.checks[0].ours
  by_sampled = outcome.numbers["tokens by share of DAPO's gain in sampled accuracy"]["poise"]
  assert by_sampled["0.9"]["value"] is None  # infinite
  assert claims.verdict(outcome.checks, 5, 5) == claims.FAILS


def test_where_dapo_learns_nothing_there_is_nothing_to_reach():
  outcome = compared({"dapo": -0.1}, {})
  assert outcome.checks[0].holds is None and outcome.checks[0].ours == "nothing to reach"


def test_accuracy_at_equal_cost_is_read_where_the_cheapest_arm_ends():
  x = np.array([0.0, 10.0])
  curves = {"cheap": [(x / 2, np.array([0.0, 0.5]))], "dear": [(x, np.array([0.0, 0.8]))]}
  assert algorithms.at_equal(curves) == {"cheap": [0.5], "dear": [0.4]}
