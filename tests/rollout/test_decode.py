"""A decode step called alone: a loop over it in Python gives the sampler's rollouts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import models, rollout
from poise_jax.rollout import RolloutConfig, decode
from poise_jax.rollout.prefill import prefill
from poise_jax.types import Prompts

CONFIG = models.ModelConfig("qwen3", 40, 32, 48, 1, 4, 2, 8, qk_norm=True, rope_theta=1e4)
OPTIONS = RolloutConfig(
  n=2, max_new_tokens=6, top_k=8, eos_ids=(1, 2, 3), feature_layers=(0,), feature_window=3
)
PROMPTS = Prompts(
  tokens=jnp.arange(15).reshape(3, 5) + 4, mask=jnp.arange(5) >= jnp.array([[0], [2], [4]])
)
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def params():
  """Parameters in the sampling layout; kernels are large enough for tokens to differ."""
  init = jax.tree.map(lambda x: 4 * x, models.init(CONFIG, jax.random.key(0)))
  return models.sampling_params(CONFIG, init)


@jax.jit
def start(params):
  """What the steps read, and the state after the first draw with room for all tokens."""
  row_keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(6))
  prompt = prefill(CONFIG, params, PROMPTS, OPTIONS)
  inputs = decode.inputs(CONFIG, params, PROMPTS, prompt, row_keys, OPTIONS)
  state = decode.start(prompt.hidden, inputs, CONFIG, OPTIONS)
  return inputs, decode.grow(state, OPTIONS.max_new_tokens)


step = jax.jit(functools.partial(decode.step, config=CONFIG, rollout=OPTIONS))


def test_steps_in_a_python_loop_give_the_samplers_rollouts(params):
  inputs, state = start(params)
  for _ in range(OPTIONS.max_new_tokens):
    state = step(state, inputs)
  expected = rollout.sample(CONFIG, params, PROMPTS, KEY, OPTIONS)
  assert 0.2 < expected.mask.mean() < 1  # some responses end early
  for name in ("tokens", "mask"):
    np.testing.assert_array_equal(getattr(state, name)[:, :, :-1], getattr(expected, name))
  for name in ("logprobs", "entropies"):
    np.testing.assert_allclose(getattr(state, name)[:, :, :-1], getattr(expected, name), atol=1e-5)


def test_a_step_changes_living_rows_only(params):
  inputs, state = start(params)
  state = state.replace(mask=state.mask.at[1, 0, 0].set(False))
  after = step(state, inputs)
  assert int(after.t) == int(state.t) + 1
  assert not after.mask[1, 0, 1] and after.tokens[1, 0, 1] == OPTIONS.pad_id
  np.testing.assert_array_equal(after.window[:, 1, 0], state.window[:, 1, 0])
  alive = np.isin(state.tokens[:, :, 0], OPTIONS.eos_ids, invert=True) & state.mask[:, :, 0]
  np.testing.assert_array_equal(after.mask[:, :, 1], alive)
