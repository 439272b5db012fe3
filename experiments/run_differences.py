"""Bit-for-bit comparison of two runs, for experiments.kill_and_resume and the tests of resuming."""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from poise_jax.models.io import run_checkpoint


def differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
  """Names what differs between the files of two runs and between their last checkpoints.

  Metrics (except times), samples, busy rows, held-out answers and every array of the checkpoints
  are compared; arrays must be equal bit for bit.

  Args:
    first: workdir of a finished run.
    second: workdir of the other one.

  Returns:
    Names of files and of entries of the checkpoint, such as "metrics.jsonl" or
    "checkpoint: config"; empty if the runs are equal.
  """
  answers = {path.relative_to(run) for run in (first, second) for path in run.glob("answers/*")}
  names = ["metrics.jsonl", "samples.jsonl", "busy_rows.json", *sorted(map(str, answers))]
  different = [name for name in names if not _same_rows(first / name, second / name)]
  checkpoints = [run_checkpoint.find(run) for run in (first, second)]
  a, b = ({**run_checkpoint.about(path), "elapsed": 0} for path in checkpoints)
  different += [f"checkpoint: {key}" for key in sorted(a | b) if a.get(key) != b.get(key)]
  for item in (run_checkpoint.PARAMS, run_checkpoint.REST):
    x, y = (jax.tree.leaves_with_path(run_checkpoint.read(c, item, None)) for c in checkpoints)
    different += [
      f"checkpoint: {item}{jax.tree_util.keystr(path)}"
      for (path, u), (_, v) in zip(x, y, strict=True)
      if np.asarray(u).tobytes() != np.asarray(v).tobytes()
    ]
  return different


def _same_rows(first: pathlib.Path, second: pathlib.Path) -> bool:
  return first.exists() and second.exists() and _rows(first) == _rows(second)


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a JSONL file without their times."""
  rows = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
  return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
