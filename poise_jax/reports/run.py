"""report.html: one run at a glance, from what its workdir holds.

Curves, reward by difficulty, predicted against realised value, and answers whose tokens are
coloured by entropy. It is written as the run goes, and can be made again at any time.
"""

import datetime
import html
import json
import pathlib

import numpy as np

from poise_jax import files, provenance
from poise_jax.reports import html as page
from poise_jax.reports import run_log as runs
from poise_jax.reports import svg as figures
from poise_jax.reports.run_log import Run
from poise_jax.reports.svg import Line

CURVES = {  # title -> the metrics that it shows, and what they are called there
  "Reward": {"reward/mean": "mean of the rollouts"},
  "Held-out accuracy (greedy)": {"eval/accuracy": "± standard error"},
  "Entropy of the policy, nats a token": {"policy/entropy": ""},
  "Gradient norm": {"policy/grad_norm": ""},
  "Probe: agreement with the sibling's reward": {
    "probe/pearson": "Pearson's r",
    "probe/variance_reduction": "1 − Var(advantage) / Var(reward)",
  },
  "Probe: mean absolute error": {"probe/mae": ""},
  "Critic: explained variance": {"critic/explained_variance": ""},
  "Tracker: mean value": {"tracker/value": ""},
  "Tokens a response": {"rollout/length": ""},
  "Responses cut off at the limit, fraction": {"rollout/truncated_fraction": ""},
}
FAMILIES = {  # title -> how the names of the metrics begin that it shows
  "Reward by difficulty": "reward/mean/",
  "Held-out accuracy by difficulty": "eval/accuracy/",
  "Held-out accuracy of sampled answers": "eval/avg_at_",
  "Held-out problems with a right answer among k": "eval/pass_at_",
  "Held-out accuracy of the majority of k": "eval/maj_at_",
}
PARTS = ("rollout", "reward", "reference", "estimate", "update")  # of a step's seconds
PREDICTIONS = 500  # about so many of the latest answers are in the calibration figure
BINS = 8  # and so many means of them
HEATS = 12  # shades of a token's entropy
TOKENS_SHOWN = 400  # of a response
ANSWERS_SHOWN = 8  # of a step
STEPS_SHOWN = 6  # of those with answers
_STYLE = (
  ".step td:first-child{min-width:14ch}"
  "td.right{border-left:3px solid #2f9e44}td.wrong{border-left:3px solid #e03131}"
  ".step td:nth-child(2){padding-left:8px;width:60%}"
  ".text span{border-radius:2px}"
  + "".join(
    f".h{i}{{background:color-mix(in srgb,#f76707 {round(75 * i / (HEATS - 1))}%,transparent)}}"
    for i in range(1, HEATS)
  )
)


def write(workdir: pathlib.Path) -> pathlib.Path:
  """Writes report.html (a reader sees the old one or the new one) and returns its path.

  Raises:
    UserError: `workdir` holds no run.
  """
  run = runs.read(workdir)
  path = workdir / "report.html"
  files.write_whole(path, render(run))
  return path


def render(run: Run) -> str:
  """The page of a run, whatever its algorithm, however far it has come."""
  name = run.path.resolve().name
  steps = run.config["steps"]
  model = run.config["model"]["source"] or "a model from random weights"
  state = "finished" if run.step >= steps else f"at step {run.step} of {steps}"
  now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
  about = f"{run.algorithm}, seed {run.seed}, {model}; {state} when this page was made, {now}"
  sections = [
    f'<header><h1>{html.escape(name)}</h1><p class="quiet">{html.escape(about)}</p></header>',
    page.tiles(_summary(run)),
    f'<div class="cards">{"".join(_cards(run))}</div>',
    _answers(run),
    _origin(run),
  ]
  return page.page(f"{name}: {run.algorithm}", "\n".join(sections), _STYLE)


def _summary(run):
  """What matters, in a few figures of merit."""
  tiles = {"steps": f"{run.step} of {run.config['steps']}"}
  _, accuracy = run.series("eval/accuracy")
  if len(accuracy):
    ends = dict.fromkeys(f"{value:.3f}" for value in accuracy[[0, -1]])
    tiles["held-out accuracy"] = " → ".join(ends)
  _, reward = run.series("reward/mean")
  if len(reward):
    tiles[f"reward, last {min(10, len(reward))} steps"] = f"{reward[-10:].mean():.3f}"
    tiles["rollouts sampled"] = f"{run.along('rollouts')[-1]:,.0f}"
    tiles["tokens generated"] = f"{run.along('tokens')[-1]:,.0f}"
  _, seconds = run.series("time/step")
  if len(seconds):
    tiles["a step, median"] = f"{np.median(seconds):.2f} s"
  _, elapsed = run.series("time/elapsed")
  if len(elapsed):
    tiles["all in all"] = str(datetime.timedelta(seconds=round(elapsed[-1])))
  return tiles


def _cards(run):
  """Every figure that the run has numbers for."""
  for title, metrics in CURVES.items():
    lines = [line for name, label in metrics.items() if (line := _line(run, name, label))]
    if lines:
      yield _card(title, lines)
    if title.startswith("Held-out"):
      for title, prefix in FAMILIES.items():
        names = {k for row in run.rows for k in row if k.startswith(prefix) and k[-3:] != "_se"}
        known = prefix if prefix.endswith("/") else "eval/"  # what every name has in common
        lines = [_line(run, name, name.removeprefix(known)) for name in sorted(names)]
        if lines:
          left_out = len(lines) - len(figures.COLORS)
          note = f"{left_out} more are in metrics.jsonl" if left_out > 0 else ""
          yield _card(title, lines[: len(figures.COLORS)], note)
      yield from _calibration(run)
  yield from _seconds(run)


def _line(run, name, label):
  """A metric's curve, smoothed where there are many points; None if it was never logged."""
  x, y = run.series(name)
  if not len(x):
    return None
  if name.startswith("eval/"):
    known, spread = run.series(f"{name}_se")
    return Line(label, x, y, spread if np.array_equal(known, x) else None)
  if len(x) < 20:
    return Line(label, x, y)
  return Line(label, x, runs.smooth(y), raw=y)


def _card(title, lines, note=""):
  smoothed = "; ".join([note] * bool(note) + ["mean of 5 steps"] * (lines[0].raw is not None))
  labels = [line.label for line in lines if line.label]
  return page.card(title, figures.curves(lines, "step"), labels, smoothed)


def _calibration(run):
  """Baselines against what their answers earned: on the diagonal they are right on average."""

  def latest(steps):
    a_step = max(1, run.config["log_samples"] * run.config["rollout"]["n"])
    return steps[-max(1, PREDICTIONS // a_step) :]

  rows = [row for row in run.samples(latest) if np.isfinite([row["baseline"], row["reward"]]).all()]
  if not rows:
    return
  baseline = np.array([row["baseline"] for row in rows])
  reward = np.array([row["reward"] for row in rows])
  ends = min(0.0, baseline.min()), max(1.0, baseline.max())
  highest, lowest = max(ends[1], reward.max()), min(ends[0], reward.min())
  figure = figures.Figure("predicted (baseline)", ends, (lowest, highest), "realised (reward)")
  figure.line("var(--ink)", ends, ends, "stroke-width:1;stroke-dasharray:4 4")
  figure.dots("var(--c0)", baseline, reward, 2.2, opacity=0.3)
  # Bins of as many answers each, as far as predictions differ.
  edges = np.unique(np.quantile(baseline, np.linspace(0, 1, BINS + 1)))
  of = np.clip(np.searchsorted(edges, baseline, side="right") - 1, 0, max(0, len(edges) - 2))
  bins = [(baseline[of == i], reward[of == i]) for i in np.unique(of)]
  x, y = np.array([[predicted.mean(), earned.mean()] for predicted, earned in bins]).T
  errors = [earned.std() / np.sqrt(len(earned)) for _, earned in bins]
  for place, middle, error in zip(x, y, errors, strict=True):
    figure.line("var(--c1)", [place, place], [middle - error, middle + error])
  titles = [
    f"{len(earned)} answers: predicted {a:.3f}, earned {b:.3f} ± {error:.3f}"
    for (_, earned), a, b, error in zip(bins, x, y, errors, strict=True)
  ]
  figure.line("var(--c1)", x, y)
  figure.dots("var(--c1)", x, y, 3.2, titles)
  steps = dict.fromkeys(f"{row['step']}" for row in (rows[0], rows[-1]))
  note = f"{len(rows)} answers of samples.jsonl, steps {' to '.join(steps)}; bars: ± standard error"
  labels = ["an answer", "mean of those with like predictions"]
  yield page.card("Predicted against realised value", figure, labels, note)


def _seconds(run):
  """Where a step's time goes, as areas on top of each other."""
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
  shown = min(totals.max(), 2.5 * np.median(totals))
  chunks = np.array_split(np.arange(len(steps)), min(len(steps), figures.POINTS))
  x = np.array([steps[chunk].mean() for chunk in chunks])
  y = np.array([seconds[:, chunk].mean(1) for chunk in chunks]).T
  if len(x) == 1:  # an area needs a width
    x, y = np.array([x[0] - 0.5, x[0] + 0.5]), np.repeat(y, 2, 1)
  figure = figures.Figure("step", (x[0], x[-1]), (0.0, shown))
  tops = np.cumsum(y, 0)
  for i, (low, high) in enumerate(zip(np.vstack([0 * tops[:1], tops]), tops, strict=False)):
    figure.area(f"var(--c{i})", x, low, high, 0.75)
  note = ""
  if totals.max() > shown:
    note = f"the longest step took {totals.max():.1f} s (compilation, for one)"
  yield page.card("Seconds a step", figure, list(parts), note)


def _answers(run):
  """Some steps' answers, from the first to the last."""
  by_step = {}
  for row in run.samples(lambda steps: _evenly(steps, STEPS_SHOWN)):
    by_step.setdefault(row["step"], []).append(row)
  if not by_step:
    return ""
  shown = {step: rows[:ANSWERS_SHOWN] for step, rows in by_step.items()}
  entropies = [e for rows in shown.values() for row in rows for e in row.get("entropies", [])]
  top = max(float(np.quantile(entropies, 0.99)), 1e-6) if entropies else 1.0
  head = ["question", "response", "reward", "baseline", "advantage"]
  sections = ["<h2>Answers</h2>"]
  if entropies:
    scale = "".join(f'<span class="h{i}">&nbsp;</span>' for i in range(HEATS))
    sections.append(
      '<p class="quiet">Tokens by the entropy of what they were drawn from: 0 '
      f'<span class="text">{scale}</span> '
      f"{top:.2f} nats and more. "
      "∎ has no text, as the token that ends a response.</p>"
    )
  for step, rows in shown.items():
    cells = [_cells(row, top) for row in rows]
    table = page.table(head, cells, {2, 3, 4})
    table = table.replace('<div class="scroll">', '<div class="scroll step">', 1)
    is_last = step == max(shown)
    mean = np.mean([row["reward"] for row in rows])
    title = f"step {step}: {len(rows)} answers, mean reward {mean:.2f}"
    sections.append(page.folded(title, table, is_open=is_last))
  return "\n".join(sections)


def _evenly(steps, count):
  """`count` of the steps, or all if there are fewer; the first and the last among them."""
  places = np.linspace(0, len(steps) - 1, min(count, len(steps))).round().astype(int)
  return [steps[place] for place in places]


def _cells(row, top):
  """A row of the table of answers, as HTML."""
  question = (
    f'<div class="text">{_text(str(row["question"]))}</div>'
    f'<span class="note">{html.escape(str(row["difficulty"]))} · answer '
    f"{html.escape(str(row['answer']))}</span>"
  )
  numbers = [f"{row[name]:+.2f}".removeprefix("+") for name in ("reward", "baseline")]
  response = f'<div class="text">{_tokens(row, top)}</div>'
  return [question, response, *numbers, f"{row['advantage']:+.2f}"]


def _tokens(row, top):
  """The response; each token on the colour of its entropy, where it is known."""
  if "tokens" not in row:  # samples from before tokens were kept
    return _text(row["response"])
  parts = []
  pairs = list(zip(row["tokens"], row["entropies"], strict=True))
  for token, entropy in pairs[:TOKENS_SHOWN]:
    heat = round((HEATS - 1) * min(1.0, max(0.0, entropy) / top))
    parts.append(f'<span class="h{heat}" title="{entropy:.2f} nats">{_text(token) or "∎"}</span>')
  if len(pairs) > TOKENS_SHOWN:
    left = len(pairs) - TOKENS_SHOWN
    parts.append(f'<span class="note"> … {left:,} more tokens, in samples.jsonl</span>')
  return "".join(parts)


def _text(text):
  """Arbitrary text as HTML in which line ends and control characters can be seen."""
  seen = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)
  return html.escape(seen).replace("\n", "↵\n").replace("\x7f", "␡")


def _origin(run):
  """How to make the run again."""
  commands, where = provenance.origin(run.starts) if run.starts else ([], [])
  config = json.dumps(run.config, indent=2)
  parts = ["<h2>Where it comes from</h2>"]
  if commands:
    text = html.escape("\n".join(commands))
    parts.append(
      page.folded(
        "Commands, commits and machines",
        f"<pre>{text}</pre>" + "".join(f"<p>{html.escape(sentence)}</p>" for sentence in where),
      )
    )
  parts.append(page.folded("Configuration", f"<pre>{html.escape(config)}</pre>"))
  return "\n".join(parts)
