"""The evaluation of predicted values as tables, a figure and a folder; value.py has the numbers."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from poise_jax.evaluation.value import (
  CERTAIN,
  HIGH,
  HOPELESS,
  LOW,
  METRICS,
  MIDDLE,
  SPREAD,
  Values,
  independent,
  results,
  spreads,
)
from poise_jax.provenance import describe
from poise_jax.reports import markdown, svg, value
from poise_jax.verifiers.base import FAILURES

FIGURE = "values.svg"  # by which the folder of an evaluation is known
MEANING = """The value V(x) of a prompt is its expected reward. It is predicted from each of the
prompt's answers in turn and compared with avg@k, the mean reward of its k other answers, and for
"one reward" with one of them. ± is the bootstrap standard error over prompts. A *ceiling* is the r
of a predictor that knows V(x), sqrt(Var V / (Var V + noise)). Var V is the covariance of different
answers to a prompt, which is free of their noise; its root is the std of V(x). The MAE contains the
noise of avg@k: a predictor that knows V(x) does not reach 0. "V in [{low}, {high}]" takes a
prompt's mean reward for its value."""
INFORMATIVE = """Rows "{hopeless} ≤ V ≤ {certain}" have the prompts whose first {half} answers have
a mean reward in that range, and compare the other {other} answers alone, of which the choice knows
nothing."""


def _meaning(values: Values) -> str:
  """What the tables say, as one paragraph."""
  n = values.rewards.shape[1]
  text = MEANING.format(low=LOW, high=HIGH)
  if any(group.informative for group in values.groups):
    half = n // 2
    text += "\n" + INFORMATIVE.format(hopeless=HOPELESS, certain=CERTAIN, half=half, other=n - half)
  return " ".join(text.split())


def tables(
  values: Values,
  predictor: str,
  rows: Sequence[Mapping[str, Any]],
  spread: Sequence[Mapping[str, Any]],
) -> list[str]:
  """The tables in Markdown: spread, quality of predictions, and calibration by decile.

  Args:
    values: of the prompts.
    predictor: name of the estimator that made the predictions.
    rows: their `results`.
    spread: their `spreads`.
  """
  columns = ("group", "prompts", "mean reward", SPREAD, MIDDLE)
  texts = [_table(columns, spread)]
  texts.append(_table(("group", "predictor", "prompts", "k", *METRICS), rows))
  predicted, realised = independent(values)
  if len(predicted):
    lines = [
      [b.count, f"{b.x:.3f}", value.with_error(b.y, b.error)]
      for b in value.deciles(predicted, realised)
    ]
    k = values.rewards.shape[1] - 1
    header = ("prompts, by decile of the prediction", f"predicted by {predictor}", f"avg@{k}")
    texts.append(markdown.table(header, lines))
  if missing := int((~values.predicted).sum()):
    texts.append(
      f"{missing} of {len(values.rewards)} prompts have no prediction: at this step {predictor} "
      "has no fitted probe and no critic for them."
    )
  failures = {status: values.verdicts.get(status, 0) for status in FAILURES}
  if total := sum(failures.values()):
    by_status = ", ".join(f"{n} {status}" for status, n in failures.items() if n)
    texts.append(
      f"Warning: {total} of {values.rewards.size} answers got no verdict ({by_status}) and count "
      "as wrong."
    )
  return texts


def _table(columns, rows):
  return markdown.table(columns, [[_cell(row[column]) for column in columns] for row in rows])


def _cell(x: Any) -> str:
  """A number, with its standard error if it has one; "" if it could not be estimated."""
  if isinstance(x, Mapping):
    return "" if x["mean"] is None else value.with_error(x["mean"], x["se"])
  return f"{x:.3f}" if isinstance(x, float) else str(x)


def figure(values: Values, predictor: str, rows: Sequence[Mapping[str, Any]]) -> str:
  """An SVG: the spread of the values, predicted against realised value, and r by domain.

  Args: see `tables`.
  """
  n = values.rewards.shape[1]
  places = np.linspace(0, 1, min(n + 1, 11))  # right answers of n, or tenths
  groups = [group for group in values.groups if not group.informative]
  groups = groups[1:] or groups
  shown = groups[: value.GROUPS]
  more = f" ({len(shown)} of {len(groups)} domains)" if len(shown) < len(groups) else ""
  lines = []
  for group in shown:
    mean = np.clip(values.rewards[group.where].mean(1), 0.0, 1.0)
    nearest = np.round(mean * (len(places) - 1)).astype(int)
    shares = np.bincount(nearest, minlength=len(places)) / len(mean)
    lines.append(svg.Line(group.name, places, shares))
  spread = svg.curves(lines, f"mean of {n} rewards, an estimate of V(x)")
  panels = [(f"Spread of the values: share of the prompts{more}", spread)]
  predicted, realised = independent(values)
  if len(predicted):
    names = "predicted value", f"avg@{n - 1}"
    calibration = value.calibration(predicted, realised, names, "prompts")
    panels.append((f"{predictor}: a dot a prompt, deciles ± standard error", calibration))
    domains = [None, *(group.domain for group in shown if group.domain is not None)]
    if bars := _bars(predictor, rows, domains):
      panels.append((f"r against avg@{n - 1}{more}", bars))
  return svg.picture(panels, [group.name for group in shown], len(panels))


def _bars(predictor, rows, domains) -> svg.Figure | None:
  """r and its ceiling for the predictions of some domains."""
  bars = [
    (label, row[metric], color)
    for row in rows
    if row["predictor"] == predictor and row["domain"] in domains and not row["informative"]
    for label, metric, color in (
      (row["group"], "r", svg.color_of(0)),
      (f"{row['group']}: ceiling", "ceiling", "var(--bar)"),
    )
    if row[metric]["mean"] is not None
  ]
  if not bars:
    return None
  labels, numbers, colors = zip(*bars, strict=True)
  means, errors = ([x[key] or 0.0 for x in numbers] for key in ("mean", "se"))
  return svg.bars(labels, means, errors, colors, "Pearson's r")


def report(
  values: Values, predictor: str, about: Mapping[str, Any], out: pathlib.Path | None = None
) -> str:
  """The tables and what they mean; with `out`, README.md, results.json and FIGURE in that folder.

  Args:
    values: of the prompts.
    predictor: name of the estimator that made the predictions.
    about: "run", "step", "samples" and "provenance", for the files.
    out: created if it does not exist.
  """
  rows, spread = results(values, predictor), spreads(values)
  text = "\n\n".join([*tables(values, predictor, rows, spread), _meaning(values)])
  if out:
    out.mkdir(parents=True, exist_ok=True)
    (out / FIGURE).write_text(figure(values, predictor, rows))
    content = {**about, "verdicts": dict(values.verdicts), "spread": spread, "results": rows}
    (out / "results.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    title = f"# Values of prompts: {about['run']}, step {about['step']}"
    sections = [title, text, f"![values]({FIGURE})", describe([about["provenance"]])]
    (out / "README.md").write_text("\n\n".join(sections) + "\n")
  return text
