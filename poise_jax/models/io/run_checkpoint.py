"""The model in a checkpoint of a run; poise_jax/training/checkpoints.py writes them."""

import contextlib
import gc
import json
import logging
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from poise_jax.models.config import ModelConfig
from poise_jax.models.transformer import abstract_params

FOLDER = "checkpoints"  # in the workdir; a checkpoint is a folder in it, named by its step
PARAMS, REST, ABOUT = "params", "rest", "about"  # what a checkpoint consists of


def find(path: pathlib.Path) -> pathlib.Path | None:
  """The checkpoint that `path` stands for: itself, or the newest one of a workdir. None: neither.

  Raises:
    FileNotFoundError: a workdir without a checkpoint.
  """
  if (path / PARAMS).is_dir() and (path / ABOUT).is_dir():
    return path
  if not _is_run(path):
    return None
  if not (steps := steps_of(path)):
    raise FileNotFoundError(
      f"the run {path} has no whole checkpoint yet; train on, or set checkpoint_every"
    )
  return path_of(path, steps[-1])


def _is_run(folder):
  try:
    return "algorithm" in json.loads((folder / "config.json").read_text())
  except (OSError, ValueError):
    return False


def path_of(workdir: pathlib.Path, step: int) -> pathlib.Path:
  """The checkpoint of a step."""
  return workdir / FOLDER / str(step)


def steps_of(workdir: pathlib.Path) -> list[int]:
  """The steps that have a whole checkpoint; an unfinished one has another name."""
  names = [path.name for path in (workdir / FOLDER).glob("*")]
  return sorted(int(name) for name in names if name.isdigit())


def about(checkpoint: pathlib.Path) -> dict[str, Any]:
  """What stands beside the arrays of a checkpoint: step, config, model, best, ...

  Raises:
    OSError: it is missing or truncated.
  """
  try:
    return json.loads((checkpoint / ABOUT / "metadata").read_text())
  except (OSError, ValueError) as error:
    raise OSError(f"checkpoint {checkpoint} is damaged ({reason(error)})") from error


def model_config(checkpoint: pathlib.Path) -> ModelConfig:
  """The decoder's shape.

  Raises:
    OSError: the checkpoint is damaged.
  """
  return ModelConfig.from_hf(about(checkpoint)["model"])


def load(
  checkpoint: pathlib.Path, dtype: Any, shardings: Callable[[ModelConfig], Any] | None = None
) -> tuple[ModelConfig, Any]:
  """models.load of a checkpoint.

  Raises:
    OSError: one of its files is missing or truncated.
  """
  config = model_config(checkpoint)
  shapes = abstract_params(config)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  placements = shardings(config) if shardings else jax.tree.map(lambda _: here, shapes)
  like = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes, placements
  )
  return config, read(checkpoint, PARAMS, like)


def tokenizer_source(checkpoint: pathlib.Path) -> str | pathlib.Path:
  """What load_tokenizer takes for the run of a checkpoint: its model's source, or what it made."""
  made = checkpoint.parent.parent / "tokenizer.model"
  return about(checkpoint)["config"]["model"]["source"] or made


def read(checkpoint: pathlib.Path, item: str, like: Any) -> Any:
  """PARAMS or REST of a checkpoint with the shapes, dtypes and shardings of `like`; None: as they
  were saved, on the first device.

  Raises:
    OSError: one of its files is missing or truncated.
  """
  with _quiet(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
    try:
      path = (checkpoint / item).absolute()
      if like is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
          reader.metadata(path).item_metadata.tree,
        )
      return reader.restore(path, args=ocp.args.StandardRestore(like))
    except Exception as error:  # Orbax and TensorStore raise a dozen kinds, Exception among them
      text = f"checkpoint {checkpoint} is damaged ({reason(error)})"
  raise OSError(text)


def reason(error: BaseException) -> str:
  """The system's words in an error, or its first ones: TensorStore's go on for pages."""
  text = " ".join(str(error).split()) or type(error).__name__
  if system := re.search(r"([^:]+) \[os_error_code=", text):
    return system[1].strip()
  text = text.partition("See full TensorStore details")[0].partition("[tensorstore_spec")[0]
  return text[:300].strip().rstrip(".")


@contextlib.contextmanager
def _quiet():
  """Reads that a failed restore leaves behind would print pages when they are collected."""
  log = logging.getLogger("asyncio")
  level, hook = log.level, sys.unraisablehook
  log.setLevel(logging.CRITICAL + 1)
  sys.unraisablehook = lambda _: None
  try:
    yield
    gc.collect()
  finally:
    log.setLevel(level)
    sys.unraisablehook = hook
