"""The workdir of a run: which changes of its config are allowed, and how a run starts again."""

import json
import pathlib
import shutil

from ml_collections import ConfigDict

from poise_jax import files
from poise_jax.data.fingerprint import DATA
from poise_jax.errors import UserError
from poise_jax.models.io.run_checkpoint import steps_of

CONFIG = "config.json"


def open_workdir(
  workdir: pathlib.Path, config: ConfigDict, allow_config_change: bool = False, overwrite: str = ""
) -> list[str]:
  """Creates the workdir with its config.json, or checks that it holds a run with this config.

  A run that has not begun, since a mistake stopped it before its first evaluation or checkpoint,
  may begin with another config and other data.

  Args:
    workdir: the folder.
    config: without references.
    allow_config_change: accept another config than the one in the folder. It is not written yet:
      `write_config` writes it once the checkpoint is known to fit.
    overwrite: the folder's name, to delete everything in it and start again.

  Returns:
    Changes of the config, "field: before -> now".

  Raises:
    UserError: the folder holds a run with another config or something that is not a run, or
      `overwrite` is not its name.
  """
  path, content, name = workdir / CONFIG, json.loads(config.to_json()), workdir.absolute().name
  start_again = f"start again with --overwrite={name}"
  if overwrite and overwrite != name:
    raise UserError(
      f"--overwrite={overwrite} is not the name of the folder {workdir}; nothing was deleted. "
      f"--overwrite={name} deletes the run in it and starts again"
    )
  if path.exists() and overwrite:
    _clear(workdir)
  if path.exists() and not _has_begun(workdir):  # nothing would be lost by another config or data
    path.unlink()
    (workdir / DATA).unlink(missing_ok=True)
    write_config(workdir, config)
  if path.exists() and allow_config_change:
    try:
      return files.differences(json.loads(path.read_text()), content)
    except ValueError as error:
      raise UserError(
        f"{path} is not valid JSON ({error}); restore it, or {start_again}"
      ) from error
  otherwise = f"continue this one with --allow_config_change, or {start_again}"
  files.claim(workdir, CONFIG, content, "a run", "--workdir", otherwise)
  return []


def write_config(workdir: pathlib.Path, config: ConfigDict):
  """Writes config.json, whole or not at all."""
  files.write_whole(workdir / CONFIG, json.dumps(json.loads(config.to_json()), indent=2) + "\n")


def _has_begun(workdir):
  metrics = workdir / "metrics.jsonl"
  return bool(steps_of(workdir)) or metrics.is_file() and metrics.stat().st_size > 0


def _clear(workdir: pathlib.Path):
  """Deletes everything in the folder, config.json last, so that a half-cleared folder still counts
  as a run."""
  for item in sorted(workdir.iterdir(), key=lambda item: item.name == CONFIG):
    if item.is_dir() and not item.is_symlink():
      shutil.rmtree(item)
    else:
      item.unlink()
