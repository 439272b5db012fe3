"""Weights from files of llama.cpp."""

import gguf
import numpy as np
import pytest
import torch
import transformers
from model_files import SMOLLM2, assert_same, error_of, needs_smollm2
from tiny_models import LLAMA3, load_tiny

from poise_jax import models
from poise_jax.models.io import tensors
from poise_jax.models.io.sources import local_path


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


def test_gguf_with_llama3_scaling(tmp_path):
  original = LLAMA3 | {"original_max_position_embeddings": 8192}
  file = write_gguf(tmp_path / "m.gguf", "llama-odd", factors=wavelength_factors(**original))
  config, params = models.load(file)
  assert config.rope_scaling == models.RopeScaling(8.0, 1.0, 4.0, 8192)
  assert_same(params, load_tiny("llama-odd")[2])  # with biases; those of q and k are permuted

  file = write_gguf(tmp_path / "odd.gguf", "llama-odd", factors=wavelength_factors(**LLAMA3))
  message = error_of(models.load, file)
  assert str(file) in message and "rope_freqs.weight" in message and "config.json" in message


def test_gguf_errors(tmp_path):
  file = write_gguf(tmp_path / "m.gguf", "qwen2", family="mamba")
  message = error_of(models.load, file)
  assert str(file) in message and "'mamba'" in message and "qwen2" in message
  yarn = write_gguf(tmp_path / "yarn.gguf", "qwen2", scaling=gguf.RopeScalingType.YARN)
  assert "'yarn'" in error_of(models.load, yarn)
  for family in ("olmo2", "olmo3"):
    other = write_gguf(tmp_path / f"{family}.gguf", "qwen2", family)
    assert "Hugging Face folders only" in error_of(models.load, other)
  # Read as another family, the biases are unexpected or missing.
  assert "attn_q.bias" in error_of(models.load, write_gguf(tmp_path / "b.gguf", "qwen2", "llama"))
  assert "attn_q.bias" in error_of(models.load, write_gguf(tmp_path / "c.gguf", "qwen3", "qwen2"))


@pytest.mark.parametrize("keep", [0, 3, 50, 300, -1])
def test_truncated_gguf(keep, tmp_path):
  file = write_gguf(tmp_path / "m.gguf", "qwen2")
  file.write_bytes(file.read_bytes()[:keep])
  message = error_of(models.load, file)
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
