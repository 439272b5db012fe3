"""Tables of predicted and realised values, against NumPy on planted values."""

import dataclasses
import json

import numpy as np
import pytest

from poise_jax.evaluation import value, value_table
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


def informative(rewards):
  """Whether the first half of a prompt's answers is neither all wrong nor all right."""
  mean = rewards[:, : N // 2].mean(1)
  return (mean >= 0.02) & (mean <= 0.98)


def test_every_number_of_the_table(planted):
  rows = {
    (row["domain"], row["informative"], row["predictor"]): row
    for row in value.results(planted, "poise")
  }
  chosen = informative(planted.rewards)
  assert 0.2 < chosen.mean() < 0.7
  ranges = {"easy": slice(0, 60), "hard": slice(60, 100), "new": slice(100, P), None: slice(0, P)}
  predicted, checked = np.arange(P) < 100, 0
  for name, rows_of in ranges.items():
    where = np.zeros(P, bool)
    where[rows_of] = True
    for half, members, first in ((False, where, 0), (True, where & chosen, N // 2)):
      for predictor, made in (("poise", planted.predictions), (value.SINGLE, planted.rewards)):
        counted = members & predicted if (members & predicted).any() else members
        if predictor == "poise" and name == "new":
          assert (name, half, predictor) not in rows
          continue
        row = rows[name, half, predictor]
        assert row["prompts"] == counted.sum() and row["k"] == N - first - 1
        rewards = planted.rewards[counted, first:].astype(np.float64)
        expected = by_hand(rewards, made[counted, first:])
        for metric in value.METRICS:
          number = expected[metric]
          assert row[metric]["mean"] == pytest.approx(number, abs=1e-4), (name, predictor, metric)
          checked += 1
  assert checked == (4 * 2 * 2 - 2) * 7 and len(rows) == 14
  known, unknown = rows["easy", False, "poise"], rows["hard", False, "poise"]
  assert 0.9 < known["r"]["mean"] < known["ceiling"]["mean"] + 0.03
  assert abs(unknown["r"]["mean"]) < 0.2 and unknown["variance reduction"]["mean"] < 0
  # RLOO with n = 2 reaches the square of the ceiling.
  single = rows[None, False, value.SINGLE]
  assert single["r, one reward"]["mean"] == pytest.approx(single["its ceiling"]["mean"], abs=0.03)


@pytest.mark.parametrize("n", [4, 6, 9])
def test_the_choice_of_informative_prompts_leaves_the_numbers_unbiased(n):
  """Every V is 0.2 or 0.7, so that who knows V reaches the ceiling among the chosen prompts, too.
  Chosen by the rewards that are compared, prompts with few answers have correlations below 0."""
  rng = np.random.default_rng(n)
  v = rng.choice([0.2, 0.7], 20_000)
  rewards = (rng.random((len(v), n)) < v[:, None]).astype(np.float32)
  values = Values(rewards, np.repeat(v[:, None], n, 1).astype(np.float32), [""] * len(v))
  (group,) = (group for group in values.groups if group.informative)
  members, means = group.where, v[group.where]
  assert 0.3 < members.mean() < 0.95 and group.first == n // 2
  numbers = value.quality(values.predictions[:, n // 2 :], rewards[:, n // 2 :], members)
  removable = means.var() / (means.mean() * (1 - means.mean()))
  for metric in ("variance reduction", "its ceiling"):
    assert float(numbers[metric]) == pytest.approx(removable, abs=0.015)
  assert float(numbers["r, one reward"]) == pytest.approx(np.sqrt(removable), abs=0.015)
  assert float(numbers["r"]) == pytest.approx(float(numbers["ceiling"]), abs=0.015)


@pytest.mark.parametrize("n", [2, 3])
def test_few_answers_do_not_say_which_prompts_are_informative(n):
  rewards = np.eye(8, n, dtype=np.float32)
  assert not any(group.informative for group in Values(rewards, rewards, ["a"] * 8).groups)


def test_the_spread_of_the_values(planted):
  spread = {(row["domain"], row["informative"]): row for row in value.spreads(planted)}
  assert [name for name, half in spread if not half] == [None, "easy", "hard", "new"]
  chosen = informative(planted.rewards)
  for name, members in ((None, slice(0, P)), ("hard", slice(60, 100)), ("new", slice(100, P))):
    where = np.zeros(P, bool)
    where[members] = True
    for half in (False, True):
      counted, first = (where & chosen, N // 2) if half else (where, 0)
      rewards = planted.rewards[counted, first:].astype(np.float64)
      mean = rewards.mean(1)
      v = mean.var(ddof=1) - rewards.var(1, ddof=1).mean() / rewards.shape[1]
      row, inside = spread[name, half], (mean >= 0.2) & (mean <= 0.8)
      assert row["std of V(x)"]["mean"] == pytest.approx(np.sqrt(max(v, 0)), abs=1e-4)
      assert row["V in [0.2, 0.8]"] == pytest.approx(inside.mean())
      assert row["mean reward"] == pytest.approx(rewards.mean(), abs=1e-5)
      assert row["prompts"] == len(rewards)


def test_domains_are_told_apart_whatever_their_names(planted):
  """Also from the group of all prompts, and from its informative prompts."""
  names = ["all", "all prompts", "1 ≤ x, 0.02 ≤ V ≤ 0.98"]
  values = Values(planted.rewards, planted.predictions, [names[i % 3] for i in range(P)])
  rows = value.results(values, "poise")
  found = [row["prompts"] for row in rows if not row["informative"]]
  assert sorted(found) == sorted([100, 100, 34, 34, 33, 33, 33, 33])
  picture = value_table.figure(values, "poise", rows)
  assert all(picture.count(f">{name}<") for name in names) and picture.count(": ceiling<") == 4


def test_a_figure_of_many_domains_shows_some_and_says_so():
  rng = np.random.default_rng(3)
  rewards = (rng.random((120, 3)) < 0.5).astype(np.float32)
  values = Values(rewards, rewards, [f"domain{i % 40:02}" for i in range(120)])
  picture = value_table.figure(values, "poise", value.results(values, "poise"))
  assert "(12 of 40 domains)" in picture
  assert "domain11" in picture and "domain12" not in picture


def test_equal_rewards_say_nothing_about_predictions():
  rewards = np.full((12, 4), 0.3, np.float32)
  predictions = np.random.default_rng(0).random((12, 4)).astype(np.float32)
  row = value.results(Values(rewards, predictions, [""] * 12), "x")[0]
  unknown = {metric: row[metric] for metric in value.METRICS if metric != "MAE"}
  assert all(x == {"mean": None, "se": None} for x in unknown.values())
  assert row["MAE"]["mean"] == pytest.approx(np.abs(predictions - 0.3).mean(), abs=1e-5)


@pytest.mark.parametrize("verdicts", [{}, {"ok": 9}, {"ok": 1, "timed_out": 2, "crashed": 1}])
def test_answers_without_a_verdict_are_counted(planted, tmp_path, verdicts):
  values = dataclasses.replace(planted, verdicts=verdicts)
  text = value_table.report(values, "poise", ABOUT, tmp_path)
  warning = "3 of 1080 answers got no verdict (2 timed_out, 1 crashed) and count as wrong"
  assert (warning in text) == ("crashed" in verdicts) == ("no verdict" in text)
  assert json.loads((tmp_path / "results.json").read_text())["verdicts"] == verdicts


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
  rows, spread = value.results(planted, "poise"), value.spreads(planted)
  texts = value_table.tables(planted, "poise", rows, spread)
  counts = [int(line.split("|")[1]) for line in texts[2].splitlines()[2:]]
  assert sum(counts) == 100 and max(counts) <= 12


def test_the_files(planted, tmp_path):
  out = tmp_path / "new" / "out"
  text = value_table.report(planted, "poise", ABOUT, out)
  assert {path.name for path in out.iterdir()} == {"README.md", "results.json", "values.svg"}
  assert text == value_table.report(planted, "poise", ABOUT)
  readme = (out / "README.md").read_text()
  assert "first 4 answers" in text and "the other 5 answers alone" in text
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
  text = value_table.report(values, "rloo", ABOUT, tmp_path)
  assert "nan" not in text.lower() and "have no prediction" in text
  json.loads((tmp_path / "results.json").read_text())
  picture = (tmp_path / "values.svg").read_text()
  assert "Spread of the values" in picture and "r against" not in picture
