"""Tiny random transformers models with unusual settings, and the same models in this package."""

import functools
import tempfile

import numpy as np
import torch
import transformers

from poise_jax import models

LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 5e5,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,  # short enough to matter within the test's length
}


def plain(theta):
  return {"rope_type": "default", "rope_theta": theta}


def sliding(pattern):
  """The kinds of layers, from a letter for each."""
  return ["sliding_attention" if letter == "s" else "full_attention" for letter in pattern]


YARN = {
  "rope_type": "yarn",
  "rope_theta": 3e4,
  "factor": 8.0,
  "original_max_position_embeddings": 24,  # few turns, so that all ranges of frequencies occur
  "beta_fast": 3.0,
  "beta_slow": 0.5,
}

CASES = {
  "llama-odd": (
    "Llama",
    dict(
      rope_parameters=LLAMA3,
      attention_bias=True,
      mlp_bias=True,
      head_dim=10,
      tie_word_embeddings=False,
      rms_norm_eps=1e-3,
    ),
  ),
  "llama-smollm2": ("Llama", dict(rope_parameters=plain(1e5), tie_word_embeddings=True)),
  "qwen2": ("Qwen2", dict(rope_parameters=plain(1e6), tie_word_embeddings=True)),
  "qwen3": (
    "Qwen3",
    dict(rope_parameters=plain(5e6), head_dim=12, tie_word_embeddings=True, attention_bias=False),
  ),
  "qwen3-bias": (
    "Qwen3",
    dict(rope_parameters=plain(5e6), head_dim=12, tie_word_embeddings=False, attention_bias=True),
  ),
  "qwen3-yarn": (
    "Qwen3",
    dict(rope_parameters=YARN, head_dim=20, tie_word_embeddings=False, attention_bias=False),
  ),
  "qwen2-window": (
    "Qwen2",
    dict(
      rope_parameters=plain(2e4),
      tie_word_embeddings=True,
      use_sliding_window=True,
      sliding_window=5,
      max_window_layers=1,
    ),
  ),
  "mistral": (
    "Mistral",
    dict(rope_parameters=plain(3e3), head_dim=12, tie_word_embeddings=False, sliding_window=5),
  ),
  "olmo2": (
    "Olmo2",
    dict(rope_parameters=plain(7e4), head_dim=10, attention_bias=True, rms_norm_eps=1e-4),
  ),
  "olmo3": (
    "Olmo3",
    dict(
      rope_parameters={"full_attention": YARN, "sliding_attention": plain(2e3)},
      head_dim=10,
      num_hidden_layers=4,  # the last is full
      sliding_window=4,
    ),
  ),
  "smollm3": (
    "SmolLM3",
    dict(
      rope_parameters=plain(5e3),
      head_dim=10,
      mlp_bias=True,
      no_rope_layers=[0, 1, 0],
      layer_types=sliding("fss"),
      use_sliding_window=True,
      sliding_window=4,
    ),
  ),
  "gemma3": (
    "Gemma3Text",
    dict(
      rope_parameters={
        "full_attention": {"rope_type": "linear", "rope_theta": 4e3, "factor": 3.0},
        "sliding_attention": plain(3e2),
      },
      head_dim=10,
      query_pre_attn_scalar=23,
      attention_bias=True,
      layer_types=sliding("sfs"),
      sliding_window=5,
      rms_norm_eps=1e-3,
    ),
  ),
}
LENGTHS = (12, 7, 1)


def tiny(case):
  """A transformers model with random weights, biases and norms, so that no bug hides behind a 0."""
  family, options = CASES[case]
  sizes = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
  )
  options = {**sizes, "attn_implementation": "eager", **options}
  config = getattr(transformers, f"{family}Config")(**options)
  model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      noise = torch.randn(weight.shape, generator=generator)
      if "norm" in name:
        weight.copy_((0 if family.startswith("Gemma") else 1) + 0.3 * noise)
      else:
        weight.copy_(noise * (0.3 if weight.ndim == 1 else weight.shape[1] ** -0.5))
  return model


def batch():
  """Tokens and mask [3, 12] of rows with unequal lengths, padded on the left."""
  mask = np.arange(LENGTHS[0]) >= LENGTHS[0] - np.array(LENGTHS)[:, None]
  tokens = np.random.default_rng(1).integers(0, 97, mask.shape)
  return np.where(mask, tokens, 0), mask


def run_transformers(model, tokens, mask):
  """Logits [B, T, V], final hidden states [B, T, D] and the blocks' outputs [L, B, T, D]."""
  blocks = []
  for layer in model.model.layers:
    layer.register_forward_hook(
      lambda _, __, out: blocks.append(out[0] if isinstance(out, tuple) else out)
    )
  mask = torch.tensor(mask)
  with torch.no_grad():
    out = model(
      input_ids=torch.tensor(tokens),
      attention_mask=mask.long(),
      position_ids=(mask.long().cumsum(-1) - 1).clamp(min=0),
      output_hidden_states=True,
    )
  states = out.hidden_states
  # output_hidden_states are the blocks' outputs, except the last, which has the final norm.
  for state, block in zip(states[1:-1], blocks[:-1], strict=True):
    assert torch.equal(state, block)
  return tuple(x.float().numpy() for x in (out.logits, states[-1], torch.stack(blocks)))


@functools.cache
def load_tiny(case):
  """The transformers model, and its config and parameters in this package."""
  model = tiny(case)
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    return model, *models.load(folder)
