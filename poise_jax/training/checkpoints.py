"""Checkpoints of a run, through Orbax.

A checkpoint has three parts: the policy's parameters, which models.load reads alone; the rest of
the loop's state; and a JSON file about the run.
"""

import contextlib
import dataclasses
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree
from orbax.checkpoint import checkpoint_managers

from poise_jax.distributed import processes
from poise_jax.errors import UserError
from poise_jax.models.io import run_checkpoint
from poise_jax.models.io.run_checkpoint import ABOUT, FOLDER, PARAMS, REST

DAMAGED = "damaged_checkpoints"  # folder in the workdir for checkpoints that could not be read


@dataclasses.dataclass
class _Retention(checkpoint_managers.PreservationPolicy):
  """Keeps the newest two checkpoints, in case one is damaged, the best, and every so many steps."""

  every: int
  best: int | None = None

  def should_preserve(self, checkpoints, *, context):
    newest = {info.step for info in checkpoints[-2:]}
    return [
      info.step in newest
      or info.step == self.best
      or bool(self.every and info.step and info.step % self.every == 0)
      for info in checkpoints
    ]


class Checkpoints:
  """The checkpoints of a run; an unfinished one never counts, since Orbax renames it at the end.

  A context manager: leaving it waits for checkpoints that are still being written.
  """

  def __init__(self, workdir: pathlib.Path, keep_every: int = 0):
    """keep_every: checkpoints at multiples of this number of steps are never deleted; 0: none."""
    self.workdir, self._retention = workdir, _Retention(keep_every)
    self._blocked_seconds, self._last_step = 0.0, None
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self._retention, create=True, cleanup_tmp_directories=True
    )
    with self._explained("make room for"):
      self.manager = ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      with self._explained("finish"):
        self.manager.close()
    except OSError:
      if kind is None:  # otherwise the first error is the one to report
        raise

  def save(self, step: int, state: tuple[PyTree[Array], ...], about: dict[str, Any]):
    """Copies the state to the host and writes it in the background. Does nothing if the step has a
    checkpoint.

    Args:
      step: number of the training step.
      state: pytrees, of which the first is the policy's TrainState.
      about: JSON; its `best` {"step": ...} names the checkpoint to keep as the best one.

    Raises:
      OSError: this checkpoint or the one before could not be written. Earlier ones still exist.
    """
    if step == self._last_step or step in processes.on_first(run_checkpoint.steps_of, self.workdir):
      return
    start = time.perf_counter()
    params, rest = _parts(state)
    self._retention.best = about["best"]["step"]
    about = {"step": step, **about, "arrays": _described(state)}
    items = {
      PARAMS: ocp.args.StandardSave(params),
      REST: ocp.args.StandardSave(_without_empty(rest)),
      ABOUT: ocp.args.JsonSave(about),
    }
    with self._explained("write"):
      self.manager.save(step, args=ocp.args.Composite(**items))
    self._last_step = step
    self._blocked_seconds += time.perf_counter() - start

  def pop_blocked_seconds(self) -> float:
    """Seconds for which `save` has blocked its caller since the last call of this method."""
    seconds, self._blocked_seconds = self._blocked_seconds, 0.0
    return seconds

  def restore(
    self, abstract_state: tuple[PyTree[jax.ShapeDtypeStruct], ...]
  ) -> tuple[tuple[PyTree[Array], ...], dict[str, Any]]:
    """Reads the newest checkpoint that is not damaged.

    Damaged checkpoints are named on stderr and moved to damaged_checkpoints/.

    Args:
      abstract_state: the state with jax.ShapeDtypeStruct for arrays. Their shardings may belong to
        another mesh than the one that saved.

    Returns:
      The state, and the `about` of `save`.

    Raises:
      UserError: the checkpoint is not damaged, but belongs to another model or algorithm.
      OSError: no checkpoint can be read.
    """
    damaged = []
    for step in reversed(run_checkpoint.steps_of(self.workdir)):
      checkpoint, problem = run_checkpoint.path_of(self.workdir, step), None
      try:
        state, about = read(checkpoint, abstract_state)
      except OSError as error:
        problem = str(error)
      # A checkpoint that one process cannot read is damaged for all.
      if problems := [text for text in processes.gather(problem) if text]:
        if processes.is_first():
          print(f"warning: {problems[0]}; trying the one before", file=sys.stderr, flush=True)
        damaged.append(checkpoint)
        continue
      processes.on_first(self._move_away, damaged)
      if damaged:
        self.manager.reload()
      self._retention.best = about["best"]["step"]
      return state, about
    raise OSError(
      f"no checkpoint in {self.workdir / FOLDER} can be read; restore the files, or start again "
      f"with --overwrite={self.workdir.absolute().name}"
    )

  def _move_away(self, damaged: Sequence[pathlib.Path]):
    for checkpoint in damaged:
      path = self.workdir / DAMAGED / checkpoint.name
      while path.exists():
        path = path.with_name(f"{path.name}_again")
      path.parent.mkdir(exist_ok=True)
      checkpoint.rename(path)

  @contextlib.contextmanager
  def _explained(self, action: str) -> Iterator[None]:
    """Turns Orbax's errors into an OSError that names the newest checkpoint."""
    try:
      yield
    except Exception as error:
      steps = run_checkpoint.steps_of(self.workdir)
      outlook = "the run has no checkpoint yet"
      if steps:
        outlook = f"the same command continues after step {steps[-1]}"
      raise OSError(
        f"could not {action} a checkpoint in {self.workdir / FOLDER} "
        f"({run_checkpoint.reason(error)}); free space or repair the disk; {outlook}"
      ) from error


def read(
  checkpoint: pathlib.Path, abstract_state: tuple[PyTree[jax.ShapeDtypeStruct], ...]
) -> tuple[tuple[PyTree[Array], ...], dict[str, Any]]:
  """Reads the state of a checkpoint and its `about`, and changes nothing; see Checkpoints.restore.

  Raises:
    UserError: it belongs to another model or algorithm.
    OSError: it is damaged.
  """
  about = run_checkpoint.about(checkpoint)
  _check_fits(checkpoint, about["arrays"], _described(abstract_state))
  params, rest = _parts(abstract_state)
  params = run_checkpoint.read(checkpoint, PARAMS, params)
  rest = _with_empty(run_checkpoint.read(checkpoint, REST, _without_empty(rest)), rest)
  return (rest[0].replace(params=params), *rest[1:]), about


def _parts(state: tuple[PyTree, ...]) -> tuple[PyTree, tuple[PyTree, ...]]:
  """The policy's parameters, and the rest of the state."""
  policy, *others = state
  return policy.params, (policy.replace(params=()), *others)


def _without_empty(tree: PyTree) -> PyTree:
  """The tree with () for arrays without elements, such as features of no layer, which Orbax cannot
  write."""
  return jax.tree.map(lambda x: x if math.prod(x.shape) else (), tree)


def _with_empty(tree: PyTree, abstract: PyTree) -> PyTree:
  """The inverse of `_without_empty`; empty arrays are on the host."""
  shapes, structure = jax.tree.flatten(abstract)
  arrays = iter(jax.tree.leaves(tree))
  return structure.unflatten(
    next(arrays) if math.prod(x.shape) else np.zeros(x.shape, x.dtype) for x in shapes
  )


def _described(state: tuple[PyTree, ...]) -> dict[str, str]:
  """Path of each array -> dtype[shape]."""
  flat = jax.tree.leaves_with_path(tuple(state))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
    for path, x in flat
  }


def _check_fits(checkpoint: pathlib.Path, stored: Mapping[str, str], expected: Mapping[str, str]):
  """Raises UserError if the arrays of a checkpoint are not those of the config."""
  names = sorted({*stored, *expected})
  different = [name for name in names if stored.get(name) != expected.get(name)]
  if different:
    name = different[0]
    raise UserError(
      f"checkpoint {checkpoint} belongs to another model or algorithm: {len(different)} arrays "
      f"differ, such as {name} (checkpoint: {stored.get(name, 'missing')}, config: "
      f"{expected.get(name, 'missing')}); use the config of the checkpoint, or another --workdir"
    )
