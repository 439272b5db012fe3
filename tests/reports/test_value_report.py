"""What report.html says about predicted values, against NumPy on planted answers."""

import json
import re

import jax
import numpy as np
import pytest
from test_run_report import page_of, write_run

from poise_jax.estimators import statistics
from poise_jax.reports import run_log, value


def rewrite(folder, name, change):
  path = folder / f"{name}.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  rows = [change(row) or row for row in rows]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return rows


def test_deciles_against_numpy():
  rng = np.random.default_rng(0)
  x = rng.permutation(np.linspace(0, 1, 1000))
  y = (rng.random(1000) < x).astype(float)
  bins = value.deciles(x, y)
  assert [b.count for b in bins] == [100] * 10
  order = np.argsort(x)
  for b, members in zip(bins, order.reshape(10, 100), strict=True):
    assert b.x == pytest.approx(x[members].mean()) and b.y == pytest.approx(y[members].mean())
    assert b.error == pytest.approx(y[members].std(ddof=1) / 10)


@pytest.mark.parametrize(
  "x,counts",
  [
    ([0.3] * 70, [70]),
    ([0] * 30 + [1] * 10, [30, 10]),
    ([0.5], [1]),
    (range(4), [4]),
    (range(12), [6, 6]),
    (range(30), [5] * 6),
  ],
)
def test_few_points_and_points_of_equal_predictions_share_bins(x, counts):
  bins = value.deciles(np.array(x, float), np.arange(len(x), dtype=float))
  assert [b.count for b in bins] == counts


def test_a_single_prompt_has_no_standard_error():
  x, y = np.array([0.1, 0.2, 0.3]), np.array([0.0, 1.0, 1.0])
  (one,) = value.deciles(x, y, np.array([4, 4, 4]))
  (three,) = value.deciles(x, y)
  assert one.error is None and three.error == pytest.approx(y.std(ddof=1) / np.sqrt(3))
  assert value.with_error(one.y, one.error) == "0.667"
  body = str(value.calibration(x, y, ("a", "b"), "answers", prompts=np.array([4, 4, 4])).body())
  assert "3 answers: a 0.200, b 0.667<" in body and "nan" not in body


def test_standard_errors_know_that_answers_share_a_prompt():
  """Against the spread of the mean over many draws of prompts with 4 answers of one value."""
  rng = np.random.default_rng(5)
  means, errors = [], []
  for _ in range(400):
    v = np.repeat(rng.choice([0.05, 0.95], 30), 4)
    (b,) = value.deciles(np.full(120, 0.5), (rng.random(120) < v) * 1.0, np.arange(120) // 4)
    means.append(b.y)
    errors.append(b.error)
  assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)
  assert np.mean(errors) > 1.5 * np.sqrt(0.25 / 120)  # if answers were independent


def test_r_stands_beside_its_ceiling(tmp_path):
  folder = write_run(tmp_path / "a")

  def measured(row):
    if row["step"]:
      row |= {"probe/pearson": 0.4 + row["step"] / 100, "probe/ceiling": 0.75}
      row |= {"baseline/pearson": 0.5, "baseline/ceiling": 0.8, "baseline/variance_reduction": 0.25}

  rewrite(folder, "metrics", measured)
  text, page = page_of(folder)
  assert "<b>0.66 of 0.75</b>" in text  # the mean of steps 21 to 30
  assert "<b>25%</b>" in text and "variance removed by the baseline" in page.text
  assert "last 10 steps r = 0.50, where a predictor that knows V(x) would reach 0.80" in page.text
  figures = {card.title: card for card in value.cards(run_log.read(folder))}
  assert figures["Probe: agreement with the sibling's reward"].labels == [
    "Pearson's r",
    value.PERFECT,
  ]
  removed = str(figures["Variance removed by the baseline"].figure.body())
  assert "step 30: 0.64" in removed and "step 30: 0.25" in removed
  assert "as GRPO" in figures["Variance removed by the baseline"].note


@pytest.mark.parametrize("prompts,low", [(8, 0.2), (6, 0.1), (12, 0.2)])
def test_the_ceiling_over_steps_is_no_lower_than_what_the_value_reaches(prompts, low):
  """Many small batches of prompts of known values: the mean of their ceilings is too low."""
  rng, shape = np.random.default_rng(2), (2000, prompts, 2)
  values = np.broadcast_to(rng.choice([low, 1 - low], shape[:2])[..., None], shape)
  rewards = (rng.random(shape) < values).astype(np.float32)
  counted = np.ones(shape[1:], bool)
  known = jax.vmap(lambda v, r: statistics.pearson(v, r, counted))(values, rewards)
  ceilings = jax.vmap(lambda r: statistics.noise_ceiling(r, counted[:, 0]))(rewards)
  pairs = [pair for pair in zip(known.tolist(), ceilings.tolist(), strict=True) if pair[1] >= 0]
  rows = [{"probe/pearson": r, "probe/ceiling": ceiling} for r, ceiling in pairs]
  rows += [{"probe/pearson": -1.0}, {"probe/ceiling": 0.0}] * 300  # steps with one of the two
  r, ceiling = map(float, value.r_of_ceiling(rows, "probe").split(" of "))
  roots = np.array(pairs)
  error = roots[:, 0].std() / np.sqrt(len(pairs)) + 0.005  # and rounding to two digits
  assert r == pytest.approx(roots[:, 0].mean(), abs=0.006)
  assert roots[:, 1].mean() < roots[:, 0].mean() - 2 * error
  assert r < ceiling + 2 * error and ceiling == pytest.approx(1 - 2 * low, abs=0.03)


def test_the_curve_of_a_ceiling_is_smoothed_as_a_square(tmp_path):
  folder = write_run(tmp_path / "a")

  def measured(row):
    if row["step"]:
      row |= {"probe/pearson": 0.2, "probe/ceiling": row["step"] % 2}

  rewrite(folder, "metrics", measured)
  cards = {card.title: card for card in value.cards(run_log.read(folder))}
  body = str(cards["Probe: agreement with the sibling's reward"].figure.body())
  assert f"step 10: {np.sqrt(0.4):.4g}" in body  # 2 of 5 steps


def test_older_runs_have_no_ceiling(tmp_path):
  folder = write_run(tmp_path / "a")

  def older(row):
    return {k: v for k, v in row.items() if not k.startswith("baseline/") and "ceiling" not in k}

  rewrite(folder, "metrics", older)
  text, page = page_of(folder)
  assert "<b>0.20</b>" in text and "knows V(x)" not in page.text
  assert "Variance removed by the baseline" in page.titles
  assert not [title for title in page.titles if "by difficulty" in title and "Predicted" in title]


def bars_of(card):
  """(label, width) of each bar; the second bar of a pair has no label."""
  body = str(card.figure.body())
  labels = re.findall(r'text-anchor="end">([^<]*)<', body)
  bars = [d.split("L") for d in re.findall(r'<path style="[^"]*" d="M([^"]*)Z"', body)]
  widths = [float(end.split()[0]) - float(start.split()[0]) for start, end, *_ in bars]
  return list(zip([x for label in labels for x in (label, "")], widths, strict=True))


@pytest.mark.parametrize("part,what", [("mean", "difficulty"), ("domain", "domain")])
def test_predicted_value_and_reward_by_group(tmp_path, part, what):
  folder = write_run(tmp_path / "a")

  def measured(row):
    for name in [name for name in row if name.startswith("baseline/mean/")]:
      del row[name]
    if row["step"]:
      row |= {f"reward/{part}/a": 0.8, f"baseline/{part}/a": 0.4}
      row |= {f"reward/{part}/b": 0.2} if row["step"] % 2 else {}  # rare
      # Steps without a reward do not count, nor do those before the last ten with both.
      row |= {f"baseline/{part}/b": 0.1 if row["step"] > 10 and row["step"] % 2 else 0.9}
      row |= {f"a copy of baseline/{part}/c": 0.5}

  rewrite(folder, "metrics", measured)
  cards = {card.title: card for card in value.cards(run_log.read(folder))}
  bars = bars_of(cards[f"Predicted value and reward by {what}"])
  assert [label for label, _ in bars] == ["a", "", "b", ""]
  widths = np.array([width for _, width in bars])
  np.testing.assert_allclose(widths / widths[0], [1, 0.5, 0.25, 0.125], atol=0.01)


def test_many_groups_are_counted(tmp_path):
  folder = write_run(tmp_path / "a")

  def measured(row):
    if row["step"]:
      row |= {f"{of}/domain/d{i:02}": 0.5 for i in range(15) for of in ("reward", "baseline")}

  rewrite(folder, "metrics", measured)
  cards = {card.title: card for card in value.cards(run_log.read(folder))}
  card = cards["Predicted value and reward by domain"]
  assert card.note == "3 more in metrics.jsonl" and len(bars_of(card)) == 24


def test_predicted_value_and_reward_by_length(tmp_path):
  folder = write_run(tmp_path / "a")

  def longer(row):
    right = row["reward"] == 1
    length = 12 if right else 4
    return {**row, "tokens": ["x"] * length, "entropies": [0.0] * length}

  rows = rewrite(folder, "samples", longer)
  wild = {**rows[-1], "extra": True, "tokens": ["x"] * 99, "entropies": [0.0] * 99}
  with (folder / "samples.jsonl").open("a") as file:
    file.write(json.dumps(wild) + "\n")
  text, page = page_of(folder)
  found = re.findall(r"<title>(\d+ answers of [^<]*)</title>", text)
  assert found == [
    "30 answers of 4.0 tokens: reward 0.000 ± 0.000",
    "30 answers of 12.0 tokens: reward 1.000 ± 0.000",
    "30 answers of 4.0 tokens: baseline 0.250 ± 0.000",
    "30 answers of 12.0 tokens: baseline 0.750 ± 0.000",
  ]


@pytest.mark.parametrize("kind", ["critic", ""])
def test_only_what_predicts_has_predicted_values(tmp_path, kind):
  folder = write_run(tmp_path / "a", kind=kind)

  def measured(row):
    if row["step"]:
      row |= {"baseline/variance_reduction": -0.2, "baseline/pearson": 0.3, "baseline/mean/x": 0.5}
      row["reward/mean/x"] = 0.5

  rewrite(folder, "metrics", measured)
  text, page = page_of(folder)
  predicts = [title for title in page.titles if title.startswith("Predicted value")]
  assert len(predicts) == (2 if kind else 0)
  assert "Variance removed by the baseline" in page.titles and "<b>−20%</b>" in text
