"""Weights from GGUF files, dequantised."""

import functools
import pathlib
from typing import Any

import gguf
import numpy as np

from poise_jax.errors import UserError
from poise_jax.models.families import FAMILIES
from poise_jax.models.io.tensors import GGUF, ModelFiles, StoredTensor, parse_config


def read_header(file: pathlib.Path) -> gguf.GGUFReader:
  """Opens a GGUF file.

  Raises:
    UserError: the file is broken.
  """
  try:
    return gguf.GGUFReader(file)
  except Exception as error:  # the reader trusts the file: a broken one can raise anything
    raise UserError(
      f"{file} is truncated or not a GGUF file ({error}); download or copy it again"
    ) from error


def open_gguf(file: pathlib.Path) -> ModelFiles:
  """Reads the shape and the tensor index of a GGUF file.

  Raises:
    UserError: the file is broken or holds a model that is not supported.
  """
  reader = read_header(file)
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  factors = tensors.pop("rope_freqs.weight", None)
  config = parse_config(file, _hf_config(file, reader.fields, tensors, factors))
  heads = {}
  if config.family.gguf == "neighbours":
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
  stored = {}
  for name, tensor in tensors.items():
    shape = tuple(int(size) for size in tensor.shape[::-1])
    read = functools.partial(_read, file, tensor, shape, heads.get(name.split(".")[-2]))
    stored[name] = StoredTensor(file, shape, read)
  return ModelFiles(config, stored, GGUF)


def _hf_config(file, fields, tensors, factors) -> dict[str, Any]:
  """The file's metadata as the fields of a config.json."""
  family = fields["general.architecture"].contents() if "general.architecture" in fields else None

  if family in FAMILIES and not FAMILIES[family].gguf:
    raise UserError(f"{file} has a {family!r} model, which is read from Hugging Face folders only")

  def get(key, default=None):
    return fields[f"{family}.{key}"].contents() if f"{family}.{key}" in fields else default

  rope = {"rope_theta": get("rope.freq_base", 10000.0)}
  if (kind := get("rope.scaling.type", "none")) != "none":
    raise UserError(
      f"{file} scales its rotary wavelengths by {kind!r}; load the model's Hugging Face folder"
    )
  if factors is not None:
    rope |= _llama3_scaling(file, factors, rope["rope_theta"])
  embedding = tensors.get("token_embd.weight")
  hf = {
    "model_type": family,
    "vocab_size": None if embedding is None else int(embedding.shape[1]),
    "hidden_size": get("embedding_length"),
    "intermediate_size": get("feed_forward_length"),
    "num_hidden_layers": get("block_count"),
    "num_attention_heads": get("attention.head_count"),
    "num_key_value_heads": get("attention.head_count_kv"),
    "head_dim": get("attention.key_length") or get("rope.dimension_count"),
    "rope_parameters": rope,
    # The file has a float32; seven digits give back the decimal number, such as 1e-05.
    "rms_norm_eps": float(f"{get('attention.layer_norm_rms_epsilon', 1e-6):.7g}"),
    "max_position_embeddings": get("context_length"),
    "tie_word_embeddings": "output.weight" not in tensors,
    "attention_bias": "blk.0.attn_output.bias" in tensors,
    "mlp_bias": "blk.0.ffn_up.bias" in tensors,
  }
  return {key: value for key, value in hf.items() if value is not None}


def _llama3_scaling(file, factors, theta) -> dict[str, Any]:
  """The rope_scaling behind the wavelength factors [head_dim / 2] of a Llama 3 model.

  GGUF stores the factors instead of the four numbers that they come from. The last three are the
  same in all Llama 3 models.
  """
  factors = _read(file, factors, (-1,), None)
  scaling = {
    "rope_type": "llama3",
    "factor": float(factors.max()),
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }
  turns = 8192 * theta ** -np.linspace(0, 1, factors.size, endpoint=False) / (2 * np.pi)
  unscaled = np.clip((turns - 1.0) / (4.0 - 1.0), 0.0, 1.0)
  if not np.allclose(factors, 1 / (unscaled + (1 - unscaled) / scaling["factor"]), rtol=1e-4):
    raise UserError(
      f"{file} scales its rotary wavelengths (rope_freqs.weight) differently from Llama 3; load "
      "the model's Hugging Face folder, whose config.json has the parameters"
    )
  return scaling


def _read(file, tensor, shape, heads) -> np.ndarray:
  """The tensor as Hugging Face orders it; `heads` of a rotated projection in Llama's order."""
  try:
    array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
  except NotImplementedError as error:
    raise UserError(f"{file}: {tensor.name}: {error}; use another quantisation") from error
  if heads is None:
    return array
  # llama.cpp rotates neighbours (2i, 2i + 1) where Hugging Face rotates halves (i, i + K / 2).
  return array.reshape(heads, -1, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
