"""The folder of a run: what may change in its config, and how to start it again."""

import json
import pathlib
import shutil

from ml_collections import ConfigDict

from poise_jax import files
from poise_jax.errors import UserError

CONFIG = "config.json"


def open_workdir(
  workdir: pathlib.Path, config: ConfigDict, allow_config_change: bool = False, overwrite: str = ""
) -> list[str]:
  """Creates the workdir with its config.json, or checks that it is of this very run.

  Args:
    workdir: the folder.
    config: resolved.
    allow_config_change: accept another configuration than the one in the folder. It is not written
      yet: `write_config` does, once the checkpoint was found to fit it.
    overwrite: the folder's name: delete what the run in it has left, and start again.

  Returns:
    What has changed, "field: before -> now"; empty without a change or a run.

  Raises:
    UserError: the folder holds a run with another configuration, or something else altogether, or
      `overwrite` is not its name.
  """
  path, content, name = workdir / CONFIG, json.loads(config.to_json()), workdir.absolute().name
  again = f"start again with --overwrite={name}"
  if overwrite and overwrite != name:
    raise UserError(
      f"--overwrite={overwrite} is not the name of the folder {workdir}; nothing was deleted. "
      f"--overwrite={name} deletes the run in it and starts again"
    )
  if path.exists() and overwrite:
    _clear(workdir)
  if path.exists() and allow_config_change:
    try:
      return files.differences(json.loads(path.read_text()), content)
    except ValueError as error:
      raise UserError(f"{path} is not valid JSON ({error}); bring it back, or {again}") from error
  otherwise = f"go on in this one with --allow_config_change, or {again}"
  files.claim(workdir, CONFIG, content, "a run", "--workdir", otherwise)
  return []


def write_config(workdir: pathlib.Path, config: ConfigDict):
  """config.json, whole or not at all."""
  files.write_whole(workdir / CONFIG, json.dumps(json.loads(config.to_json()), indent=2) + "\n")


def _clear(workdir):
  """Everything in the folder, its config.json last: half-cleared, it still is a run's folder."""
  for item in sorted(workdir.iterdir(), key=lambda item: item.name == CONFIG):
    if item.is_dir() and not item.is_symlink():
      shutil.rmtree(item)
    else:
      item.unlink()
