"""The sampler's program for GPUs and TPUs, without one: by matrix products and by kernels."""

import jax
import jax.numpy as jnp
import pytest

from poise_jax import models, rollout
from poise_jax.distributed import sharding
from poise_jax.rollout import RolloutConfig
from poise_jax.types import Prompts

CONFIG = models.ModelConfig("qwen3", 64, 32, 48, 1, 2, 1, 128, qk_norm=True)
PROMPTS = Prompts(tokens=jnp.zeros((2, 16), jnp.int32), mask=jnp.ones((2, 16), bool))


def lowered(monkeypatch, platform, attention, **options):
  """The text of the program in bfloat16 for 'cuda' or 'tpu'."""
  monkeypatch.setattr(sharding, "platform", lambda: {"cuda": "gpu"}.get(platform, platform))
  shapes = jax.eval_shape(
    lambda key: models.sampling_params(CONFIG, models.init(CONFIG, key), jnp.bfloat16),
    jax.random.key(0),
  )
  options = dict(n=2, slots=2) | options
  config = RolloutConfig(max_new_tokens=8, attention=attention, **options)
  jax.clear_caches()
  traced = jax.jit(rollout.sample, static_argnums=(0, 4)).trace(
    CONFIG, shapes, PROMPTS, jax.random.key(0), config
  )
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  jax.clear_caches()
  return text


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_matrix_products_lower(monkeypatch, platform):
  text = lowered(monkeypatch, platform, "xla", feature_layers=(0,))
  assert "paged" not in text and "stablehlo.while" in text
  assert "1x2x128x128xbf16" in text  # a cache: one key head, two slots, 24 positions in a page


def test_a_drain_in_fewer_rows_lowers(monkeypatch):
  """80 responses take turns in 64 slots, the last 32 go on in 32 rows, and the last 8 in 8."""
  text = lowered(monkeypatch, "cuda", "xla", n=40, slots=64)
  assert all(f"1x{rows}x128x128xbf16" in text for rows in (64, 32, 8))


@pytest.mark.parametrize("cache_dtype", ["", "int8"])
def test_the_gpus_kernel_lowers(monkeypatch, cache_dtype):
  monkeypatch.setattr(rollout.prefill, "attention", lambda q, *_, **__: q)  # needs cuDNN
  text = lowered(monkeypatch, "cuda", "cudnn", cache_dtype=cache_dtype)
  assert "paged_attention" in text and "triton" in text


def test_the_tpus_kernels_lower(monkeypatch):
  text = lowered(monkeypatch, "tpu", "splash", feature_layers=(0,))
  assert "paged_attention" in text and "splash" in text and "tpu_custom_call" in text
