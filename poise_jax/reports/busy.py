"""How many slots of the sampler are busy over the decode steps of a run's newest step."""

import json
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from poise_jax import files
from poise_jax.reports import svg
from poise_jax.reports.html import Card
from poise_jax.reports.run_log import Run

FILE = "busy_rows.json"
POINTS = 200  # parts of equal length into which many decode steps are divided


def write(workdir: pathlib.Path, step: int, slots: int, busy: Int[np.ndarray, " steps"]):
  """Replaces workdir/busy_rows.json, a few kilobytes.

  Args:
    workdir: folder of the run.
    step: number of the training step.
    slots: rows of a decode step, on all devices together.
    busy: rows that drew a token in each decode step.
  """
  parts = np.array_split(busy, min(len(busy), POINTS)) if len(busy) else []
  means = [round(float(part.mean()), 2) for part in parts]
  content = {"step": step, "slots": slots, "decode_steps": len(busy), "busy": means}
  files.write_whole(workdir / FILE, json.dumps(content) + "\n")


def cards(run: Run) -> Iterator[Card]:
  """The figure; none for runs of older versions, or if no response has a second token."""
  path = run.path / FILE
  content = json.loads(path.read_text()) if path.exists() else {}
  if not content.get("busy"):
    return
  busy, slots, steps = np.array(content["busy"]), content["slots"], content["decode_steps"]
  edges = np.linspace(0, steps, len(busy) + 1)
  x, y = np.repeat(edges, 2)[1:-1], np.repeat(busy, 2)
  figure = svg.Figure("decode step", (0.0, float(steps)), (0.0, float(slots)), "rows")
  figure.area(svg.color_of(0), x, 0 * y, y, 0.15)
  figure.line(svg.color_of(0), x, y)
  figure.line("var(--ink)", [0, steps], [slots, slots], "stroke-dasharray:6 3;stroke-width:1")
  share = busy.mean() / slots  # parts differ in length by one decode step
  note = (
    f"dashed: all {slots:,} slots; {share:.0%} are busy on average, over {steps:,} decode steps"
  )
  yield Card(f"Rows that draw a token at step {content['step']}", figure, note=note)
