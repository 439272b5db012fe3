"""A pretrained decoder from any source: Hugging Face, GGUF or a run of this package."""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from poise_jax.models.config import ModelConfig
from poise_jax.models.io import run_checkpoint
from poise_jax.models.io.gguf import open_gguf
from poise_jax.models.io.huggingface import folder_config, open_folder
from poise_jax.models.io.sources import local_path
from poise_jax.models.io.tensors import ModelFiles, check_tensors, parameters
from poise_jax.models.transformer import abstract_params


def read_config(source: str | os.PathLike) -> ModelConfig:
  """Reads the decoder's shape alone; same sources and errors as `load`."""
  path = local_path(source, weights=False)
  if checkpoint := run_checkpoint.find(path):
    return run_checkpoint.model_config(checkpoint)
  return open_gguf(path).config if path.is_file() else folder_config(path)


def load(
  source: str | os.PathLike,
  dtype: DTypeLike = jnp.float32,
  shardings: Callable[[ModelConfig], PyTree[Sharding]] | None = None,
) -> tuple[ModelConfig, PyTree[Array]]:
  """Reads a pretrained decoder.

  Args:
    source: a Hugging Face folder (config.json and safetensors, sharded or not), a hub id such as
      "Qwen/Qwen3-4B", a *.gguf file, `package:NAME/FILE.gguf` in an installed package, the workdir
      of a run (its newest checkpoint), or one of its checkpoints.
    dtype: dtype of the parameters.
    shardings: function from the decoder's shape to a tree of shardings like the parameters'. Each
      leaf goes to its devices as it is read, so that no host holds more than one leaf. None: the
      default device.

  Returns:
    The decoder's shape and its parameters in the training layout (stacked by layer).

  Raises:
    FileNotFoundError: the folder or one of its files is missing.
    UserError: a file is truncated, or has another architecture, other tensors or other shapes.
    OSError: a checkpoint is damaged.
  """
  path = local_path(source)
  if checkpoint := run_checkpoint.find(path):
    return run_checkpoint.load(checkpoint, dtype, shardings)
  files = open_gguf(path) if path.is_file() else open_folder(path)
  check_tensors(path, files)
  return files.config, _read(files, dtype, shardings)


def _read(files: ModelFiles, dtype, shardings) -> PyTree[Array]:
  shapes = abstract_params(files.config)
  placements = shardings(files.config) if shardings else jax.tree.map(lambda _: None, shapes)
  placements = jax.tree.leaves(placements, is_leaf=lambda x: x is None)
  leaves = []
  for (key, leaf, names), placement in zip(
    parameters(files.config, files.format), placements, strict=True
  ):
    array = np.empty(leaf.shape, dtype)
    slots = array if key.startswith("layers/") else array[None]
    for slot, name in zip(slots, names, strict=True):
      tensor = files.tensors[name].read()
      slot[...] = tensor.T if key.endswith("kernel") else tensor
    if placement is None:
      leaves.append(jnp.asarray(array))
    else:
      leaves.append(jax.make_array_from_callback(array.shape, placement, array.__getitem__))
  return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
