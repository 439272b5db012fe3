"""Weights from and to Hugging Face folders: config.json and safetensors."""

import dataclasses
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
EMBEDDING, UNEMBEDDING = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = ("F64", "F32", "F16", "BF16")  # safetensors' names of the dtypes that are read


def folder_config(folder: pathlib.Path) -> ModelConfig:
  """The decoder's shape, from config.json and, where they are there, from the weights.

  As in transformers, a decoder with tied embeddings is an untied one if its files have an embedding
  and another unembedding.

  Raises:
    FileNotFoundError: the folder has no config.json.
    UserError: a file is broken or describes a model that is not supported.
  """
  if not (folder / "config.json").is_file():
    raise FileNotFoundError(
      f"{folder} has no config.json; give a folder written by save_hf or by transformers' "
      "save_pretrained, or a *.gguf file"
    )
  config = parse_config(folder / "config.json", parse_json(folder / "config.json"))
  if config.tie_word_embeddings and all(file.is_file() for file in _weight_files(folder)):
    tensors = _tensors_in(_weight_files(folder))
    if {EMBEDDING, UNEMBEDDING} <= tensors.keys() and _differ(tensors, EMBEDDING, UNEMBEDDING):
      return dataclasses.replace(config, tie_word_embeddings=False)
  return config


def open_folder(folder: pathlib.Path) -> ModelFiles:
  """Reads the shape and the tensor index of a folder.

  Raises:
    FileNotFoundError: a file is missing.
    UserError: a file is broken, or the model is not supported.
  """
  config = folder_config(folder)
  if not (files := _weight_files(folder)):
    raise FileNotFoundError(
      f"{folder} has neither {WEIGHTS} nor {INDEX}; save other formats as safetensors with "
      "transformers first"
    )
  tensors = _tensors_in(files)
  if config.tie_word_embeddings and EMBEDDING not in tensors and UNEMBEDDING in tensors:
    tensors[EMBEDDING] = tensors[UNEMBEDDING]  # of the two names of one matrix, the other
  return ModelFiles(config, tensors, HF)


def _weight_files(folder) -> list[pathlib.Path]:
  """The safetensors files of a model; none if neither they nor their index are there."""
  if (folder / WEIGHTS).is_file():
    return [folder / WEIGHTS]
  if not (folder / INDEX).is_file():
    return []
  names = parse_json(folder / INDEX).get("weight_map")
  if not names:
    raise UserError(f"{folder / INDEX} has no weight_map; download or copy it again")
  return [folder / name for name in sorted(set(names.values()))]


def _tensors_in(files) -> dict[str, StoredTensor]:
  """The tensors of safetensors files by name; see `open_folder` for errors."""
  tensors = {}
  for file in files:
    if not file.is_file():
      raise FileNotFoundError(f"{file}, a shard listed in {INDEX}, is missing; download it again")
    try:
      handle = safetensors.safe_open(file, "np")
    except safetensors.SafetensorError as error:
      raise UserError(
        f"{file} is truncated or not a safetensors file ({error}); download or copy it again"
      ) from error
    for name in handle.keys():
      part = handle.get_slice(name)
      if part.get_dtype() not in DTYPES:
        raise UserError(
          f"{file}: {name} is stored as {part.get_dtype()}; quantised weights are not supported, "
          "use the original checkpoint in bfloat16, float16 or float32"
        )
      read = functools.partial(handle.get_tensor, name)
      tensors[name] = StoredTensor(file, tuple(part.get_shape()), read)
  return tensors


def _differ(tensors, *names) -> bool:
  """Whether two matrices differ, 4,096 of their rows in memory at a time."""
  if len({tensors[name].shape for name in names}) > 1:
    return True
  one, other = (safetensors.safe_open(tensors[name].file, "np").get_slice(name) for name in names)
  rows = tensors[names[0]].shape[0]
  parts = [slice(i, min(i + 4096, rows)) for i in range(0, rows, 4096)]
  return any(not np.array_equal(one[part], other[part]) for part in parts)


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
