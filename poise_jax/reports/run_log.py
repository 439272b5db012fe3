"""A run's workdir read back: its config, metrics, samples and provenance."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from poise_jax import own_functions
from poise_jax.errors import UserError

AXES = {  # what a metric can be plotted against -> label of the axis
  "steps": "step",
  "rollouts": "rollouts sampled",
  "tokens": "tokens generated",
  "minutes": "minutes of wall-clock time",
}
GREEDY = "greedy"  # choice of eval.best_by
_STEP = re.compile(rb'\{"step": (\d+)[,}]')  # start of a row of metrics.jsonl or samples.jsonl


@dataclasses.dataclass
class Run:
  """Contents of a workdir."""

  path: pathlib.Path
  config: dict[str, Any]
  rows: list[dict[str, float]]  # metrics.jsonl
  starts: list[dict[str, Any]]  # provenance.jsonl, one entry per start

  @property
  def algorithm(self) -> str:
    """The name after the colon of --config, after that of an own estimator."""
    return own_functions.algorithm_name(self.config["algorithm"], self.config.get("estimator", ""))

  @property
  def seed(self) -> int:
    """The seed of the run, config.seed."""
    return self.config["seed"]

  @property
  def best_by(self) -> str:
    """What accuracy is: config.eval.best_by; runs of older versions had greedy answers only."""
    return self.config.get("eval", {}).get("best_by", GREEDY)

  @property
  def step(self) -> int:
    """The last step in the log, or 0."""
    return int(self.rows[-1]["step"]) if self.rows else 0

  def series(
    self, metric: str, axis: str = "steps"
  ) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Positions and values of a metric, for the rows that have it.

    Args:
      metric: name in metrics.jsonl.
      axis: key of AXES.
    """
    positions = self.positions(axis)
    points = [
      (x, row[metric]) for x, row in zip(positions, self.rows, strict=True) if metric in row
    ]
    return tuple(np.array(points, np.float64).reshape(-1, 2).T)

  def positions(self, axis: str) -> Float[np.ndarray, " rows"]:
    """Position of every row on an axis, a key of AXES."""
    rollouts_per_step = self.config["rollouts"]

    def position(row):
      if axis == "steps":
        return row["step"]
      if axis == "rollouts":
        return row.get("collect/generated_total", row["step"] * rollouts_per_step)
      if axis == "minutes":
        return row.get("time/elapsed", np.nan) / 60
      # Logs of older versions lack collect/tokens: assume that discarded rollouts were as long.
      trained_on = row.get("rollout/tokens", 0.0)
      generated = row.get("collect/generated", rollouts_per_step)
      return row.get("collect/tokens", trained_on * generated / rollouts_per_step)

    positions = np.array([position(row) for row in self.rows], np.float64)
    return np.cumsum(positions) if axis == "tokens" else positions

  def samples(self, choose: Callable[[list[int]], list[int]]) -> list[dict[str, Any]]:
    """Rows of samples.jsonl.

    Only rows of chosen steps are parsed, so that the report of a long run is cheap.

    Args:
      choose: picks from the steps in the file.
    """
    path = self.path / "samples.jsonl"
    if not path.exists():
      return []
    offsets = {}
    for step, start, _ in whole_rows(path):
      offsets.setdefault(step, []).append(start)
    rows = []
    with path.open("rb") as file:
      for step in choose(list(offsets)):
        for start in offsets[step]:
          file.seek(start)
          rows.append(json.loads(file.readline()))
    return rows


def metric_of(best_by: str) -> str:
  """The metric of a choice of eval.best_by: "greedy" is eval/accuracy, "avg@8" eval/avg_at_8."""
  return "eval/accuracy" if best_by == GREEDY else f"eval/{best_by.replace('@', '_at_')}"


def read(path: pathlib.Path) -> Run:
  """Reads the workdir of a run, finished or not.

  Raises:
    UserError: the folder holds no run.
  """
  if not (path / "config.json").exists():
    raise UserError(f"{path} holds no run: it has no config.json")
  config = json.loads((path / "config.json").read_text())
  if "algorithm" not in config:  # the folder of a model has a config.json too
    raise UserError(f"{path} holds no run: its config.json names no algorithm")
  provenance = path / "provenance.jsonl"
  starts = provenance.read_text().splitlines() if provenance.exists() else []
  return Run(path, config, metrics(path / "metrics.jsonl"), [json.loads(line) for line in starts])


def metrics(path: pathlib.Path) -> list[dict[str, float]]:
  """The rows of a metrics.jsonl before the first incomplete one; none if there is no such file."""
  return [json.loads(line) for _, _, line in whole_rows(path)] if path.exists() else []


def whole_rows(path: pathlib.Path) -> Iterator[tuple[int, int, bytes]]:
  """(step, byte offset, line) of every row before the first incomplete one."""
  start = 0
  with path.open("rb") as file:
    for line in file:
      match = _STEP.match(line)
      if not match or not line.endswith(b"\n"):
        return
      yield int(match[1]), start, line
      start += len(line)


def smooth(values: Float[np.ndarray, " N"], width: int = 5) -> Float[np.ndarray, " N"]:
  """The moving mean over `width` values, fewer at the ends."""
  window = np.ones(min(width, values.shape[-1]))
  weight = np.convolve(np.ones(values.shape[-1]), window, "same")
  return np.convolve(values, window, "same") / weight
