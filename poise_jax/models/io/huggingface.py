"""Weights from and to Hugging Face folders: config.json and safetensors."""

import functools
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from poise_jax.distributed.sharding import fetch
from poise_jax.errors import UserError
from poise_jax.models.config import ModelConfig
from poise_jax.models.io.tensors import (
  HF,
  ModelFiles,
  StoredTensor,
  parameters,
  parse_config,
  parse_json,
)
from poise_jax.models.transformer import abstract_params

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F64", "F32", "F16", "BF16")  # of safetensors, for weights that are not quantised


def folder_config(folder: pathlib.Path) -> ModelConfig:
  """The decoder's shape, from config.json.

  Raises:
    FileNotFoundError: the folder has no config.json.
    UserError: the file is broken or describes a model that is not supported.
  """
  if not (folder / "config.json").is_file():
    raise FileNotFoundError(
      f"{folder} has no config.json; give a folder written by save_hf or by transformers' "
      "save_pretrained, or a *.gguf file"
    )
  return parse_config(folder / "config.json", parse_json(folder / "config.json"))


def open_folder(folder: pathlib.Path) -> ModelFiles:
  """Reads the shape and the tensor index of a folder.

  Raises:
    FileNotFoundError: a file is missing.
    UserError: a file is broken, or the model is not supported.
  """
  config = folder_config(folder)
  files = [WEIGHTS]
  if not (folder / WEIGHTS).is_file():
    if not (folder / INDEX).is_file():
      raise FileNotFoundError(
        f"{folder} has neither {WEIGHTS} nor {INDEX}; save other formats as safetensors with "
        "transformers first"
      )
    files = sorted(set(parse_json(folder / INDEX)["weight_map"].values()))
  tensors = {}
  for file in (folder / name for name in files):
    if not file.is_file():
      raise FileNotFoundError(f"{file}, a shard listed in {INDEX}, is missing; download it again")
    try:
      handle = safetensors.safe_open(file, "np")
    except safetensors.SafetensorError as error:
      raise UserError(
        f"{file} is truncated or not a safetensors file ({error}); download or copy it again"
      ) from error
    for name in handle.keys():
      stored = handle.get_slice(name)
      if stored.get_dtype() not in DTYPES:
        raise UserError(
          f"{file}: {name} has dtype {stored.get_dtype()}; quantised weights are not supported, "
          f"save the model in one of {', '.join(DTYPES)}"
        )
      shape = tuple(stored.get_shape())
      tensors[name] = StoredTensor(file, shape, functools.partial(handle.get_tensor, name))
  _check_tied(folder, config, tensors)
  return ModelFiles(config, tensors, HF)


def _check_tied(folder, config, tensors):
  """Raises UserError if the folder has an unembedding of its own and a config without one."""
  pair = [tensors.get(f"{name}.weight") for name in ("lm_head", "model.embed_tokens")]
  if not config.tie_word_embeddings or None in pair or pair[0].shape != pair[1].shape:
    return
  if not np.array_equal(*(tensor.read() for tensor in pair)):
    raise UserError(
      f"{folder} has an lm_head.weight that differs from its embedding, and transformers uses it, "
      "but config.json has tie_word_embeddings=true; set that to false"
    )


def save_hf(
  folder: str | os.PathLike,
  config: ModelConfig,
  params: PyTree[Array],
  dtype: DTypeLike | None = None,
  max_shard_bytes: int = 5_000_000_000,
) -> None:
  """Writes config.json and safetensors that transformers loads.

  Files are written to a folder inside and moved into place at the end, config.json last, so that a
  folder with a config.json is complete even if a writer was killed. Other files of the folder stay.
  With several processes all must call this; the first one writes.

  Args:
    folder: output folder, created if needed; a model in it is replaced.
    config: the decoder's shape.
    params: parameters in the training layout.
    dtype: dtype in the files; None keeps each parameter's.
    max_shard_bytes: maximum size of a file's tensors, unless a single one is larger.

  Raises:
    UserError: the parameters do not belong to `config`.
  """
  shapes = abstract_params(config)
  if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, shapes):
    raise UserError("the parameters do not have the names and shapes of the config")
  values = jax.tree.leaves(params)
  kinds = [jax.ShapeDtypeStruct(x.shape, dtype or x.dtype) for x in values]
  shards = _shards(config, kinds, max_shard_bytes)

  folder = pathlib.Path(folder)
  draft = folder / ".partial"
  writer = jax.process_index() == 0
  if writer:
    shutil.rmtree(draft, ignore_errors=True)  # left by a writer that was killed
    draft.mkdir(parents=True)
  tensors = _tensors(config, values, kinds)
  for file, names in shards.items():
    shard = dict(itertools.islice(tensors, len(names)))
    if writer:
      safetensors.numpy.save_file(shard, draft / file, metadata={"format": "pt"})
  if writer:
    texts = _texts(config, kinds, shards)
    for file, content in texts.items():
      (draft / file).write_text(json.dumps(content, indent=2) + "\n")
    _move(draft, folder, [*shards, *texts])


def _shards(config, kinds, max_bytes) -> dict[str, list[str]]:
  """The names of the files, and of the tensors in each."""
  shards, size = [[]], 0
  for (_, _, names), kind in zip(parameters(config, HF), kinds, strict=True):
    tensor_bytes = kind.size * kind.dtype.itemsize // len(names)
    for name in names:
      if shards[-1] and size + tensor_bytes > max_bytes:
        shards.append([])
        size = 0
      shards[-1].append(name)
      size += tensor_bytes
  if len(shards) == 1:
    return {WEIGHTS: shards[0]}
  return {
    f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, 1)
  }


def _tensors(config, values, kinds) -> Iterator[tuple[str, np.ndarray]]:
  """Names and arrays in Hugging Face's layout, one parameter on the host at a time."""
  for (key, _, names), value, kind in zip(parameters(config, HF), values, kinds, strict=True):
    value = np.asarray(fetch(value)).astype(kind.dtype, copy=False)
    slots = value if key.startswith("layers/") else value[None]
    for name, slot in zip(names, slots, strict=True):
      # safetensors writes the memory of an array, so a transposed view must be copied.
      yield name, np.ascontiguousarray(slot.T if key.endswith("kernel") else slot)


def _texts(config, kinds, shards) -> dict[str, dict[str, Any]]:
  """The JSON files, config.json last."""
  texts = {"config.json": {**config.to_hf(), "torch_dtype": kinds[0].dtype.name}}
  if len(shards) > 1:
    total = sum(kind.size * kind.dtype.itemsize for kind in kinds)
    file_of = {name: file for file, names in shards.items() for name in names}
    texts = {INDEX: {"metadata": {"total_size": total}, "weight_map": file_of}, **texts}
  return texts


def _move(draft, folder, files):
  """Replaces the model in `folder` by the `files` of `draft`, in their order."""
  (folder / "config.json").unlink(missing_ok=True)
  for stale in [*folder.glob("model*.safetensors"), folder / INDEX]:
    stale.unlink(missing_ok=True)
  for file in files:
    os.replace(draft / file, folder / file)
  draft.rmdir()
