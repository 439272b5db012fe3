"""Options that save memory in the sampler: small cache dtypes, chunked prefill."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import models, rollout
from poise_jax.learner import update
from poise_jax.learner.update import UpdateConfig
from poise_jax.rollout import RolloutConfig
from poise_jax.rollout.prefill import prefill
from poise_jax.types import Prompts

CONFIG = models.ModelConfig("qwen3", 60, 48, 64, 2, 4, 2, 16, qk_norm=True, rope_theta=1e4)
BASE = RolloutConfig(n=2, max_new_tokens=8, eos_ids=(1, 2), feature_layers=(0, 1), feature_window=4)
PROMPTS = Prompts(
  tokens=jnp.asarray(np.random.default_rng(0).integers(3, 60, (4, 7)), jnp.int32),
  mask=jnp.arange(7) >= jnp.array([2, 0, 5, 1])[:, None],
)


@pytest.fixture(scope="module")
def params():
  """Kernels large enough for tokens to differ in their probabilities."""
  init = jax.jit(models.init, static_argnums=0)(CONFIG, jax.random.key(0))
  return jax.tree.map(lambda x: jnp.where(x == 1, x, 6 * x), init)


def sample(params, **changes):
  config = dataclasses.replace(BASE, **changes)
  return rollout.sample(CONFIG, params, PROMPTS, jax.random.key(1), config)


def test_prefill_in_chunks_changes_nothing(params):
  """7 positions in 3 chunks of 3 and 2 of 4; one row's last chunks are all padding."""
  plain = sample(params)
  for chunk in (3, 4):
    out = sample(params, prefill_chunk=chunk)
    np.testing.assert_array_equal(out.tokens, plain.tokens)
    for name in ("logprobs", "entropies", "features"):
      np.testing.assert_allclose(getattr(out, name), getattr(plain, name), atol=1e-5)


def test_prefill_has_equal_chunks(params):
  """9 positions, at most 8 at a time: two chunks of 5, not 8 and another 8 for the last one."""
  config, tokens = dataclasses.replace(BASE, prefill_chunk=8), jnp.zeros((2, 9), jnp.int32)
  weights = jax.eval_shape(lambda: models.sampling_params(CONFIG, params))
  program = jax.jit(prefill, static_argnums=(0, 4))
  text = program.lower(CONFIG, weights, tokens, jnp.full(2, 9), config).as_text()
  assert "tensor<2x10x" in text and "tensor<2x16x" not in text


def test_prefill_needs_the_memory_of_a_chunk(params, optimized):
  """Scores and MLP activations of 256 positions, all at once or 32 at a time."""

  def temporary(chunk):
    config = dataclasses.replace(BASE, prefill_chunk=chunk)
    tokens, lengths = jnp.zeros((2, 256), jnp.int32), jnp.full(2, 256)
    weights = jax.eval_shape(lambda: models.sampling_params(CONFIG, params))
    program = jax.jit(prefill, static_argnums=(0, 4))
    program = program.lower(CONFIG, weights, tokens, lengths, config)
    return program.compile().memory_analysis().temp_size_in_bytes

  scores = 2 * 4 * 256 * 256 * 4
  assert temporary(0) - temporary(32) > scores / 2


@pytest.mark.parametrize("dtype,mean,most", [("bfloat16", 2e-3, 0.02), ("int8", 5e-3, 0.03)])
def test_smaller_cache_dtypes_are_close(params, dtype, mean, most):
  """The sampler's log-probs against those of a float32 teacher-forced pass."""
  out = sample(params, cache_dtype=dtype)
  expected = update.sequence_logprobs(CONFIG, params, out, UpdateConfig(microbatch_size=8))
  error = np.abs(out.logprobs - expected)[np.asarray(out.mask)]
  assert np.std(np.asarray(expected)[np.asarray(out.mask)]) > 0.5  # so that errors can show
  assert 1e-6 < error.mean() < mean and error.max() < most


@pytest.mark.parametrize(
  "change,message",
  [
    (dict(cache_dtype="int4"), "unknown rollout.cache_dtype 'int4'; did you mean 'int8'"),
    (dict(prefill_chunk=-1), "rollout.prefill_chunk must not be negative, got -1"),
  ],
)
def test_bad_options_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(BASE, **change)
