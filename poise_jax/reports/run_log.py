"""What a run's workdir holds, read back: its numbers, some of its answers, where it comes from."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from poise_jax.errors import UserError

# What a run is measured against -> the axis' label.
AXES = {
  "steps": "step",
  "rollouts": "rollouts sampled",
  "tokens": "tokens generated",
  "minutes": "minutes of wall-clock",
}
_STEP = re.compile(rb'\{"step": (\d+)[,}]')  # a row of metrics.jsonl or samples.jsonl begins so


@dataclasses.dataclass
class Run:
  """What a workdir holds."""

  path: pathlib.Path
  config: dict[str, Any]
  rows: list[dict[str, float]]  # metrics.jsonl
  starts: list[dict[str, Any]]  # provenance.jsonl

  @property
  def algorithm(self) -> str:
    """The name after the colon of --config."""
    return self.config["algorithm"]

  @property
  def seed(self) -> int:
    """config.seed."""
    return self.config["seed"]

  @property
  def step(self) -> int:
    """The last step that was logged; 0 if there is none."""
    return int(self.rows[-1]["step"]) if self.rows else 0

  def series(self, metric: str, axis: str = "steps") -> tuple[np.ndarray, np.ndarray]:
    """Where on an axis of AXES a metric was logged, and its values; float64 [N] each."""
    places = self.along(axis)
    points = [(x, row[metric]) for x, row in zip(places, self.rows, strict=True) if metric in row]
    return tuple(np.array(points, np.float64).reshape(-1, 2).T)

  def along(self, axis: str) -> np.ndarray:
    """Every row's place on an axis of AXES, float64 [rows]."""
    size = self.config["rollouts"]  # of a step

    def place(row):
      if axis == "steps":
        return row["step"]
      if axis == "rollouts":
        return row.get("collect/generated_total", row["step"] * size)
      if axis == "minutes":
        return row.get("time/elapsed", np.nan) / 60
      # Runs from before collect/tokens: the rollouts trained on stand for those left out.
      trained_on = row.get("rollout/tokens", 0.0)
      return row.get("collect/tokens", trained_on * row.get("collect/generated", size) / size)

    places = np.array([place(row) for row in self.rows], np.float64)
    return np.cumsum(places) if axis == "tokens" else places

  def samples(self, choose: Callable[[list[int]], list[int]]) -> list[dict[str, Any]]:
    """The rows of samples.jsonl of the steps that `choose` picks from those there are.

    Only chosen rows are parsed, so that a long run's report costs little.
    """
    path = self.path / "samples.jsonl"
    if not path.exists():
      return []
    places = {}
    for step, start, _ in whole_rows(path):
      places.setdefault(step, []).append(start)
    rows = []
    with path.open("rb") as file:
      for step in choose(list(places)):
        for start in places[step]:
          file.seek(start)
          rows.append(json.loads(file.readline()))
    return rows


def read(path: pathlib.Path) -> Run:
  """Reads a run's workdir, finished or not.

  Raises:
    UserError: there is no run.
  """
  if not (path / "config.json").exists():
    raise UserError(f"{path} holds no run: it has no config.json")
  config = json.loads((path / "config.json").read_text())
  if "algorithm" not in config:  # a model's folder has such a file too
    raise UserError(f"{path} holds no run: its config.json names no algorithm")
  metrics, provenance = path / "metrics.jsonl", path / "provenance.jsonl"
  rows = [json.loads(line) for _, _, line in whole_rows(metrics)] if metrics.exists() else []
  starts = provenance.read_text().splitlines() if provenance.exists() else []
  return Run(path, config, rows, [json.loads(line) for line in starts])


def whole_rows(path: pathlib.Path) -> Iterator[tuple[int, int, bytes]]:
  """(step, byte offset, line) of every row, up to one that was cut off in the middle."""
  start = 0
  with path.open("rb") as file:
    for line in file:
      found = _STEP.match(line)
      if not found or not line.endswith(b"\n"):
        return
      yield int(found[1]), start, line
      start += len(line)


def smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
  """The mean of `width` neighbours in the last axis; of fewer at the ends."""
  window = np.ones(min(width, values.shape[-1]))
  weight = np.convolve(np.ones(values.shape[-1]), window, "same")
  return np.convolve(values, window, "same") / weight
