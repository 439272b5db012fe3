"""report.html: a run at a glance, from the files of its workdir.

Warnings, curves, reward by difficulty, lengths of answers, predicted against realised values, and
answers whose tokens are colored by entropy. Training writes it at every evaluation; it can be
written again at any time.
"""

import datetime
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from poise_jax import files, provenance
from poise_jax.reports import busy, curves, html, lengths, run_log, svg, value, watchers
from poise_jax.reports.html import HEATS, Card
from poise_jax.reports.run_log import Run

CURVES = {  # title -> metrics of the figure with their labels
  "Reward": {"reward/mean": "mean over rollouts"},
  "Held-out accuracy (greedy)": {"eval/accuracy": "± standard error"},
  "Policy entropy (nats per token)": {"policy/entropy": ""},
  "Gradient norm": {"policy/grad_norm": ""},
  "Answers that earn without the usual form (fraction)": {
    "reward/short_fraction": "short",
    "reward/repeated_fraction": "repeated",
  },
  "Response length (tokens)": {"rollout/length": ""},
  "Update positions that hold a token": {"update/useful_positions": ""},
  "Truncated responses (fraction)": {"rollout/truncated_fraction": ""},
}
FAMILIES = {  # title -> prefix of the metrics of the figure
  "Reward by difficulty": "reward/mean/",
  "Reward by domain": "reward/domain/",
  "Parts of the reward": "reward/part/",
  "Held-out accuracy by difficulty": "eval/accuracy/",
  "Held-out avg@n (sampled)": "eval/avg_at_",
  "Held-out pass@k (sampled)": "eval/pass_at_",
  "Held-out maj@k (sampled)": "eval/maj_at_",
}
PARTS = ("rollout", "reward", "reference", "estimate", "update")  # of a step's time
TOKENS_SHOWN = 400  # tokens per response
ANSWERS_SHOWN = 8  # answers per step
EXTRA_SHOWN = 4  # further answers per step, which earned without the usual form
STEPS_SHOWN = 6  # steps with answers

Row = dict[str, Any]  # of samples.jsonl


def write(workdir: pathlib.Path) -> pathlib.Path:
  """Replaces report.html in one go and returns its path.

  Raises:
    UserError: `workdir` holds no run.
  """
  run = run_log.read(workdir)
  path = workdir / "report.html"
  files.write_whole(path, render(run))
  return path


def render(run: Run) -> str:
  """The page of a run, finished or not, with any algorithm."""
  name = run.path.resolve().name
  steps = run.config["steps"]
  model = run.config["model"]["source"] or "a model with random initial weights"
  state = "finished" if run.step >= steps else f"at step {run.step} of {steps}"
  now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
  commands, origin = provenance.origin(run.starts) if run.starts else ([], [])
  max_entropy, answers = _answers(run)
  values = {"Predicted values": cards} if (cards := list(value.cards(run))) else {}
  page = html.Page(
    title=f"{name}: {run.algorithm}",
    heading=name,
    about=f"{run.algorithm}, seed {run.seed}, {model}; {state}; written {now}",
    tiles=_tiles(run),
    warnings=_warnings(run),
    figures={"": list(_cards(run)), **values},
    max_entropy=max_entropy,
    steps=answers,
    commands=commands,
    origin=origin,
    config=json.dumps(run.config, indent=2),
  )
  return html.render(page)


def _tiles(run: Run) -> dict[str, str]:
  """The most important numbers."""
  tiles = {"steps": f"{run.step} of {run.config['steps']}"}
  _, accuracy = run.series(run_log.metric_of(run.best_by))
  if len(accuracy):
    first_and_last = dict.fromkeys(f"{value:.3f}" for value in accuracy[[0, -1]])
    tiles[f"held-out accuracy, {run.best_by}"] = " → ".join(first_and_last)
  _, reward = run.series("reward/mean")
  if len(reward):
    tiles[f"reward, last {min(10, len(reward))} steps"] = f"{reward[-10:].mean():.3f}"
    tiles["rollouts sampled"] = f"{run.positions('rollouts')[-1]:,.0f}"
    tiles["tokens generated"] = f"{run.positions('tokens')[-1]:,.0f}"
  tiles |= value.tiles(run)
  _, seconds = run.series("time/step")
  if len(seconds):
    tiles["median time per step"] = f"{np.median(seconds):.2f} s"
  _, elapsed = run.series("time/elapsed")
  if len(elapsed):
    tiles["total time"] = str(datetime.timedelta(seconds=round(elapsed[-1])))
  return tiles


def _warnings(run: Run) -> list[str]:
  """The first sentence of each watcher that found something."""
  max_grad_norm = run.config.get("train", {}).get("max_grad_norm", 0.0)
  found = watchers.Watch(max_grad_norm, run.rows).sentences.values()
  return [f"step {step}: {sentence}" for step, sentence in found]


def _cards(run: Run) -> Iterator[Card]:
  """Every figure for which the run has numbers."""
  for title, metrics in CURVES.items():
    lines = [line for name, label in metrics.items() if (line := curves.line(run, name, label))]
    if lines:
      yield curves.card(title, lines)
    if title.startswith("Held-out"):
      yield from _families(run)
  yield from lengths.cards(run)
  yield from busy.cards(run)
  yield from _seconds(run)


def _families(run: Run) -> Iterator[Card]:
  """Figures of metrics whose names have a prefix in common."""
  logged = {name for row in run.rows for name in row}
  errors = {f"{name}_se" for name in logged}
  for title, prefix in FAMILIES.items():
    names = sorted(name for name in logged - errors if name.startswith(prefix))
    redundant = prefix if prefix.endswith("/") else "eval/"  # part of every name
    lines = [curves.line(run, name, name.removeprefix(redundant)) for name in names]
    if lines:
      left_out = len(lines) - len(svg.COLORS)
      note = f"{left_out} more in metrics.jsonl" if left_out > 0 else ""
      yield curves.card(title, lines[: len(svg.COLORS)], note)


def _seconds(run: Run) -> Iterator[Card]:
  """The time of a step by its parts, as stacked areas."""
  parts = {}
  for part in PARTS:
    x, y = run.series(f"time/{part}")
    if len(x):
      parts[part] = dict(zip(x, y, strict=True))
  if not parts:
    return
  steps = np.array(sorted(set().union(*parts.values())))
  seconds = np.array([[part.get(step, 0.0) for step in steps] for part in parts.values()])
  totals = seconds.sum(0)
  limit = min(totals.max(), 2.5 * np.median(totals))
  chunks = np.array_split(np.arange(len(steps)), min(len(steps), svg.POINTS))
  x = np.array([steps[chunk].mean() for chunk in chunks])
  y = np.array([seconds[:, chunk].mean(1) for chunk in chunks]).T
  if len(x) == 1:  # an area needs a width
    x, y = np.array([x[0] - 0.5, x[0] + 0.5]), np.repeat(y, 2, 1)
  figure = svg.Figure("step", (x[0], x[-1]), (0.0, limit))
  tops = np.cumsum(y, 0)
  bottoms = np.vstack([0 * tops[:1], tops[:-1]])
  for i, (low, high) in enumerate(zip(bottoms, tops, strict=True)):
    figure.area(svg.color_of(i), x, low, high, 0.75)
  note = ""
  if totals.max() > limit:
    note = (
      f"axis cut off: the longest step took {totals.max():.1f} s, usually because of compilation"
    )
  yield Card("Time per step (seconds)", figure, list(parts), note)


def _answers(run: Run) -> tuple[float | None, list[html.Step]]:
  """The entropy of the deepest shade (None without entropies), and the answers of some steps."""
  by_step = {}
  for row in run.samples(lambda steps: _evenly(steps, STEPS_SHOWN)):
    by_step.setdefault(row["step"], []).append(row)
  for step, rows in by_step.items():
    extra = [row for row in rows if row.get("extra")]  # chosen because they are unusual
    by_step[step] = rows[: min(ANSWERS_SHOWN, len(rows) - len(extra))] + extra[:EXTRA_SHOWN]
  entropies = [e for rows in by_step.values() for row in rows for e in row.get("entropies", [])]
  max_entropy = max(float(np.quantile(entropies, 0.99)), 1e-6) if entropies else None
  steps = []
  for step, rows in by_step.items():
    drawn = [row["reward"] for row in rows if not row.get("extra")]
    summary = f"step {step}: {len(drawn)} answers, mean reward {np.mean(drawn):.2f}"
    if len(rows) > len(drawn):
      summary += f"; {len(rows) - len(drawn)} more that earned without the usual form"
    steps.append(html.Step(summary, [_answer(row, max_entropy or 1.0) for row in rows]))
  return max_entropy, steps


def _evenly(steps: Sequence[int], count: int) -> list[int]:
  """`count` evenly spaced steps with the first and the last, or all if there are fewer."""
  places = np.linspace(0, len(steps) - 1, min(count, len(steps))).round().astype(int)
  return [steps[place] for place in places]


def _answer(row: Row, max_entropy: float) -> html.Answer:
  pairs = None
  if "tokens" in row:  # runs of older versions did not log them
    pairs = list(zip(row["tokens"], row["entropies"], strict=True))
  return html.Answer(
    question=str(row["question"]),
    answer=str(row["answer"]),
    difficulty=str(row["difficulty"]),
    unusual=row.get("unusual", []),
    response=row["response"],
    reward=f"{row['reward']:.2f}",
    baseline=f"{row['baseline']:.2f}",
    advantage=f"{row['advantage']:+.2f}",
    tokens=None if pairs is None else [_token(*p, max_entropy) for p in pairs[:TOKENS_SHOWN]],
    hidden_tokens=max(0, len(pairs or ()) - TOKENS_SHOWN),
  )


def _token(text: str, entropy: float, max_entropy: float) -> html.Token:
  heat = round((HEATS - 1) * min(1.0, max(0.0, entropy) / max_entropy))
  return html.Token(text, entropy, heat)
