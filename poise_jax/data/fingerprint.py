"""A run's data.json: what the run trains on, so that it never resumes on other data."""

import hashlib
import json
import pathlib
from typing import Any

from poise_jax import files
from poise_jax.data.tasks import Task
from poise_jax.distributed import processes
from poise_jax.errors import UserError


def fingerprint(task: Task) -> dict[str, Any]:
  """The content of data.json: numbers of examples and the SHA-256 of both splits in order."""
  digest = hashlib.sha256()
  for example in (*task.train, *task.test):
    digest.update(repr((example.asked, example.answer, example.domain)).encode())
  return {
    "train": len(task.train),
    "test": len(task.test),
    "left_out": dict(task.left_out),
    "sha256": digest.hexdigest(),
  }


def check_fingerprint(task: Task, workdir: pathlib.Path) -> None:
  """Writes data.json when a run starts; when it resumes, checks that the data is the same.

  A position in the order of other data would stand for other prompts.

  Raises:
    UserError: the data differs from that of the run's start, or between processes.
  """
  current = fingerprint(task)
  processes.check_alike("the training or held-out data", current["sha256"])
  processes.on_first(_write_or_compare, workdir / "data.json", current)


def compare_fingerprint(task: Task, workdir: pathlib.Path) -> None:
  """Checks, without writing, that the data is that of a run, if it has a data.json.

  Raises:
    UserError: the data differs.
  """
  _compare(workdir / "data.json", fingerprint(task), "restore it")


def _write_or_compare(path, current):
  if path.exists():
    _compare(path, current, "restore it or choose another --workdir")
  else:
    files.write_whole(path, json.dumps(current, indent=2, ensure_ascii=False) + "\n")


def _compare(path, current, way_out):
  if not path.exists():
    return
  before = json.loads(path.read_text())
  if before["sha256"] != current["sha256"]:
    raise UserError(
      f"the data differs from the data this run started with ({path}: {before['train']} training "
      f"and {before['test']} held-out examples; now {current['train']} and {current['test']}); "
      f"{way_out}"
    )
