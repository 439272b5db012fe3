"""Predicted against realised value: what a probe or critic knows, and the variance that it removes.

For reports of runs, and for evaluations (evaluation/value_table.py).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from poise_jax.reports import curves, svg
from poise_jax.reports.html import Card
from poise_jax.reports.run_log import Run

BINS = 10
PER_BIN = 5  # points in a bin, at least on average
PREDICTIONS = 500  # latest answers of samples.jsonl in a figure, about
LAST = 10  # latest steps in a mean
GROUPS = 12  # difficulties or domains in a figure
PREDICTORS = ("probe/active", "critic/explained_variance", "tracker/value")  # logged by each kind
PERFECT = "of a predictor that knows V(x)"
CURVES = {  # title -> metrics of the figure with their labels
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
  error: float | None  # None: of a single prompt, nothing is known about it


def deciles(
  x: Float[np.ndarray, " N"],
  y: Float[np.ndarray, " N"],
  prompts: Int[np.ndarray, " N"] | None = None,
) -> list[Bin]:
  """Means of x and y in bins of equally many points by x, as far as values of x differ.

  There are BINS bins, fewer if there are few points or values of x. Points of a prompt share its
  value, so the standard errors are those of a cluster sample (Cochran, "Sampling Techniques", 1977,
  section 9A.1): of sums over the prompts, with ddof=1.

  Args:
    x: finite; points of equal x share a bin.
    y: finite.
    prompts: number of the prompt that each point belongs to. None: each has its own.
  """
  prompts = np.arange(len(x)) if prompts is None else prompts
  bins = min(BINS, max(1, len(x) // PER_BIN))
  edges = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)))
  bin_of = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(0, len(edges) - 2))
  result = []
  for i in np.unique(bin_of):
    where = bin_of == i
    count, mean = int(where.sum()), float(y[where].mean())
    names, places = np.unique(prompts[where], return_inverse=True)
    error = None
    if (clusters := len(names)) > 1:
      sums = np.bincount(places, y[where] - mean)
      error = float(np.sqrt((sums**2).sum() * clusters / (clusters - 1)) / count)
    result.append(Bin(count, float(x[where].mean()), mean, error))
  return result


def with_error(mean: float, error: float | None) -> str:
  """A number with its standard error, if that is known."""
  return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


def calibration(
  predicted: Float[np.ndarray, " N"],
  realised: Float[np.ndarray, " N"],
  names: tuple[str, str],
  points: str,
  xlabel: str = "",
  prompts: Int[np.ndarray, " N"] | None = None,
) -> svg.Figure:
  """Points and their means by decile with bars ± standard error; on the diagonal, predictions are
  right on average.

  Args:
    predicted: finite, at least one.
    realised: finite.
    names: what x and y are.
    points: what a point is, in the plural.
    xlabel: label of the x axis; empty: the name of x.
    prompts: see `deciles`.
  """
  ends = min(0.0, predicted.min()), max(1.0, predicted.max())
  ylim = min(ends[0], realised.min()), max(ends[1], realised.max())
  figure = svg.Figure(xlabel or names[0], ends, ylim, names[1])
  figure.line("var(--ink)", ends, ends, "stroke-width:1;stroke-dasharray:4 4")
  figure.dots(svg.color_of(0), predicted, realised, 2.2, opacity=0.3)
  bins = deciles(predicted, realised, prompts)
  titles = [
    f"{b.count} {points}: {names[0]} {b.x:.3f}, {names[1]} {with_error(b.y, b.error)}" for b in bins
  ]
  _add_bins(figure, svg.color_of(1), bins, titles)
  return figure


def _add_bins(figure: svg.Figure, color: str, bins: Sequence[Bin], titles: Sequence[str]):
  """Adds the means of bins as a curve, with bars ± standard error."""
  for b in bins:
    if b.error is not None:
      figure.line(color, [b.x] * 2, [b.y - b.error, b.y + b.error])
  x, y = [b.x for b in bins], [b.y for b in bins]
  figure.line(color, x, y)
  figure.dots(color, x, y, 3.2, titles)


def tiles(run: Run) -> dict[str, str]:
  """The most important numbers about predictions, means over the latest steps."""
  found = {}
  if r := r_of_ceiling(run.rows, "probe", LAST):
    found["r of the probe against rewards"] = r
  if removed := _latest(run, "baseline/variance_reduction"):
    found["variance removed by the baseline"] = f"{removed[0]:.0%}".replace("-", "−")
  return found


def r_of_ceiling(rows: Sequence[dict[str, float]], part: str, last: int = 0) -> str:
  """Mean r over steps and its ceiling, as "0.62 of 0.71"; r alone without one; "" without r.

  Both are over the steps that logged both. The ceiling is the root of the mean square, since the
  root of a single step's estimate is too low on average.

  Args:
    rows: of metrics.jsonl.
    part: "probe" or "baseline".
    last: number of latest steps with both that count; 0: all.
  """
  names = f"{part}/pearson", f"{part}/ceiling"
  if len(both := common(rows, *names)[-last:]):
    return f"{both[:, 0].mean():.2f} of {np.sqrt((both[:, 1] ** 2).mean()):.2f}"
  r = common(rows, names[0])[-last:]
  return f"{r.mean():.2f}" if len(r) else ""


def common(rows: Sequence[dict[str, float]], *metrics: str) -> Float[np.ndarray, "steps metrics"]:
  """Metrics of the rows that have all of them."""
  found = [[row[name] for name in metrics] for row in rows if all(m in row for m in metrics)]
  return np.array(found, np.float64).reshape(-1, len(metrics))


def _latest(run: Run, *metrics: str) -> list[float]:
  """Means of metrics over the latest steps that logged all of them; [] if there are none."""
  latest = common(run.rows, *metrics)[-LAST:]
  return latest.mean(0).tolist() if len(latest) else []


def cards(run: Run) -> Iterator[Card]:
  """Every figure about predictions for which the run has numbers."""
  rows = _answers(run)
  yield from _calibration(run, rows)
  if r := curves.line(run, "probe/pearson", "Pearson's r"):
    lines = [r, *_ceiling(run, "probe")]
    yield curves.card("Probe: agreement with the sibling's reward", lines)
  for title, metrics in CURVES.items():
    lines = [line for name, label in metrics.items() if (line := curves.line(run, name, label))]
    if lines:
      yield curves.card(title, lines)
  yield from _variance_removed(run)
  if any(len(run.series(name)[0]) for name in PREDICTORS):
    yield from _by_group(run, "difficulty", "mean")
    yield from _by_group(run, "domain", "domain")
    yield from _by_length(rows)


def _ceiling(run: Run, part: str, power: float = 0.5) -> list[svg.Line]:
  """The curve of a ceiling, smoothed as its square; power 1: of the square. [] if it is unknown."""
  x, y = run.series(f"{part}/ceiling")
  if not len(x):
    return []
  line = curves.smoothed(PERFECT, x, y**2)
  raw = None if line.raw is None else line.raw**power
  return [dataclasses.replace(line, y=line.y**power, raw=raw)]


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


def _prompts(rows: Sequence[dict[str, Any]]) -> Int[np.ndarray, " N"]:
  """The number of each answer's prompt, of which one step's answers share the value."""
  numbers = {}
  keys = [(row["step"], row["question"]) for row in rows]
  return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _calibration(run: Run, rows: Sequence[dict[str, Any]]) -> Iterator[Card]:
  """Baselines against the rewards of their answers; on the diagonal they are right on average."""
  if not rows:
    return
  baseline, reward = (np.array([row[name] for row in rows]) for name in ("baseline", "reward"))
  names = "baseline", "reward"
  figure = calibration(
    baseline, reward, names, "answers", "baseline (predicted reward)", _prompts(rows)
  )
  note = _source(rows)
  r, _, ceiling = r_of_ceiling(run.rows, "baseline", LAST).partition(" of ")
  if r:
    note += f"; over all answers of the last {LAST} steps r = {r}"
  if ceiling:
    note += f", where a predictor that knows V(x) would reach {ceiling}"
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
  lines += _ceiling(run, "baseline", power=1)
  note = (
    "a baseline that reads its own answer, as GRPO's and that of probe.own_rollout do, can remove "
    "more; any other only by chance"
  )
  yield curves.card("Variance removed by the baseline", lines, note if len(lines) > 1 else "")


def _by_group(run: Run, what: str, part: str) -> Iterator[Card]:
  """Mean reward and baseline of each difficulty or domain, over the latest steps."""
  prefix = f"baseline/{part}/"
  names = sorted(
    {name.removeprefix(prefix) for row in run.rows for name in row if name.startswith(prefix)}
  )
  labels, values, colors = [], [], []
  for name in names[:GROUPS]:
    if means := _latest(run, f"reward/{part}/{name}", f"baseline/{part}/{name}"):
      labels += [name, ""]
      values += means
      colors += [svg.color_of(0), svg.color_of(1)]
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
    name: deciles(lengths, np.array([row[name] for row in rows]), _prompts(rows))
    for name in ("reward", "baseline")
  }
  ends = [
    b.y + sign * (b.error or 0.0) for bins in parts.values() for b in bins for sign in (-1, 1)
  ]
  low, high = min(0.0, *ends), max(1.0, *ends)
  figure = svg.Figure("response length (tokens)", (lengths.min(), lengths.max()), (low, high))
  for i, (name, bins) in enumerate(parts.items()):
    titles = [
      f"{b.count} answers of {b.x:.1f} tokens: {name} {with_error(b.y, b.error)}" for b in bins
    ]
    _add_bins(figure, svg.color_of(i), bins, titles)
  labels = ["reward", "baseline (predicted reward)"]
  yield Card("Predicted value and reward by response length", figure, labels, _source(rows))
