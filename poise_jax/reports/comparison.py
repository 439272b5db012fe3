"""Runs side by side: a table, curves, answers before and after, and where it all comes from.

Runs that differ in their seed alone are averaged.
"""

import collections
import html
import json
import pathlib
from typing import Any

import numpy as np

from poise_jax import files, provenance
from poise_jax.errors import UserError
from poise_jax.evaluation.at_k import RIGHT
from poise_jax.reports import html as page
from poise_jax.reports import run_log as runs
from poise_jax.reports import svg as figures
from poise_jax.reports.run_log import Run
from poise_jax.reports.svg import Line

PANELS = {  # metric -> its title, in order
  "eval/accuracy": "Held-out accuracy (greedy)",
  "reward/mean": "Mean reward of the rollouts",
  "policy/entropy": "Entropy of the policy, nats a token",
  "rollout/length": "Tokens a response",
  "probe/pearson": "Probe's prediction against sibling's reward, r",
  "probe/variance_reduction": "1 − Var(advantage) / Var(reward)",
}
COSTS = {"eval/accuracy": "Held-out accuracy", "reward/mean": "Mean reward"}
HEAD = (
  *("algorithm", "seed", "steps", "rollouts", "tokens", "held-out before", "after", "gain"),
  *("reward, last 10 steps", "minutes", "a step: sampling + estimating + updating, s"),
)
QUALITY = ("mae", "pearson")  # of a probe
PROBE_HEAD = ("run", "domain", "MAE", "r", "held-out before", "after")
PROBE_MEANING = (
  "MAE and Pearson r of a domain's probe against its siblings' rewards: 0 or 1, one sample of "
  "the value that it predicts. Means of the last 10 steps that had any of that domain."
)
LABEL = 60  # characters that the name of a curve may have
INTERVAL = (
  "Curves are means over seeds, bands ± one standard error of the mean (none for a single seed), "
  "over the stretch that all seeds have reached. All but held-out accuracy are means of 5 steps."
)


def grouped(all_runs: list[Run]) -> dict[str, list[Run]]:
  """Runs by algorithm, each by seed, in the order in which algorithms appear.

  Where an algorithm has a seed more than once, the fields in which its runs differ tell them apart:
  "poise train.learning_rate=1e-05"; where that is too long, the names of their folders do.

  Raises:
    UserError: two runs differ in nothing.
  """
  by_name = collections.defaultdict(list)
  for run in all_runs:
    by_name[run.algorithm].append(run)
  groups = collections.defaultdict(list)
  for name, members in by_name.items():
    by_seed = collections.defaultdict(list)
    for run in members:
      by_seed[run.seed].append(_fields(run.config))
    # What differs between seeds alone, as the folder of a warm start does, tells nothing apart.
    fields = sorted(
      field
      for field in set().union(*(own for same in by_seed.values() for own in same))
      if any(len({own.get(field) for own in same}) > 1 for same in by_seed.values())
    )
    for run in members:
      own = _fields(run.config)
      label = " ".join([name, *(f"{field}={own.get(field)}" for field in fields)])
      groups[label if len(label) <= LABEL else f"{name} ({run.path.name})"].append(run)
  for members in groups.values():
    members.sort(key=lambda run: run.seed)
    for one, other in zip(members, members[1:], strict=False):
      if one.seed == other.seed:
        raise UserError(
          f"{one.path} and {other.path} have both configuration and seed in common; "
          "name one of them"
        )
  return dict(groups)


def _fields(config: dict[str, Any]) -> dict[str, str]:
  """A config's fields as {"a.b": its value in JSON}."""
  return {name: json.dumps(value).strip('"') for name, value in files.flat(config).items()}


def rows(groups: dict[str, list[Run]]) -> list[list[str]]:
  """A line a run in the columns of HEAD, and the mean of a group's seeds if there are several."""
  lines = []
  for name, group in groups.items():
    afters = []
    for run in group:
      _, accuracy = run.series("eval/accuracy")
      afters.append(accuracy[-1])
      _, reward = run.series("reward/mean")
      reward = f"{reward[-10:].mean():.3f}" if len(reward) else ""
      split = [run.series(f"time/{part}")[1] for part in ("rollout", "estimate", "update")]
      split = " + ".join(f"{np.median(seconds):.2f}" for seconds in split if len(seconds))
      lines.append(
        [
          *(name, f"{run.seed}", f"{run.step}", f"{run.along('rollouts')[-1]:.0f}"),
          *(f"{run.along('tokens')[-1]:.0f}", f"{accuracy[0]:.3f}", f"{accuracy[-1]:.3f}"),
          *(f"{accuracy[-1] - accuracy[0]:+.3f}", reward, f"{run.along('minutes')[-1]:.1f}", split),
        ]
      )
    if len(group) > 1:
      mean, error = np.mean(afters), standard_error(np.array(afters))
      of = f"mean of {len(group)} ± standard error"
      lines.append([name, of, "", "", "", "", f"{mean:.3f} ± {error:.3f}", "", "", "", ""])
  return lines


def probe_rows(named: dict[str, Run]) -> list[list[str]]:
  """A line a domain in the columns of PROBE_HEAD, of runs with a probe for each of several."""
  lines = []
  for name, run in named.items():
    logged = dict.fromkeys(key for row in run.rows for key in row)
    for domain in (key.removeprefix("probe/mae/") for key in logged if "probe/mae/" in key):
      cells = [f"{run.series(f'probe/{of}/{domain}')[1][-10:].mean():.3f}" for of in QUALITY]
      _, accuracy = run.series(f"eval/accuracy/{domain}")
      ends = [f"{accuracy[i]:.3f}" for i in (0, -1)] if len(accuracy) else ["", ""]
      lines.append([name, domain, *cells, *ends])
  return lines


def standard_error(values: np.ndarray) -> np.ndarray:
  """Of the mean over the first axis, which has at least two entries."""
  return values.std(0, ddof=1) / np.sqrt(len(values))


def mean_curve(name: str, group: list[Run], metric: str, axis: str) -> Line | None:
  """The mean over a group's runs, against an axis of runs.AXES; None if nothing was logged.

  Between a run's points it is interpolated: seeds generate different numbers of tokens.
  """
  series = [run.series(metric, axis) for run in group]
  series = [(x, y) for x, y in series if len(x)]
  if not series:
    return None
  if not metric.startswith("eval/"):
    series = [(x, runs.smooth(y)) for x, y in series]
  start, end = max(x[0] for x, _ in series), min(x[-1] for x, _ in series)
  places = np.unique(np.concatenate([x for x, _ in series]))
  places = places[(start <= places) & (places <= end)]
  if not len(places):
    return None
  values = np.array([np.interp(places, x, y) for x, y in series])
  spread = standard_error(values) if len(values) > 1 else None
  return Line(name, places, values.mean(0), spread)


def panels(groups: dict[str, list[Run]], axes: list[str], metrics: dict[str, str]):
  """(title, figure) of every metric that was logged, against every one of the axes."""
  for metric, title in metrics.items():
    for axis in axes:
      lines = [mean_curve(name, group, metric, axis) for name, group in groups.items()]
      if any(lines):
        yield title, figures.curves(lines, runs.AXES[axis])


def samples(run: Run, count: int) -> list[list[str]]:
  """The same held-out problems before and after: a heading, then a line each; empty for none."""
  folder = run.path / "answers"
  steps = sorted(int(path.stem.partition("_")[2]) for path in folder.glob("step_*.jsonl"))
  if not steps or not count:
    return []
  before, after = (
    [json.loads(line) for line in (folder / f"step_{step}.jsonl").read_text().splitlines()]
    for step in (steps[0], steps[-1])
  )
  lines = [["problem", "answer", f"step {steps[0]}", f"step {steps[-1]}"]]
  pairs = list(zip(before, after, strict=True))
  count = min(count, len(pairs))
  for old, new in (pairs[i * len(pairs) // count] for i in range(count)):  # of every domain
    shown = [
      f"{json.dumps(row['response'], ensure_ascii=False)[1:-1]} "
      + ("✓" if row["reward"] >= RIGHT else "✗")
      for row in (old, new)
    ]
    lines.append([str(old["question"]), str(old["answer"]), *shown])
  return lines


def _bold(line: list[str]) -> list[str]:
  return [f"**{cell}**" if _is_mean(line) and cell else cell for cell in line]


def _is_mean(line):
  return line[1].startswith("mean")


def _code(lines: list[list[str]]) -> list[list[str]]:
  """What a model said, in the last two columns, is not Markdown: `said` ✓."""
  asked = [[html.escape(cell, quote=False) for cell in line[:2]] for line in lines]
  said = [[f"`{cell[:-2]}`{cell[-2:]}" for cell in line[2:]] for line in lines]
  return [[*a, *b] for a, b in zip(asked, said, strict=True)]


def markdown(head: list[str], lines: list[list[str]]) -> str:
  """A table; what would end a cell or a line of it is escaped."""
  lines = [head, ["---"] * len(head), *lines]
  cells = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in line] for line in lines]
  return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def rounded(row: dict[str, float]) -> dict[str, float]:
  """Five significant digits, so that committed files stay small; whole numbers stay whole."""
  return {k: v if isinstance(v, int) else float(f"{v:.5g}") for k, v in row.items()}


def report(paths: list[pathlib.Path], out: pathlib.Path, samples_shown: int = 0) -> str:
  """Writes README.md, report.html, curves.svg, costs.svg and the metrics into `out`.

  Args:
    paths: workdirs.
    out: is made if need be.
    samples_shown: held-out answers of every run, before and after.

  Returns:
    the table, in Markdown.

  Raises:
    UserError: one of the paths holds no evaluated run, or two runs have configuration and seed in
      common.
  """
  all_runs = [runs.read(path) for path in paths]
  for run in all_runs:
    if not any("eval/accuracy" in row for row in run.rows):
      raise UserError(f"{run.path} has not been evaluated yet; wait for its step 0")
  groups = grouped(all_runs)
  out.mkdir(parents=True, exist_ok=True)
  named = {f"{name}-{run.seed}": run for name, group in groups.items() for run in group}
  for name, run in named.items():
    lines = [json.dumps(rounded(row)) + "\n" for row in run.rows]
    (out / f"{name.replace('/', '_')}.metrics.jsonl").write_text("".join(lines))
  lines = rows(groups)
  curves = list(panels(groups, ["steps"], PANELS))
  costs = list(panels(groups, ["rollouts", "tokens", "minutes"], COSTS))
  answers = {name: samples(run, samples_shown) for name, run in named.items()}
  answers = {name: told for name, told in answers.items() if told}
  commands, where = provenance.origin([start for run in all_runs for start in run.starts])

  (out / "curves.svg").write_text(figures.picture(curves, list(groups), 2))
  (out / "costs.svg").write_text(figures.picture(costs, list(groups), 3))
  text = markdown(HEAD, [_bold(line) for line in lines])
  sections = [f"# {out.name}", text, INTERVAL, "![curves](curves.svg)", "![costs](costs.svg)"]
  sections.append(provenance.describe([start for run in all_runs for start in run.starts]))
  if told := probe_rows(named):
    sections.append(f"## Probes\n\n{markdown(PROBE_HEAD, told)}\n\n{PROBE_MEANING}")
  for name, (head, *told) in answers.items():
    sections.append(f"## Held-out answers, {name}\n\n{markdown(head, _code(told))}")
  files.write_whole(out / "README.md", "\n\n".join(sections) + "\n")
  body = _body(out.name, groups, lines, curves, costs, answers, commands, where)
  files.write_whole(out / "report.html", page.page(f"{out.name}: comparison", body))
  return text


def _body(title, groups, lines, curves, costs, answers, commands, where):
  """The same as a page: figures that adapt to its width and to dark screens."""

  def cards(figures_):
    return (
      f'<div class="cards">{"".join(page.card(name, figure) for name, figure in figures_)}</div>'
    )

  def safe(cells):
    return [[html.escape(cell) for cell in line] for line in cells]

  cells = [[f"<b>{cell}</b>" if _is_mean(line) else cell for cell in line] for line in safe(lines)]
  seeds = sum(len(group) for group in groups.values())
  sections = [
    f"<header><h1>{html.escape(title)}</h1>"
    f'<p class="quiet">{seeds} runs of {len(groups)} kinds. {INTERVAL}</p></header>',
    f'<div class="sticky">{page.legend(list(groups))}</div>',
    "<h2>Against steps</h2>" + cards(curves),
    "<h2>Against what they cost</h2>" + cards(costs),
    "<h2>Runs</h2>" + page.table(HEAD, cells, set(range(1, len(HEAD)))),
  ]
  for name, (head, *told) in answers.items():
    sections.append(page.folded(f"Held-out answers, {name}", page.table(head, safe(told))))
  told = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in where)
  made = f"<pre>{html.escape(chr(10).join(commands))}</pre>{told}"
  sections += ["<h2>Where it comes from</h2>", page.folded("Commands, commits, machines", made)]
  return "\n".join(sections)
