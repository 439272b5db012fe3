"""Predicted against realised value: what a probe or critic knows, and the variance that it removes.

For reports of runs, and for evaluations (evaluation/value.py).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from poise_jax.reports import curves, svg
from poise_jax.reports.html import Card
from poise_jax.reports.run_log import Run

BINS = 10
PREDICTIONS = 500  # latest answers of samples.jsonl in a figure, about
LAST = 10  # latest steps in a mean
GROUPS = 12  # difficulties or domains in a figure
PREDICTORS = ("probe/active", "critic/explained_variance", "tracker/value")  # logged by each kind
PERFECT = "of a predictor that knows V(x)"
CURVES = {  # title -> metrics of the figure with their labels
  "Probe: agreement with the sibling's reward": {
    "probe/pearson": "Pearson's r",
    "probe/ceiling": PERFECT,
  },
  "Probe: mean absolute error": {"probe/mae": ""},
  "Critic: explained variance": {"critic/explained_variance": ""},
  "Tracker: mean value": {"tracker/value": ""},
}


@dataclasses.dataclass(frozen=True)
class Bin:
  """Points of similar x: how many, their mean x and y, and the standard error of the latter."""

  count: int
  x: float
  y: float
  error: float


def deciles(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], bins: int = BINS) -> list[Bin]:
  """Means of x and y in bins of equally many points by x, as far as values of x differ.

  Args:
    x: finite; points of equal x share a bin.
    y: finite.
    bins: number of bins; fewer are returned if x has few values.
  """
  edges = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)))
  bin_of = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(0, len(edges) - 2))
  result = []
  for i in np.unique(bin_of):
    members = y[bin_of == i]
    error = members.std() / np.sqrt(len(members))
    result.append(Bin(len(members), x[bin_of == i].mean(), members.mean(), error))
  return result


def calibration(
  predicted: Float[np.ndarray, " N"],
  realised: Float[np.ndarray, " N"],
  names: tuple[str, str],
  points: str,
  xlabel: str = "",
) -> svg.Figure:
  """Points and their means by decile with bars ± standard error; on the diagonal, predictions are
  right on average.

  Args:
    predicted: finite, at least one.
    realised: finite.
    names: what x and y are.
    points: what a point is, in the plural.
    xlabel: label of the x axis; empty: the name of x.
  """
  ends = min(0.0, predicted.min()), max(1.0, predicted.max())
  ylim = min(ends[0], realised.min()), max(ends[1], realised.max())
  figure = svg.Figure(xlabel or names[0], ends, ylim, names[1])
  figure.line("var(--ink)", ends, ends, "stroke-width:1;stroke-dasharray:4 4")
  figure.dots(svg.color_of(0), predicted, realised, 2.2, opacity=0.3)
  bins = deciles(predicted, realised)
  for b in bins:
    figure.line(svg.color_of(1), [b.x] * 2, [b.y - b.error, b.y + b.error])
  x, y = [b.x for b in bins], [b.y for b in bins]
  figure.line(svg.color_of(1), x, y)
  titles = [
    f"{b.count} {points}: {names[0]} {b.x:.3f}, {names[1]} {b.y:.3f} ± {b.error:.3f}" for b in bins
  ]
  figure.dots(svg.color_of(1), x, y, 3.2, titles)
  return figure


def tiles(run: Run) -> dict[str, str]:
  """The most important numbers about predictions, means over the latest steps."""
  found = {}
  r, ceiling = _latest(run, "probe/pearson"), _latest(run, "probe/ceiling")
  if r is not None:
    found["r of the probe against rewards"] = _of(r, ceiling)
  if (removed := _latest(run, "baseline/variance_reduction")) is not None:
    found["variance removed by the baseline"] = f"{removed:.0%}".replace("-", "−")
  return found


def _of(r: float, ceiling: float | None) -> str:
  return f"{r:.2f}" if ceiling is None else f"{r:.2f} of {ceiling:.2f}"


def _latest(run: Run, metric: str) -> float | None:
  """Mean of a metric over the latest steps; None if it was never logged."""
  _, y = run.series(metric)
  return float(y[-LAST:].mean()) if len(y) else None


def cards(run: Run) -> Iterator[Card]:
  """Every figure about predictions for which the run has numbers."""
  rows = _answers(run)
  yield from _calibration(run, rows)
  for title, metrics in CURVES.items():
    lines = [line for name, label in metrics.items() if (line := curves.line(run, name, label))]
    if lines:
      yield curves.card(title, lines)
  yield from _variance_removed(run)
  if any(len(run.series(name)[0]) for name in PREDICTORS):
    yield from _by_group(run, "difficulty", "mean")
    yield from _by_group(run, "domain", "domain")
    yield from _by_length(rows)


def _answers(run: Run) -> list[dict[str, Any]]:
  """The latest rows of samples.jsonl that were not chosen by how they look."""

  def latest(steps):
    rows_per_step = max(1, run.config["log_samples"] * run.config["rollout"]["n"])
    return steps[-max(1, PREDICTIONS // rows_per_step) :]

  rows = [row for row in run.samples(latest) if not row.get("extra")]
  return [row for row in rows if np.isfinite([row["baseline"], row["reward"]]).all()]


def _source(rows: Sequence[dict[str, Any]]) -> str:
  steps = dict.fromkeys(f"{row['step']}" for row in (rows[0], rows[-1]))
  return f"{len(rows)} answers in samples.jsonl, steps {' to '.join(steps)}; bars: ± standard error"


def _calibration(run: Run, rows: Sequence[dict[str, Any]]) -> Iterator[Card]:
  """Baselines against the rewards of their answers; on the diagonal they are right on average."""
  if not rows:
    return
  baseline, reward = (np.array([row[name] for row in rows]) for name in ("baseline", "reward"))
  names = "baseline", "reward"
  figure = calibration(baseline, reward, names, "answers", "baseline (predicted reward)")
  note = _source(rows)
  r, ceiling = _latest(run, "baseline/pearson"), _latest(run, "baseline/ceiling")
  if r is not None:
    note += f"; over all answers of the last {LAST} steps r = {r:.2f}"
  if r is not None and ceiling is not None:
    note += f", where a predictor that knows V(x) would reach {ceiling:.2f}"
  labels = ["one answer", "mean of answers with similar baselines, by decile"]
  yield Card("Calibration of the baseline", figure, labels, note)


def _variance_removed(run: Run) -> Iterator[Card]:
  """The share of the reward's variance that the baseline removes, and the most that it could."""
  x, y = run.series("baseline/variance_reduction")
  if not len(x):
    x, y = run.series("probe/variance_reduction")  # all that older versions logged
  if not len(x):
    return
  lines = [curves.smoothed("1 − Var(reward − baseline) / Var(reward)", x, y)]
  places, ceiling = run.series("baseline/ceiling")
  if len(places):
    lines.append(curves.smoothed(PERFECT, places, ceiling**2))
  note = "only a baseline that contains its own reward, as GRPO's does, can remove more"
  yield curves.card("Variance removed by the baseline", lines, note if len(lines) > 1 else "")


def _by_group(run: Run, what: str, part: str) -> Iterator[Card]:
  """Mean reward and baseline of each difficulty or domain, over the latest steps."""
  prefix = f"baseline/{part}/"
  names = sorted({name.removeprefix(prefix) for row in run.rows for name in row if prefix in name})
  labels, values, colors = [], [], []
  for name in names[:GROUPS]:
    for i, (of, label) in enumerate((("reward", name), ("baseline", ""))):
      mean = _latest(run, f"{of}/{part}/{name}")
      if mean is not None:
        labels.append(label)
        values.append(mean)
        colors.append(svg.color_of(i))
  if not values:
    return
  figure = svg.bars(labels, values, [0.0] * len(values), colors, f"mean of the last {LAST} steps")
  left_out = len(names) - GROUPS
  note = f"{left_out} more in metrics.jsonl" if left_out > 0 else ""
  title = f"Predicted value and reward by {what}"
  yield Card(title, figure, ["reward", "baseline (predicted reward)"], note)


def _by_length(rows: Sequence[dict[str, Any]]) -> Iterator[Card]:
  """Mean reward and baseline of answers of similar length."""
  rows = [row for row in rows if "tokens" in row]  # older versions did not log them
  if not rows:
    return
  lengths = np.array([len(row["tokens"]) for row in rows], np.float64)
  parts = {
    name: deciles(lengths, np.array([row[name] for row in rows])) for name in ("reward", "baseline")
  }
  ends = [(b.y - b.error, b.y + b.error) for bins in parts.values() for b in bins]
  low, high = min(0.0, *(e[0] for e in ends)), max(1.0, *(e[1] for e in ends))
  figure = svg.Figure("response length (tokens)", (lengths.min(), lengths.max()), (low, high))
  for i, (name, bins) in enumerate(parts.items()):
    color = svg.color_of(i)
    x, y = [b.x for b in bins], [b.y for b in bins]
    for b in bins:
      figure.line(color, [b.x] * 2, [b.y - b.error, b.y + b.error])
    figure.line(color, x, y)
    titles = [
      f"{b.count} answers of {b.x:.1f} tokens: {name} {b.y:.3f} ± {b.error:.3f}" for b in bins
    ]
    figure.dots(color, x, y, 3.2, titles)
  labels = ["reward", "baseline (predicted reward)"]
  yield Card("Predicted value and reward by response length", figure, labels, _source(rows))
