"""Metrics of a run as curves against its steps."""

from collections.abc import Sequence

import numpy as np

from poise_jax.reports import run_log, svg
from poise_jax.reports.html import Card
from poise_jax.reports.run_log import Run
from poise_jax.reports.svg import Line


def line(run: Run, name: str, label: str) -> Line | None:
  """The curve of a metric, smoothed if it has many points; None if it was never logged."""
  x, y = run.series(name)
  if not len(x):
    return None
  if name.startswith("eval/"):
    places, spread = run.series(f"{name}_se")
    return Line(label, x, y, spread if np.array_equal(places, x) else None)
  return smoothed(label, x, y)


def smoothed(label: str, x: np.ndarray, y: np.ndarray) -> Line:
  """A curve of a number at each step [N], smoothed if it has many points."""
  return Line(label, x, y) if len(x) < 20 else Line(label, x, run_log.smooth(y), raw=y)


def card(title: str, lines: Sequence[Line], note: str = "") -> Card:
  """A card of curves, with a note about smoothing."""
  notes = [note] if note else []
  if lines[0].raw is not None:
    notes.append("moving mean over 5 steps")
  labels = [line.label for line in lines if line.label]
  return Card(title, svg.curves(lines, "step"), labels, "; ".join(notes))
