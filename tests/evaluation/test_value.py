"""Tables of predicted and realised values, against NumPy on planted values."""

import json

import numpy as np
import pytest

from poise_jax.evaluation import value
from poise_jax.evaluation.value import Values

P, N = 120, 9
STARTS = dict(commit="abc", uncommitted_changes=False, cpu="x", cpus=1, devices=[], python="3")
ABOUT = dict(run="runs/a", step=7, samples=N - 1)
ABOUT["provenance"] = dict(command=["python"], libraries={}, **STARTS)


@pytest.fixture(scope="module")
def planted():
  """Domain "easy" is known to the predictor, "hard" is not, "new" has no prediction; a quarter of
  the prompts are hopeless."""
  rng = np.random.default_rng(4)
  v = np.where(np.arange(P) % 4 == 0, 0.0, rng.beta(0.7, 0.7, P))
  rewards = (rng.random((P, N)) < v[:, None]).astype(np.float32)
  domains = ["easy"] * 60 + ["hard"] * 40 + ["new"] * 20
  predictions = np.clip(v[:, None] + 0.05 * rng.normal(size=(P, N)), 0, 1)
  predictions[60:100] = rng.random((40, N))
  predictions[100:] = np.nan
  return Values(rewards, predictions.astype(np.float32), domains)


def by_hand(rewards, predictions):
  """The columns of the table by loops over answers."""
  k = rewards.shape[1] - 1
  others = np.array([[np.delete(row, i).mean() for i in range(k + 1)] for row in rewards])
  baselines = np.array([[row[i - 1] for i in range(k + 1)] for row in predictions])
  noise = rewards.var(1, ddof=1).mean()
  v = rewards.mean(1).var(ddof=1) - noise / (k + 1)
  return {
    "MAE": np.abs(predictions - others).mean(),
    "r": np.corrcoef(predictions.ravel(), others.ravel())[0, 1],
    "ceiling": np.sqrt(v / (v + noise / k)),
    "r, one reward": np.corrcoef(baselines.ravel(), rewards.ravel())[0, 1],
    "ceiling, one reward": np.sqrt(v / (v + noise)),
    "variance reduction": 1 - (rewards - baselines).var() / rewards.var(),
    "its ceiling": v / (v + noise),
    "std of V(x)": np.sqrt(v),
  }


def test_every_number_of_the_table(planted):
  rows = {(row["group"], row["predictor"]): row for row in value.results(planted, "poise")}
  mean = planted.rewards.mean(1)
  informative = (mean >= 0.02) & (mean <= 0.98)
  assert 0.3 < informative.mean() < 0.8
  ranges = {"easy": slice(0, 60), "hard": slice(60, 100), "new": slice(100, P), "all": slice(0, P)}
  checked = 0
  for name, rows_of in ranges.items():
    where = np.zeros(P, bool)
    where[rows_of] = True
    for label, members in ((name, where), (f"{name}, 0.02 ≤ V ≤ 0.98", where & informative)):
      for predictor, made in (("poise", planted.predictions), (value.SINGLE, planted.rewards)):
        counted = members & np.isfinite(made).all(1)
        if not counted.any():
          assert (label, predictor) not in rows
          continue
        row = rows[label, predictor]
        assert row["prompts"] == counted.sum()
        expected = by_hand(planted.rewards[counted].astype(np.float64), made[counted])
        for metric, number in expected.items():
          assert row[metric]["mean"] == pytest.approx(number, abs=1e-4), (label, predictor, metric)
          checked += 1
  assert checked == (4 * 2 * 2 - 2) * 8 and len(rows) == 14
  known, unknown = rows["easy", "poise"], rows["hard", "poise"]
  assert known["r"]["mean"] > 0.9 > known["ceiling"]["mean"] - 0.1
  assert abs(unknown["r"]["mean"]) < 0.2 and unknown["variance reduction"]["mean"] < 0
  # RLOO with two answers reaches the square of the ceiling.
  single = rows["all", value.SINGLE]
  assert single["r, one reward"]["mean"] == pytest.approx(single["its ceiling"]["mean"], abs=0.03)


def test_the_spread_of_the_values(planted):
  spread = {row["group"]: row for row in value.spreads(planted, value.results(planted, "poise"))}
  assert list(spread)[:4] == ["all", "easy", "hard", "new"] and len(spread) == 8
  mean = planted.rewards.mean(1)
  for name, members in (("all", slice(0, P)), ("hard", slice(60, 100))):
    rewards = planted.rewards[members].astype(np.float64)
    v = rewards.mean(1).var(ddof=1) - rewards.var(1, ddof=1).mean() / N
    row, inside = spread[name], (mean[members] >= 0.2) & (mean[members] <= 0.8)
    assert row["std of V(x)"]["mean"] == pytest.approx(np.sqrt(v), abs=1e-4)
    assert row["V in [0.2, 0.8]"] == pytest.approx(inside.mean())
    assert row["mean reward"] == pytest.approx(rewards.mean(), abs=1e-5)
    assert row["prompts"] == len(rewards)


def test_standard_errors_are_the_spread_over_draws_of_the_prompts():
  """Of the MAE it is known: the standard deviation over prompts by the root of their number."""
  rng = np.random.default_rng(0)
  rewards = (rng.random((400, 4)) < rng.random((400, 1))).astype(np.float32)
  predictions = np.full((400, 4), 0.5, np.float32)
  row = value.results(Values(rewards, predictions, [""] * 400), "x")[0]
  others = (rewards.sum(1, keepdims=True) - rewards) / 3
  error = np.abs(others - 0.5).mean(1).std() / 20
  assert row["MAE"]["se"] == pytest.approx(error, rel=0.2)
  assert row["r"]["mean"] == 0  # a constant


def test_calibration_takes_one_answer_a_prompt(planted):
  predicted, realised = value.independent(planted)
  np.testing.assert_array_equal(predicted, planted.predictions[:100, 0])
  np.testing.assert_allclose(realised, planted.rewards[:100, 1:].mean(1), rtol=1e-6)
  texts = value.tables(planted, "poise", value.results(planted, "poise"))
  counts = [int(line.split("|")[1]) for line in texts[2].splitlines()[2:]]
  assert sum(counts) == 100 and max(counts) <= 12


def test_the_files(planted, tmp_path):
  out = tmp_path / "new" / "out"
  text = value.report(planted, "poise", ABOUT, out)
  assert {path.name for path in out.iterdir()} == {"README.md", "results.json", "values.svg"}
  assert text == value.report(planted, "poise", ABOUT)
  readme = (out / "README.md").read_text()
  assert text in readme and "avg@8" in readme and "Commit abc" in readme
  assert "20 of 120 prompts have no prediction" in text
  content = json.loads((out / "results.json").read_text())
  assert content["step"] == 7 and len(content["results"]) == 14 and len(content["spread"]) == 8
  picture = (out / "values.svg").read_text()
  assert "easy: ceiling" in picture and "avg@8" in picture and "nan" not in picture
  assert picture.count("<circle") >= 100


@pytest.mark.parametrize("rewards", [np.zeros((5, 3)), np.eye(1, 3), np.eye(4, 2)])
def test_without_predictions_and_with_little_to_estimate(tmp_path, rewards):
  """Only hopeless prompts, a single prompt, two answers a prompt: no number is nan, no error."""
  rewards = rewards.astype(np.float32)
  values = Values(rewards, np.full_like(rewards, np.nan), ["a"] * len(rewards))
  text = value.report(values, "rloo", ABOUT, tmp_path)
  assert "nan" not in text.lower() and "have no prediction" in text
  json.loads((tmp_path / "results.json").read_text())
  picture = (tmp_path / "values.svg").read_text()
  assert "Spread of the values" in picture and "r against" not in picture
