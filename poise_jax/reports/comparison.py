"""Runs side by side: a table, curves, answers before and after training, and their provenance.

Runs that differ only in their seed are averaged.
"""

import collections
import html as stdlib_html
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from poise_jax import files, provenance
from poise_jax.errors import UserError
from poise_jax.reports import comparison_tables, html, markdown, run_log, svg
from poise_jax.reports.comparison_tables import Groups, Table
from poise_jax.reports.html import Card
from poise_jax.reports.run_log import AXES, Run
from poise_jax.reports.svg import Figure, Line

PANELS = {  # metric -> title of its figure, after that of the held-out accuracy
  "reward/mean": "Mean reward",
  "policy/entropy": "Policy entropy (nats per token)",
  "rollout/length": "Response length (tokens)",
  "probe/pearson": "Probe: correlation with the sibling's reward",
  "probe/variance_reduction": "1 − Var(advantage) / Var(reward)",
}
COSTS = {"reward/mean": "Mean reward"}
PROBE_MEANING = (
  "MAE and Pearson's r between the predictions of a domain's probe and the rewards of the "
  "siblings. Such a reward is 0 or 1, one sample of the predicted value. Both are means over the "
  "last 10 steps with prompts of the domain."
)
CLIPPED_GAP = 0.2  # difference between fractions of clipped steps that calls for a warning
# Fields that an algorithm's preset sets, and those that change no result.
PRESET = ("algorithm", "estimator", "rollout.n", "train.loss.", "probe.", "critic.", "collect.")
PRESET += ("reference_", "rollout.feature_", "reward.kl_", "seed")
NO_RESULT = ("mesh.", "loggers", "log_samples", "checkpoint_", "profile_steps", "verifier.workers")
NO_RESULT += ("train.microbatch_size", "train.remat", "train.logprob_chunk", "rollout.slots")
LABEL_CHARACTERS = 60  # limit for the label of a curve
MEANING = (
  "Held-out accuracy is that of config.eval.best_by: {best_by}. ± is one standard error of the "
  "mean over seeds; a single seed has none. Differences are taken between runs of equal seeds, "
  "which share problems and start, so what a seed does to both "
  "cancels. Curves are means over seeds; bands are ± one standard error. A curve ends where its "
  "shortest run ends. Metrics other than held-out accuracy are moving means over 5 steps. "
  '"Clipped" is the fraction of optimizer steps whose gradient norm exceeded train.max_grad_norm. '
  "The variance removed, 1 − Var(reward − baseline) / Var(reward), and r of the baselines against "
  "rewards, beside the r of a predictor that knows V(x), are means over the second half of the "
  "steps; GRPO's baseline contains its own reward, so both numbers are too high for it. Seconds "
  "are medians."
)
RIGHT = 1 - 1e-6  # smallest reward of a right answer
MEANS = "Algorithms: mean ± standard error over seeds"
PAIRS = "Paired differences: mean ± standard error over seeds"


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """Groups runs by algorithm, in order of appearance; the runs of a group are sorted by seed.

  If an algorithm has several runs with one seed, labels name the fields in which they differ, as
  in "poise train.learning_rate=1e-05". If that is too long, labels name the folders.

  Raises:
    UserError: two runs have the same configuration and seed.
  """
  by_algorithm = collections.defaultdict(list)
  for run in runs:
    by_algorithm[run.algorithm].append(run)
  groups = collections.defaultdict(list)
  for algorithm, members in by_algorithm.items():
    fields = _differing_fields(members)
    for run in members:
      config = _flat(run.config)
      label = " ".join([algorithm, *(f"{field}={config.get(field)}" for field in fields)])
      if len(label) > LABEL_CHARACTERS:
        label = f"{algorithm} ({run.path.name})"
      groups[label].append(run)
  for members in groups.values():
    members.sort(key=lambda run: run.seed)
    for first, second in zip(members, members[1:], strict=False):
      if first.seed == second.seed:
        raise UserError(
          f"{first.path} and {second.path} have the same configuration and seed; name one of them"
        )
  return dict(groups)


def _differing_fields(runs: Sequence[Run]) -> list[str]:
  """The fields in which runs with the same seed differ.

  Fields that differ only between seeds, such as the folder of a warm start, do not count.
  """
  by_seed = collections.defaultdict(list)
  for run in runs:
    by_seed[run.seed].append(_flat(run.config))
  names = {name for configs in by_seed.values() for config in configs for name in config}
  return sorted(
    name
    for name in names
    if any(len({config.get(name) for config in configs}) > 1 for configs in by_seed.values())
  )


def _flat(config: dict[str, Any]) -> dict[str, str]:
  """The fields of a config as {"a.b": value in JSON}."""
  return {name: json.dumps(value).strip('"') for name, value in files.flat(config).items()}


def clipping_warning(groups: Groups) -> str:
  """A sentence if clipping acts on some groups much more than on others, else ""."""
  fractions = {label: comparison_tables.clipped(runs) for label, runs in groups.items()}
  fractions = {label: value for label, value in fractions.items() if value is not None}
  if not fractions or max(fractions.values()) - min(fractions.values()) < CLIPPED_GAP:
    return ""
  shares = ", ".join(f"{label} {value:.0%}" for label, value in fractions.items())
  return (
    f"Warning: gradient clipping acts on some of these runs more than on others (optimizer steps "
    f"clipped: {shares}). A clipped step has the length that train.max_grad_norm allows, whatever "
    "its advantages are, so a part of the differences may be due to clipping. Tune "
    "train.max_grad_norm and the learning rate for each algorithm, or set train.max_grad_norm=0."
  )


def settings_warning(groups: Groups) -> str:
  """A sentence if runs of different algorithms differ in more than the algorithm, else "".

  A setting in the label of a group is one that is compared on purpose.
  """
  runs = [run for members in groups.values() for run in members]
  fields = [
    field
    for field in _differing_fields(runs)
    if not field.startswith((*PRESET, *NO_RESULT))
    and not any(f" {field}=" in label for label in groups)
  ]
  if not fields:
    return ""
  configs = [_flat(run.config) for run in runs]
  texts = (
    f"{field} ({', '.join(dict.fromkeys(str(config.get(field)) for config in configs))})"
    for field in fields[:8]
  )
  more = f" and {len(fields) - 8} more" if len(fields) > 8 else ""
  return (
    f"Warning: these runs differ in more than the algorithm: {', '.join(texts)}{more}. Differences "
    "between their results may be due to that."
  )


def mean_curve(label: str, runs: Sequence[Run], metric: str, axis: str) -> Line | None:
  """The mean of a metric over runs; None if it was never logged.

  Values are interpolated between the points of a run, since seeds differ in the tokens per step.

  Args:
    label: name of the curve.
    runs: runs of a group.
    metric: name in metrics.jsonl.
    axis: key of AXES.
  """
  series = [run.series(metric, axis) for run in runs]
  series = [(x, y) for x, y in series if len(x)]
  if not series:
    return None
  if not metric.startswith("eval/"):
    series = [(x, run_log.smooth(y)) for x, y in series]
  start, end = max(x[0] for x, _ in series), min(x[-1] for x, _ in series)
  points = np.unique(np.concatenate([x for x, _ in series]))
  points = points[(start <= points) & (points <= end)]
  if not len(points):
    return None
  values = np.array([np.interp(points, x, y) for x, y in series])
  spread = comparison_tables.standard_error(values) if len(values) > 1 else None
  return Line(label, points, values.mean(0), spread)


def panels(
  groups: Groups, axes: Sequence[str], metrics: Mapping[str, str]
) -> Iterator[tuple[str, Figure]]:
  """(title, figure) of every logged metric against every axis.

  Args:
    groups: runs of each curve.
    axes: keys of AXES.
    metrics: metric -> title, to which the axis is added if there are several.
  """
  for axis in axes:
    for metric, title in metrics.items():
      lines = [mean_curve(label, runs, metric, axis) for label, runs in groups.items()]
      if any(lines):
        own = f"{title} by {AXES[axis]}" if len(axes) > 1 else title
        yield own, svg.curves(lines, AXES[axis])


def panels_of(groups: Groups, best_by: str) -> dict[str, Iterator[tuple[str, Figure]]]:
  """The figures against steps ("curves") and against what they cost ("costs")."""
  accuracy = {run_log.metric_of(best_by): f"Held-out accuracy ({best_by})"}
  return {
    "curves": panels(groups, ["steps"], accuracy | PANELS),
    "costs": panels(groups, ["rollouts", "tokens", "minutes"], accuracy | COSTS),
  }


def tables(groups: Groups) -> dict[str, Table]:
  """The tables of a comparison by their headings; none that is empty."""
  found = {
    MEANS: comparison_tables.means(groups),
    PAIRS: comparison_tables.pairs(groups),
    "Runs": comparison_tables.results(groups),
    "Cost of each run": comparison_tables.costs(groups),
  }
  return {heading: table for heading, table in found.items() if table[1]}


def as_text(shown: Mapping[str, Table]) -> str:
  """Tables in Markdown under their headings."""
  return "\n\n".join(f"## {name}\n\n{markdown.table(*table)}" for name, table in shown.items())


def samples(run: Run, count: int) -> tuple[list[str], list[list[str]]] | None:
  """Answers to the same held-out problems before and after training; None without any.

  Args:
    run: a run.
    count: problems, evenly spaced so that they are from every domain.

  Returns:
    The header and the rows of a table.
  """
  folder = run.path / "answers"
  steps = sorted(int(path.stem.partition("_")[2]) for path in folder.glob("step_*.jsonl"))
  if not steps or not count:
    return None
  ends = steps[0], steps[-1]
  before, after = (
    [json.loads(line) for line in (folder / f"step_{step}.jsonl").read_text().splitlines()]
    for step in ends
  )
  pairs = list(zip(before, after, strict=True))
  count = min(count, len(pairs))
  lines = []
  for pair in (pairs[i * len(pairs) // count] for i in range(count)):
    problem = [str(pair[0]["question"]), str(pair[0]["answer"])]
    lines.append([*problem, *map(_response, pair)])
  return ["problem", "answer", *(f"step {step}" for step in ends)], lines


def _response(row: dict[str, Any]) -> str:
  mark = "✓" if row["reward"] >= RIGHT else "✗"
  return f"{json.dumps(row['response'], ensure_ascii=False)[1:-1]} {mark}"


def _as_code(lines: Sequence[Sequence[str]]) -> list[list[str]]:
  """Rows of `samples` for Markdown: problems escaped, responses as code in front of their mark."""
  problems = [[stdlib_html.escape(cell, quote=False) for cell in line[:2]] for line in lines]
  responses = [[f"`{cell[:-2]}`{cell[-2:]}" for cell in line[2:]] for line in lines]
  return [[*a, *b] for a, b in zip(problems, responses, strict=True)]


def rounded(row: dict[str, float]) -> dict[str, float]:
  """Rounds floats to five significant digits, so that committed files stay small."""
  return {k: v if isinstance(v, int) else float(f"{v:.5g}") for k, v in row.items()}


def report(paths: Sequence[pathlib.Path], out: pathlib.Path, problems: int = 0) -> str:
  """Writes README.md, report.html, curves.svg, costs.svg and the metrics of every run.

  Args:
    paths: workdirs.
    out: output folder, created if it does not exist.
    problems: held-out problems per run whose answers are shown, before and after training.

  Returns:
    The tables in Markdown, and the warnings of `settings_warning` and `clipping_warning`.

  Raises:
    UserError: a path holds no run or one without an evaluation, or two runs have the same
      configuration and seed.
  """
  all_runs = [run_log.read(path) for path in paths]
  choices = {run.best_by: run for run in all_runs}
  if len(choices) > 1:
    texts = ", ".join(f"{run.path} {name}" for name, run in choices.items())
    raise UserError(f"runs that differ in eval.best_by have no accuracy in common: {texts}")
  for run in all_runs:
    if not any(run_log.metric_of(run.best_by) in row for row in run.rows):
      raise UserError(f"{run.path} has not been evaluated yet; wait for its evaluation at step 0")
  groups = grouped(all_runs)
  out.mkdir(parents=True, exist_ok=True)
  runs = {f"{label}-{run.seed}": run for label, members in groups.items() for run in members}
  for name, run in runs.items():
    lines = [json.dumps(rounded(row)) + "\n" for row in run.rows]
    (out / f"{name.replace('/', '_')}.metrics.jsonl").write_text("".join(lines))
  best_by = all_runs[0].best_by
  figures = {name: list(drawn) for name, drawn in panels_of(groups, best_by).items()}
  for name, drawn in figures.items():
    (out / f"{name}.svg").write_text(svg.picture(drawn, list(groups), columns=2))
  answers = {name: samples(run, problems) for name, run in runs.items()}
  answers = {f"Held-out answers, {name}": table for name, table in answers.items() if table}
  starts = [start for run in all_runs for start in run.starts]
  shown = tables(groups)
  text = as_text(shown)
  meaning = MEANING.format(best_by=best_by)
  warning = " ".join(filter(None, (settings_warning(groups), clipping_warning(groups))))
  probes = comparison_tables.probes(runs)
  files.write_whole(
    out / "README.md", _readme(out.name, text, meaning, warning, probes, answers, starts)
  )
  page = _page(out.name, groups, shown, f"{meaning} {warning}".strip(), figures, answers, starts)
  files.write_whole(out / "report.html", html.render(page))
  return f"{text}\n\n{warning}" if warning else text


def _readme(title, tables, meaning, warning, probes, answers, starts) -> str:
  sections = [f"# {title}", tables, meaning, *([warning] if warning else [])]
  sections += ["![curves](curves.svg)", "![costs](costs.svg)"]
  sections.append(provenance.describe(starts))
  if probes[1]:
    sections.append(f"## Probes\n\n{markdown.table(*probes)}\n\n{PROBE_MEANING}")
  for heading, (header, lines) in answers.items():
    sections.append(f"## {heading}\n\n{markdown.table(header, _as_code(lines))}")
  return "\n\n".join(sections) + "\n"


def _page(
  title: str,
  groups: Groups,
  tables: Mapping[str, Table],
  meaning: str,
  figures: Mapping[str, Sequence[tuple[str, Figure]]],
  answers: Mapping[str, Table],
  starts: Sequence[provenance.Start],
) -> html.Page:
  """The same content as a page, with figures that adapt to its width and to dark screens."""
  cards = {
    name: [Card(panel, figure) for panel, figure in drawn] for name, drawn in figures.items()
  }
  seeds = sum(map(len, groups.values()))
  commands, origin = provenance.origin(starts)
  return html.Page(
    title=f"{title}: comparison",
    heading=title,
    about=f"{seeds} runs in {len(groups)} groups. {meaning}",
    legend=list(groups),
    figures={"By step": cards["curves"], "By cost": cards["costs"]},
    tables={
      name: html.Table(header, lines, range(1, len(header)))
      for name, (header, lines) in tables.items()
    },
    problems={heading: html.Table(*table) for heading, table in answers.items()},
    commands=commands,
    origin=origin,
  )
