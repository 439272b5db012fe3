"""What a resumed run needs, through Orbax: a checkpoint is just the pytrees of a step."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
  """The newest checkpoint of a run; an unfinished one never counts (Orbax renames at the end)."""

  def __init__(self, workdir: pathlib.Path):
    options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
    self.manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)

  def latest(self) -> int | None:
    """The step of the newest whole checkpoint, or None."""
    return self.manager.latest_step()

  def save(self, step: int, tree: Any):
    """Writes in the background; `close` waits for it."""
    if step != self.latest():
      self.manager.save(step, args=ocp.args.StandardSave(tree))

  def restore(self, like: Any) -> Any:
    """The newest checkpoint, with the shapes and shardings of `like` (its arrays are not kept)."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return self.manager.restore(self.latest(), args=ocp.args.StandardRestore(abstract))

  def close(self):
    """Waits for what is still being written."""
    self.manager.wait_until_finished()
    self.manager.close()
