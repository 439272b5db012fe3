"""The tensors of a model file: their names, and which of them a decoder needs."""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from poise_jax.errors import UserError
from poise_jax.models.config import ModelConfig
from poise_jax.models.transformer import abstract_params

# Our module: (Hugging Face's, GGUF's); {} is the layer. Both formats write "weight" for what Flax
# calls kernel, embedding or scale, and store linear maps as [out, in] where Flax has [in, out].
NAMES = {
  "embed_tokens": ("model.embed_tokens", "token_embd"),
  "norm": ("model.norm", "output_norm"),
  "lm_head": ("lm_head", "output"),
  "layers/input_layernorm": ("model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
  "layers/post_attention_layernorm": (
    "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm",
  ),
  "layers/pre_feedforward_layernorm": ("model.layers.{}.pre_feedforward_layernorm", ""),
  "layers/post_feedforward_layernorm": ("model.layers.{}.post_feedforward_layernorm", ""),
  "layers/self_attn/q_proj": ("model.layers.{}.self_attn.q_proj", "blk.{}.attn_q"),
  "layers/self_attn/k_proj": ("model.layers.{}.self_attn.k_proj", "blk.{}.attn_k"),
  "layers/self_attn/v_proj": ("model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"),
  "layers/self_attn/o_proj": ("model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"),
  "layers/self_attn/q_norm": ("model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm"),
  "layers/self_attn/k_norm": ("model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm"),
  "layers/mlp/gate_proj": ("model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"),
  "layers/mlp/up_proj": ("model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"),
  "layers/mlp/down_proj": ("model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"),
}
HF, GGUF = 0, 1  # formats: positions in the pairs above


class StoredTensor(NamedTuple):
  """A tensor in a file, not read yet."""

  file: pathlib.Path
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


class ModelFiles(NamedTuple):
  """An open model: its shape and its tensors by the names of their format."""

  config: ModelConfig
  tensors: dict[str, StoredTensor]
  format: int  # HF or GGUF


def parameters(
  config: ModelConfig, format: int
) -> Iterator[tuple[str, jax.ShapeDtypeStruct, list[str]]]:
  """Each parameter in tree order: its path, its shape, and its names in files, one per layer."""
  flat, _ = jax.tree_util.tree_flatten_with_path(abstract_params(config))
  for path, leaf in flat:
    key = "/".join(entry.key for entry in path)
    module, _, kind = key.rpartition("/")
    template = NAMES[module][format] + (".bias" if kind == "bias" else ".weight")
    layers = config.num_hidden_layers if module.startswith("layers/") else 1
    yield key, leaf, [template.format(i) for i in range(layers)]


def check_tensors(path: pathlib.Path, files: ModelFiles) -> None:
  """Checks that a file has exactly the tensors of its config.

  Raises:
    UserError: a tensor is missing, unexpected or of another shape.
  """
  config, tensors, format = files
  expected = {}
  for key, leaf, names in parameters(config, format):
    shape = leaf.shape[1:] if key.startswith("layers/") else leaf.shape
    expected |= dict.fromkeys(names, shape[::-1] if key.endswith("kernel") else shape)
  if missing := expected.keys() - tensors.keys():
    raise UserError(
      f"{path} lacks {len(missing)} of the {len(expected)} tensors that its config needs "
      f"({_first(missing)}); the download is incomplete or the config belongs to another model"
    )
  harmless = {"lm_head.weight"} if config.tie_word_embeddings else set()
  extra = tensors.keys() - expected.keys() - harmless
  if extra := {name for name in extra if not name.endswith("rotary_emb.inv_freq")}:
    raise UserError(
      f"{path} has {len(extra)} tensors that do not belong to a {config.model_type} decoder with "
      f"its config ({_first(extra)}); quantised, adapter and multimodal checkpoints are not "
      "supported"
    )
  for name, shape in expected.items():
    if tensors[name].shape != shape:
      raise UserError(
        f"{tensors[name].file}: {name} has shape {tensors[name].shape}, its config needs {shape}; "
        "the config belongs to another model"
      )


def _first(names):
  return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")


def parse_config(file: pathlib.Path, hf: Mapping[str, Any]) -> ModelConfig:
  """The decoder that the config.json fields `hf` describe; errors name the file.

  Raises:
    UserError: a field is missing or not supported.
  """
  try:
    return ModelConfig.from_hf(hf)
  except KeyError as error:
    raise UserError(f"{file} lacks {error}; is it the config of a language model?") from error
  except ValueError as error:
    raise UserError(f"{file}: {error}") from error


def parse_json(file: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    UserError: the file is broken or holds something else.
  """
  try:
    content = json.loads(file.read_text())
  except ValueError as error:
    raise UserError(f"{file} is not valid JSON ({error}); download or copy it again") from error
  if not isinstance(content, dict):
    raise UserError(f"{file} is not a JSON object, {{...}}; download or copy it again")
  return content
