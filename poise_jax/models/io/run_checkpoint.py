"""The checkpoints of a run, read without the run; training/checkpoints.py writes them."""

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
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from poise_jax.models.config import ModelConfig
from poise_jax.models.transformer import abstract_params

FOLDER = "checkpoints"  # folder in the workdir that has a folder per checkpoint, named by its step
PARAMS, REST, ABOUT = "params", "rest", "about"  # folders of a checkpoint


def find(path: pathlib.Path) -> pathlib.Path | None:
  """`path` if it is a checkpoint, the newest one if it is a workdir, None if it is neither.

  Raises:
    FileNotFoundError: the workdir has no checkpoint.
  """
  if (path / PARAMS).is_dir() and (path / ABOUT).is_dir():
    return path
  if not _is_run(path):
    return None
  if not (steps := steps_of(path)):
    raise FileNotFoundError(
      f"the run {path} has no whole checkpoint yet; train longer, or set checkpoint_every"
    )
  return path_of(path, steps[-1])


def _is_run(folder):
  try:
    config = json.loads((folder / "config.json").read_text())
  except (OSError, ValueError):
    return False
  return isinstance(config, dict) and "algorithm" in config


def path_of(workdir: pathlib.Path, step: int) -> pathlib.Path:
  """The folder of a step's checkpoint."""
  return workdir / FOLDER / str(step)


def steps_of(workdir: pathlib.Path) -> list[int]:
  """The steps that have a whole checkpoint, in order."""
  # A checkpoint that is being written has a name that is not a number.
  names = [path.name for path in (workdir / FOLDER).glob("*")]
  return sorted(int(name) for name in names if name.isdigit())


def about(checkpoint: pathlib.Path) -> dict[str, Any]:
  """The metadata of a checkpoint: step, config, model, best, ...

  Raises:
    OSError: the metadata are missing or truncated.
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
  checkpoint: pathlib.Path,
  dtype: DTypeLike,
  shardings: Callable[[ModelConfig], PyTree[Sharding]] | None = None,
) -> tuple[ModelConfig, PyTree[Array]]:
  """Reads the model of a checkpoint; arguments and results are those of `models.load`.

  Raises:
    OSError: one of its files is missing or truncated.
  """
  config = model_config(checkpoint)
  shapes = abstract_params(config)
  first_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  placements = shardings(config) if shardings else jax.tree.map(lambda _: first_device, shapes)
  like = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes, placements
  )
  return config, read(checkpoint, PARAMS, like)


def tokenizer_source(checkpoint: pathlib.Path) -> str | pathlib.Path:
  """The tokenizer of a checkpoint's run, as a source for load_tokenizer.

  It is that of the pretrained model or, without one, the tokenizer.model that the run trained.
  """
  trained = checkpoint.parent.parent / "tokenizer.model"
  return about(checkpoint)["config"]["model"]["source"] or trained


def read(checkpoint: pathlib.Path, item: str, like: PyTree | None) -> PyTree[Array]:
  """Reads the arrays of a checkpoint.

  Args:
    checkpoint: its folder.
    item: PARAMS or REST.
    like: shapes, dtypes and shardings to restore to. None: shapes and dtypes as saved, on the first
      device.

  Raises:
    OSError: one of its files is missing or truncated.
  """
  with _quiet():
    try:
      return _read((checkpoint / item).absolute(), like)
    except Exception as error:  # Orbax and TensorStore raise a dozen kinds, Exception among them
      text = f"checkpoint {checkpoint} is damaged ({reason(error)})"
    gc.collect()  # now: the reads left by a failed restore print pages when they are collected
  raise OSError(text)


def _read(path, like):
  with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
    if like is None:
      first_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=first_device),
        reader.metadata(path).item_metadata.tree,
      )
    return reader.restore(path, args=ocp.args.StandardRestore(like))


def reason(error: BaseException) -> str:
  """A short message: the operating system's if the error has one, else the start of the error's.

  TensorStore's messages are pages long.
  """
  text = " ".join(str(error).split()) or type(error).__name__
  if system := re.search(r"([^:]+) \[os_error_code=", text):
    return system[1].strip()
  text = text.partition("See full TensorStore details")[0].partition("[tensorstore_spec")[0]
  return text[:300].strip().rstrip(".")


@contextlib.contextmanager
def _quiet():
  """Suppresses what Orbax and TensorStore print about a failed restore."""
  log = logging.getLogger("asyncio")
  level, hook = log.level, sys.unraisablehook
  log.setLevel(logging.CRITICAL + 1)
  sys.unraisablehook = lambda _: None
  try:
    yield
  finally:
    log.setLevel(level)
    sys.unraisablehook = hook
