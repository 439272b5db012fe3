"""An evaluation as people read it: table, plot, protocol, and how it differs from another one.

A folder of experiments.evaluate holds protocol.json, provenance.jsonl and answers.jsonl; what is
written here is made of these alone.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np

from poise_jax.errors import UserError
from poise_jax.evaluation.answer import by_group, in_order, per_prompt, standard_error
from poise_jax.files import differences
from poise_jax.provenance import describe

SHOWN = ("name", "template", "chat", "system", "max_prompt_length")  # of a task in README.md
PROTOCOL, ANSWERS, STARTS = "protocol.json", "answers.jsonl", "provenance.jsonl"


@dataclasses.dataclass
class Evaluation:
  """What a finished evaluation left in its folder."""

  path: pathlib.Path
  protocol: dict[str, Any]
  rows: list[dict[str, Any]]  # see evaluate.answer
  starts: list[dict[str, Any]]  # see provenance


def read(path: pathlib.Path) -> Evaluation:
  """Reads an evaluation's folder.

  Raises:
    UserError: it holds none, or one that is not finished, or a file in it is broken.
  """
  if not (path / PROTOCOL).is_file():
    raise UserError(f"{path} holds no evaluation: it has no {PROTOCOL}")
  protocol = _json(path / PROTOCOL, "", (path / PROTOCOL).read_text())
  rows, starts = (_lines(path / name) for name in (ANSWERS, STARTS))
  expected = sum(t["prompts"] for t in protocol["tasks"].values()) * protocol["sampling"]["n"]
  if len(rows) != expected:
    raise UserError(
      f"{path} has {len(rows)} of its {expected} answers; the command that began it goes on"
    )
  return Evaluation(path, protocol, in_order(rows), starts)


def _lines(path):
  # splitlines() would also split at U+2028, which an answer may hold.
  lines = path.read_text().removesuffix("\n").split("\n") if path.exists() else []
  return [_json(path, f", line {i},", line) for i, line in enumerate(lines, 1)]


def _json(path, where, text):
  try:
    return json.loads(text)
  except ValueError as error:
    raise UserError(f"{path}{where} is not valid JSON ({error})") from error


def results(rows: Sequence[dict[str, Any]], ks: Sequence[int]) -> list[dict[str, Any]]:
  """Every group's numbers: {"group", "prompts", metric: {"mean", "se"}, ...}; "" are all prompts.

  Standard errors are bootstrap ones over prompts, None for a single prompt.
  """
  found = []
  for name, group in by_group(rows).items():
    values = per_prompt(group, ks)
    found.append({"group": name, "prompts": len(next(iter(values.values())))})
    for metric, value in values.items():
      error = standard_error(value)
      found[-1][metric] = {"mean": float(value.mean()), "se": None if math.isnan(error) else error}
  return found


def table(found: Sequence[dict[str, Any]]) -> str:
  """A line a group in Markdown; pass@1 and maj@1, which avg@n tells better, are left out."""
  metrics = [m for m in found[0] if m not in ("group", "prompts", "pass@1", "maj@1")]
  lines = [f"| problems | prompts | {' | '.join(metrics)} |", "|" + "---|" * (len(metrics) + 2)]
  for row in found:
    cells = [row["group"] or "all", str(row["prompts"])]
    for metric in metrics:
      value = row.get(metric, {"mean": 0.0, "se": None})  # a status that nobody here has
      cells.append(f"{value['mean']:.1f}" if metric == "tokens" else f"{value['mean']:.3f}")
      if "@" in metric and value["se"] is not None:
        cells[-1] += f" ± {value['se']:.3f}"
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def plot(found: Sequence[dict[str, Any]], path: pathlib.Path):
  """avg@n of every group and, with several k, pass@k and maj@k of the coarse ones; bars are
  standard errors."""
  matplotlib.use("Agg")
  from matplotlib import pyplot

  average = next(metric for metric in found[0] if metric.startswith("avg@"))
  ks = [int(m.removeprefix("pass@")) for m in found[0] if m.startswith("pass@")]
  height = max(3.6, 0.28 * len(found))
  figure, axes = pyplot.subplots(
    1, 1 + (len(ks) > 1), figsize=(5 + 5 * (len(ks) > 1), height), squeeze=False
  )

  def values(row, metrics):
    return [[row[m]["mean"] for m in metrics], [row[m]["se"] or 0.0 for m in metrics]]

  bars, axis = np.array([values(row, [average]) for row in found])[:, :, 0], axes[0, 0]
  names = [row["group"] or "all" for row in found]
  axis.barh(names, bars[:, 0], xerr=bars[:, 1], color="C0", alpha=0.7, capsize=3)
  axis.invert_yaxis()
  axis.set_xlabel(average)
  if len(ks) > 1:
    axis = axes[0, 1]
    coarse = [row for row in found if "/" not in row["group"]][:8]
    for i, row in enumerate(coarse):
      for kind, style in (("pass", "-"), ("maj", ":")):
        means, errors = values(row, [f"{kind}@{k}" for k in ks])
        label = row["group"] or "all"
        label = label if kind == "pass" else None
        axis.errorbar(ks, means, errors, color=f"C{i}", linestyle=style, capsize=3, label=label)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.set_xlabel("k")
    axis.set_title("pass@k (line) and maj@k (dotted)", fontsize=10)
    axis.legend(fontsize=8)
  for axis in axes.flat:
    axis.grid(alpha=0.3)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def against(ours: Evaluation, theirs: Evaluation, ks: Sequence[int]) -> str:
  """The differences of two evaluations' numbers in Markdown, with standard errors.

  With the same prompts in both the error is that of the prompts' differences; without, both
  evaluations' errors are added in quadrature.

  Raises:
    UserError: they have no number in common.
  """
  groups, others = by_group(ours.rows), by_group(theirs.rows)
  lines = [
    f"| problems | metric | here | {theirs.path.name} | difference | in standard errors |",
    "|---|---|---|---|---|---|",
  ]
  for name, group in groups.items():
    if name not in others:
      continue
    possible = [k for k in ks if k <= theirs.protocol["sampling"]["n"]]
    a, b = per_prompt(group, possible), per_prompt(others[name], possible)
    paired = _prompts(group) == _prompts(others[name])
    for metric in a:
      if "@" not in metric or metric not in b or metric in ("pass@1", "maj@1"):
        continue
      if name and not metric.startswith("avg@"):
        continue
      x, y = a[metric], b[metric]
      error = standard_error(x - y) if paired else math.hypot(standard_error(x), standard_error(y))
      difference = x.mean() - y.mean()
      ratio = f"{difference / error:+.2f}" if error > 0 else ""
      lines.append(
        f"| {name or 'all'} | {metric} | {x.mean():.3f} | {y.mean():.3f} | "
        f"{difference:+.3f} ± {error:.3f}{' (paired)' * paired} | {ratio} |"
      )
  if len(lines) == 2:
    raise UserError(f"{ours.path} and {theirs.path} have no number in common")
  changed = differences(theirs.protocol, ours.protocol)
  text = "; ".join(f"`{change}`" for change in changed) or "nothing: it is the same evaluation"
  return "\n".join([f"What differs from {theirs.path.name}: {text}.", "", *lines])


def _prompts(rows):
  return list(dict.fromkeys((row["task"], row["prompt"], row["question"]) for row in rows))


def protocol_text(protocol: dict[str, Any]) -> str:
  """How the answers were asked for, in Markdown."""
  checkpoint, lines = protocol["checkpoint"], []
  step = "" if checkpoint["step"] is None else f", step {checkpoint['step']}"
  lines.append(
    f"- checkpoint: `{checkpoint['source']}`{step} (CRC-32 of its weights "
    f"{checkpoint['crc32']}), {protocol['dtype']}"
  )
  sampling = ", ".join(f"{name} {value}" for name, value in protocol["sampling"].items())
  lines.append(f"- sampling: {sampling}; problems of seed {protocol['seed']}")
  for name, task in protocol["tasks"].items():
    fields, seen = {k: task["config"][k] for k in SHOWN}, task["trained_on"]
    left_out = "".join(f", {n} left out ({why})" for why, n in task["left_out"].items())
    lines.append(
      f"- {name}: {task['prompts']} prompts (CRC-32 {task['crc32']})"
      + f", **{seen} of them in the checkpoint's training set**" * bool(seen)
      + f"{left_out}; `{json.dumps(fields, ensure_ascii=False)}`"
    )
  return "\n".join(lines)


def report(path: pathlib.Path, ks: Sequence[int], other: Evaluation | None = None) -> str:
  """Writes results.json, README.md and scores.png of a finished evaluation; returns the table.

  Args:
    path: the evaluation's folder.
    ks: of pass@k and maj@k.
    other: an evaluation to compare with.

  Raises:
    UserError: see `read` and `against`.
  """
  ours = read(path)
  found = results(ours.rows, ks)
  shown = [table(found), *([against(ours, other, ks)] if other else [])]
  meaning = (
    "± is the bootstrap standard error over prompts; avg@n is the mean score of the n answers, "
    "pass@k and maj@k are unbiased (exact over all k of the n)."
  )
  sections = [f"# {path.name}", *shown, meaning, "![scores](scores.png)"]
  sections += [protocol_text(ours.protocol), describe(ours.starts)]
  plot(found, path / "scores.png")
  whole = {"protocol": ours.protocol, "provenance": ours.starts, "results": found}
  (path / "results.json").write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
  (path / "README.md").write_text("\n\n".join(sections) + "\n")
  return "\n\n".join(shown)
