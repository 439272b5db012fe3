"""What a resumed run needs, through Orbax: the pytrees of a step, and beside them a JSON file about
the run. A checkpoint has three parts: the policy's parameters, which models.load reads alone, the
rest of what is remembered between steps, and that file."""

import dataclasses
import pathlib
import sys
import time
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from poise_jax.distributed import processes
from poise_jax.errors import UserError
from poise_jax.models.io import run_checkpoint
from poise_jax.models.io.run_checkpoint import ABOUT, FOLDER, PARAMS, REST

DAMAGED = "damaged_checkpoints"  # where those go that could not be read


@dataclasses.dataclass
class _Kept(checkpoint_managers.PreservationPolicy):
  """The newest two, so that one is left if the other is damaged; the best; and every so many."""

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
  """The checkpoints of a run; an unfinished one never counts (Orbax renames at the end).

  A context manager: leaving it waits for what is still being written.
  """

  def __init__(self, workdir: pathlib.Path, keep_every: int = 0):
    """keep_every: checkpoints of these steps are kept for good; 0: none of them."""
    self.workdir, self.kept = workdir, _Kept(keep_every)
    self._held_up, self._saved = 0.0, None
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self.kept, create=True, cleanup_tmp_directories=True
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
      if kind is None:  # otherwise the first error is the one to tell
        raise

  def save(self, step: int, remembered: tuple, about: dict[str, Any]):
    """Copies to the host, and writes in the background; does nothing if the step is there already.

    Args:
      step: of training.
      remembered: a tuple of pytrees whose first is the policy's TrainState.
      about: JSON. `best` {"step": ...} names the checkpoint to keep as the best one.

    Raises:
      OSError: this one could not be written, or the one before; those that were there still are.
    """
    if step == self._saved or step in processes.on_first(run_checkpoint.steps_of, self.workdir):
      return
    before = time.perf_counter()
    params, rest = _parts(remembered)
    self.kept.best = about["best"]["step"]
    about = {"step": step, **about, "arrays": _described(remembered)}
    items = {
      PARAMS: ocp.args.StandardSave(params),
      REST: ocp.args.StandardSave(rest),
      ABOUT: ocp.args.JsonSave(about),
    }
    with self._explained("write"):
      self.manager.save(step, args=ocp.args.Composite(**items))
    self._saved = step
    self._held_up += time.perf_counter() - before

  def held_up(self) -> float:
    """Seconds for which `save` has held the caller up since this was asked last."""
    seconds, self._held_up = self._held_up, 0.0
    return seconds

  def restore(self, like: tuple) -> tuple[tuple, dict[str, Any]]:
    """The newest checkpoint that can be read, and what stands about it. Those that cannot are
    named on stderr and moved to damaged_checkpoints/.

    Args:
      like: `remembered` with jax.ShapeDtypeStruct for arrays; their shardings may be of another
        mesh than the one that saved.

    Raises:
      UserError: it is whole, but of another model or algorithm.
      OSError: there is none that can be read.
    """
    params, rest = _parts(like)
    damaged = []
    for step in reversed(run_checkpoint.steps_of(self.workdir)):
      checkpoint, problem = run_checkpoint.path_of(self.workdir, step), None
      try:
        about = run_checkpoint.about(checkpoint)
        _check_fits(checkpoint, about["arrays"], _described(like))
        params = run_checkpoint.read(checkpoint, PARAMS, params)
        rest = run_checkpoint.read(checkpoint, REST, rest)
      except OSError as error:
        problem = str(error)
      if problems := [x for x in processes.gather(problem) if x]:  # one process's are all's
        if processes.is_first():
          print(f"warning: {problems[0]}; trying the one before", file=sys.stderr, flush=True)
        damaged.append(checkpoint)
        continue
      processes.on_first(self._move_away, damaged)
      if damaged:
        self.manager.reload()
      self.kept.best = about["best"]["step"]
      return (rest[0].replace(params=params), *rest[1:]), about
    raise OSError(
      f"no checkpoint in {self.workdir / FOLDER} can be read; bring the files back, or start again "
      f"with --overwrite={self.workdir.absolute().name}"
    )

  def _move_away(self, damaged):
    for checkpoint in damaged:
      place = self.workdir / DAMAGED / checkpoint.name
      while place.exists():
        place = place.with_name(f"{place.name}_again")
      place.parent.mkdir(exist_ok=True)
      checkpoint.rename(place)

  def _explained(self, what):
    return _Explained(f"could not {what} a checkpoint in {self.workdir / FOLDER}", self.workdir)


@dataclasses.dataclass
class _Explained:
  """Turns what Orbax raises into an OSError that says what is still there."""

  what: str
  workdir: pathlib.Path

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    if error is None or not isinstance(error, Exception):
      return
    steps = run_checkpoint.steps_of(self.workdir)
    left = f"the same command goes on after step {steps[-1]}" if steps else "none was saved before"
    raise OSError(
      f"{self.what} ({run_checkpoint.reason(error)}); free space or mend the disk: {left}"
    ) from error


def _parts(remembered):
  state, *others = remembered
  return state.params, (state.replace(params=()), *others)


def _described(tree) -> dict[str, str]:
  """Each array's path -> dtype[shape]."""
  flat = jax.tree.leaves_with_path(tuple(tree))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
    for path, x in flat
  }


def _check_fits(checkpoint, there, here):
  wrong = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
  if wrong:
    name = wrong[0]
    raise UserError(
      f"checkpoint {checkpoint} is of another model or algorithm: {len(wrong)} arrays differ, "
      f"such as {name} ({there.get(name, 'missing')} there, {here.get(name, 'missing')} by the "
      "config); take the config that it was made with, or another --workdir"
    )
