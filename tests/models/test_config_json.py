"""A model's config.json, beside what transformers reads from it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from model_files import edit_json, error_of, save_tiny
from tiny_models import CASES, LLAMA3

from poise_jax import models
from poise_jax.errors import UserError
from poise_jax.models.families import FAMILIES
from poise_jax.models.rotary import NoRope

LLAMA3_SCALING = {name: value for name, value in LLAMA3.items() if name != "rope_theta"}


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
def test_options_of_families_that_are_refused(case, changes, words, tmp_path):
  edit_json(save_tiny(tmp_path, case) / "config.json", **changes)
  message = error_of(models.read_config, tmp_path)
  assert all(word in message for word in words), message


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_unsupported_rope_scaling_is_refused(kind, key, tmp_path):
  save_tiny(tmp_path)
  edit_json(tmp_path / "config.json", rope_scaling={key: kind, "factor": 4.0})
  message = error_of(models.load, tmp_path)
  assert f"rope_type {kind!r} is not supported" in message and "llama3" in message


def test_rotary_embeddings_by_kind_of_layer_are_refused(tmp_path):
  by_kind = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
  edit_json(save_tiny(tmp_path) / "config.json", rope_scaling=None, rope_parameters=by_kind)
  assert "by kind of layer (full_attention)" in error_of(models.load, tmp_path)
