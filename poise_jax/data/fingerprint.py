"""A run's data.json: what the run trains on, so that it never resumes on other data or with another
reward function."""

import hashlib
import json
import pathlib
from typing import Any

from poise_jax import files
from poise_jax.data.tasks import Task
from poise_jax.distributed import processes
from poise_jax.errors import UserError
from poise_jax.own_functions import source_of
from poise_jax.verifiers import VERIFIERS
from poise_jax.verifiers.weighted import single_checks

DATA = "data.json"


def reward_functions(task: Task, function: str = "") -> dict[str, str]:
  """The SHA-256 of the file of every reward function of the user's own, by the function's name.

  Args:
    task: its checks may name functions.
    function: another one, config.verifier.function.
  """
  examples = (*task.train, *task.test)
  names = {check.verifier for example in examples for check in single_checks(example.check)}
  names = sorted((names | {function}) - {*VERIFIERS, ""})
  paths = {name: source_of(name) for name in names}
  return {n: hashlib.sha256(path.read_bytes()).hexdigest() for n, path in paths.items() if path}


def fingerprint(task: Task, function: str = "") -> dict[str, Any]:
  """The content of data.json: numbers of examples, the SHA-256 of both splits in order, and that of
  every reward function of the user's own (see `reward_functions`)."""
  functions = reward_functions(task, function)
  digest = hashlib.sha256()
  for example in (*task.train, *task.test):
    digest.update(repr((example.asked, example.answer, example.domain)).encode())
    if functions and example.check.row:  # which they may read
      digest.update(json.dumps(example.check.row, sort_keys=True).encode())
  return {
    "train": len(task.train),
    "test": len(task.test),
    "left_out": dict(task.left_out),
    "sha256": digest.hexdigest(),
    **({"reward_functions": functions} if functions else {}),
  }


def check_fingerprint(task: Task, workdir: pathlib.Path, function: str = "") -> dict[str, Any]:
  """Writes data.json when a run starts; when it resumes, checks that data and reward functions are
  the same; returns the content.

  A position in the order of other data would stand for other prompts.

  Raises:
    UserError: the data or a reward function differs from that of the run's start, or between
      processes.
  """
  current = fingerprint(task, function)
  processes.check_alike("the training or held-out data", current["sha256"])
  functions = json.dumps(current.get("reward_functions"))
  processes.check_alike("the reward functions", functions)
  processes.on_first(_write_or_compare, workdir / DATA, current)
  return current


def compare_fingerprint(task: Task, workdir: pathlib.Path, function: str = "") -> None:
  """Checks, without writing, that data and reward functions are those of a run with a data.json.

  Raises:
    UserError: the data or a reward function differs.
  """
  _compare(workdir / DATA, fingerprint(task, function), "restore it")


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
  now = current.get("reward_functions", {})
  for name, checksum in before.get("reward_functions", {}).items():
    if now.get(name, checksum) != checksum:
      raise UserError(
        f"the file of the reward function {name} differs from the one this run started with "
        f"({path}); {way_out}"
      )
