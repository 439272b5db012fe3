"""Results of an evaluation: its table, figure and protocol, and its differences from another one.

A folder of experiments.evaluate contains protocol.json, provenance.jsonl and answers.jsonl. Every
other file in it is made from these three.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from poise_jax.errors import UserError
from poise_jax.evaluation.answer import by_group, in_order, per_prompt, standard_error
from poise_jax.files import differences
from poise_jax.provenance import describe
from poise_jax.reports import markdown, svg

TASK_FIELDS = ("name", "template", "chat", "system", "max_prompt_length")  # shown in README.md
PROTOCOL, ANSWERS, STARTS = "protocol.json", "answers.jsonl", "provenance.jsonl"
MEANING = (
  "± is the bootstrap standard error over prompts. avg@n is the mean score of the n answers; "
  "pass@k and maj@k are unbiased (exact over all subsets of k answers)."
)
CURVES = 8  # groups with curves of pass@k and maj@k

Row = dict[str, Any]


@dataclasses.dataclass
class Evaluation:
  """A finished evaluation as it was read from its folder."""

  path: pathlib.Path
  protocol: dict[str, Any]
  rows: list[Row]  # answers, see evaluation.answer
  starts: list[dict[str, Any]]  # one entry per start, see poise_jax.provenance


def read(path: pathlib.Path) -> Evaluation:
  """Reads the folder of an evaluation.

  Raises:
    UserError: the folder holds no evaluation or an unfinished one, or one of its files is invalid.
  """
  if not (path / PROTOCOL).is_file():
    raise UserError(f"{path} holds no evaluation: it has no {PROTOCOL}")
  protocol = _json(path / PROTOCOL, "", (path / PROTOCOL).read_text())
  rows, starts = (_lines(path / name) for name in (ANSWERS, STARTS))
  expected = sum(t["prompts"] for t in protocol["tasks"].values()) * protocol["sampling"]["n"]
  if len(rows) != expected:
    raise UserError(
      f"{path} has {len(rows)} of its {expected} answers; run the same command again to finish it"
    )
  return Evaluation(path, protocol, in_order(rows), starts)


def _lines(path: pathlib.Path) -> list[Row]:
  # splitlines() would also split at U+2028, which an answer may contain.
  lines = path.read_text().removesuffix("\n").split("\n") if path.exists() else []
  return [_json(path, f", line {i},", line) for i, line in enumerate(lines, 1)]


def _json(path: pathlib.Path, place: str, text: str) -> Any:
  try:
    return json.loads(text)
  except ValueError as error:
    raise UserError(f"{path}{place} is not valid JSON ({error})") from error


def results(rows: Sequence[Row], ks: Sequence[int]) -> list[dict[str, Any]]:
  """Means and standard errors of every group's metrics.

  Args:
    rows: answers, in order.
    ks: values of k for pass@k and maj@k.

  Returns:
    {"group", "prompts", metric: {"mean", "se"}, ...} of every group; the group "" has all prompts.
    Standard errors are bootstrap ones over prompts, and None for a single prompt.
  """
  summaries = []
  for name, group in by_group(rows).items():
    values = per_prompt(group, ks)
    summary = {"group": name, "prompts": len(next(iter(values.values())))}
    for metric, value in values.items():
      error = standard_error(value)
      summary[metric] = {"mean": float(value.mean()), "se": None if math.isnan(error) else error}
    summaries.append(summary)
  return summaries


def table(summaries: Sequence[dict[str, Any]]) -> str:
  """A Markdown table of `results`, without pass@1 and maj@1: avg@n is a better estimate of both."""
  metrics = [m for m in summaries[0] if m not in ("group", "prompts", "pass@1", "maj@1")]
  lines = []
  for summary in summaries:
    cells = [_name(summary), summary["prompts"]]
    for metric in metrics:
      value = summary.get(metric, {"mean": 0.0, "se": None})  # a status that does not occur here
      cell = f"{value['mean']:.1f}" if metric == "tokens" else f"{value['mean']:.3f}"
      has_error = "@" in metric and value["se"] is not None
      cells.append(f"{cell} ± {value['se']:.3f}" if has_error else cell)
    lines.append(cells)
  return markdown.table(["problems", "prompts", *metrics], lines)


def _name(summary: dict[str, Any]) -> str:
  return summary["group"] or "all"


def figure(summaries: Sequence[dict[str, Any]]) -> str:
  """An SVG with avg@n of every group as bars ± standard error.

  With several k, a second panel has curves of pass@k and maj@k for the coarse groups.
  """
  average = next(metric for metric in summaries[0] if metric.startswith("avg@"))
  ks = [int(m.removeprefix("pass@")) for m in summaries[0] if m.startswith("pass@")]
  coarse = [s for s in summaries if "/" not in s["group"]][:CURVES] if len(ks) > 1 else []
  panel = svg.bars(
    [_name(summary) for summary in summaries],
    [summary[average]["mean"] for summary in summaries],
    [summary[average]["se"] or 0.0 for summary in summaries],
    [svg.color_of(coarse.index(s)) if s in coarse else "var(--bar)" for s in summaries],
    average,
  )
  panels = [(f"{average} (bars: ± standard error)", panel)]
  if coarse:
    panels.append(("pass@k (solid) and maj@k (dotted)", _curves(coarse, ks)))
  return svg.picture(panels, [_name(summary) for summary in coarse], len(panels))


def _curves(summaries: Sequence[dict[str, Any]], ks: Sequence[int]) -> svg.Figure:
  """pass@k and maj@k against k (logarithmic), with standard errors."""
  x = [math.log2(k) for k in ks]
  curves = []  # place of the group, style of the line, means and standard errors
  for i, summary in enumerate(summaries):
    for kind, style in (("pass", ""), ("maj", "stroke-dasharray:2 3")):
      values = [summary[f"{kind}@{k}"] for k in ks]
      curves.append((i, style, [v["mean"] for v in values], [v["se"] or 0.0 for v in values]))
  low = min(m - e for _, _, means, errors in curves for m, e in zip(means, errors, strict=True))
  high = max(m + e for _, _, means, errors in curves for m, e in zip(means, errors, strict=True))
  panel = svg.Figure(
    "k", (x[0], x[-1]), (low, high), xticks=list(zip(x, map(str, ks), strict=True))
  )
  for i, style, means, errors in curves:
    panel.line(svg.color_of(i), x, means, style)
    for place, mean, error in zip(x, means, errors, strict=True):
      panel.line(svg.color_of(i), [place, place], [mean - error, mean + error], "stroke-width:1")
  return panel


def against(ours: Evaluation, theirs: Evaluation, ks: Sequence[int]) -> str:
  """The differences between the metrics of two evaluations in Markdown, with standard errors.

  If both have the same prompts, the error is that of the differences per prompt. Otherwise the two
  errors are added in quadrature.

  Raises:
    UserError: the evaluations have no metric in common.
  """
  groups, others = by_group(ours.rows), by_group(theirs.rows)
  ks = [k for k in ks if k <= theirs.protocol["sampling"]["n"]]
  lines = []
  for name, group in groups.items():
    if name in others:
      a, b = per_prompt(group, ks), per_prompt(others[name], ks)
      paired = _prompts(group) == _prompts(others[name])
      for metric in a:
        if metric in b and _is_compared(name, metric):
          lines.append([name or "all", metric, *_difference(a[metric], b[metric], paired)])
  if not lines:
    raise UserError(f"{ours.path} and {theirs.path} have no metric in common")
  other = theirs.path.name
  changes = [f"`{change}`" for change in differences(theirs.protocol, ours.protocol)]
  protocol = f"Protocol changes from {other}: {'; '.join(changes) or 'none'}."
  header = ["problems", "metric", "here", other, "difference", "in standard errors"]
  return f"{protocol}\n\n{markdown.table(header, lines)}"


def _is_compared(group: str, metric: str) -> bool:
  if "@" not in metric or metric in ("pass@1", "maj@1"):
    return False
  return not group or metric.startswith("avg@")


def _difference(x, y, paired: bool) -> list[str]:
  """Cells for metrics [P] of two evaluations."""
  error = standard_error(x - y) if paired else math.hypot(standard_error(x), standard_error(y))
  difference = x.mean() - y.mean()
  ratio = f"{difference / error:+.2f}" if error > 0 else ""
  note = " (paired)" if paired else ""
  return [f"{x.mean():.3f}", f"{y.mean():.3f}", f"{difference:+.3f} ± {error:.3f}{note}", ratio]


def _prompts(rows: Sequence[Row]) -> list[tuple]:
  return list(dict.fromkeys((row["task"], row["prompt"], row["question"]) for row in rows))


def protocol_text(protocol: dict[str, Any]) -> str:
  """The protocol as a Markdown list: checkpoint, sampling and tasks."""
  checkpoint, lines = protocol["checkpoint"], []
  step = "" if checkpoint["step"] is None else f", step {checkpoint['step']}"
  lines.append(
    f"- checkpoint: `{checkpoint['source']}`{step} (CRC-32 of its weights "
    f"{checkpoint['crc32']}), {protocol['dtype']}"
  )
  sampling = ", ".join(f"{name} {value}" for name, value in protocol["sampling"].items())
  lines.append(f"- sampling: {sampling}; seed of the problems {protocol['seed']}")
  for name, task in protocol["tasks"].items():
    fields = json.dumps({k: task["config"][k] for k in TASK_FIELDS}, ensure_ascii=False)
    trained_on = task["trained_on"]
    warning = f", **{trained_on} of them in the checkpoint's training set**" if trained_on else ""
    left_out = "".join(f", {n} left out ({why})" for why, n in task["left_out"].items())
    lines.append(
      f"- {name}: {task['prompts']} prompts (CRC-32 {task['crc32']}){warning}{left_out}; `{fields}`"
    )
  return "\n".join(lines)


def report(path: pathlib.Path, ks: Sequence[int], other: Evaluation | None = None) -> str:
  """Writes results.json, README.md and scores.svg of a finished evaluation; returns the table.

  Args:
    path: folder of the evaluation.
    ks: values of k for pass@k and maj@k.
    other: an evaluation to compare with.

  Raises:
    UserError: see `read` and `against`.
  """
  ours = read(path)
  summaries = results(ours.rows, ks)
  tables = [table(summaries), *([against(ours, other, ks)] if other else [])]
  sections = [f"# {path.name}", *tables, MEANING, "![scores](scores.svg)"]
  sections += [protocol_text(ours.protocol), describe(ours.starts)]
  (path / "scores.svg").write_text(figure(summaries))
  content = {"protocol": ours.protocol, "provenance": ours.starts, "results": summaries}
  (path / "results.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
  (path / "README.md").write_text("\n\n".join(sections) + "\n")
  return "\n\n".join(tables)
