"""Mistakes in calls of the library are sentences, not broadcasts or tracebacks from within.

The functions are called as a user has them, without the checks of annotations in conftest.py.
"""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import rollout
from poise_jax.errors import UserError
from poise_jax.learner import losses, update
from poise_jax.learner.losses import PolicyLossConfig
from poise_jax.learner.update import UpdateConfig
from poise_jax.models import ModelConfig
from poise_jax.rollout import sampler
from poise_jax.types import Experience, Prompts, Rollouts

MODEL = ModelConfig("qwen3", 11, 8, 8, 1, 2, 1, 4, tie_word_embeddings=True)
B, T = 4, 6


def loss(advantages, batch=B, **options):
  ones = jnp.ones((batch, T))
  policy_loss = inspect.unwrap(losses.policy_loss)
  return policy_loss(-ones, -ones, advantages, ones > 0, PolicyLossConfig(**options))


@pytest.mark.parametrize(
  "batch,shape", [(B, (B,)), (T, (T,)), (B, (1, T)), (B, (T, 1)), (B, ()), (B, (B, T, 1))]
)
def test_advantages_that_would_broadcast_are_refused(batch, shape):
  message = rf"advantages must have the shape \({batch}, {T}\), .* or \({batch}, 1\)"
  with pytest.raises(UserError, match=message) as caught:
    loss(jnp.ones(shape), batch)
  assert ("advantages[:, None]" in str(caught.value)) == (shape == (batch,))


@pytest.mark.parametrize("shape", [(B, 1), (B, T)])
def test_advantages_of_a_sequence_or_a_token_are_taken(shape):
  assert float(loss(jnp.ones(shape))[0]) == pytest.approx(-1)


@pytest.mark.parametrize(
  "option,values",
  [
    ("kl_coef", "reference_logprobs"),
    ("entropy_coef", "entropies"),
    ("importance_cap", "sampler_logprobs"),
  ],
)
def test_an_option_without_its_values_is_named(option, values):
  with pytest.raises(UserError, match=f"{option}=0.5 needs {values}, .*set {option} to 0"):
    loss(jnp.ones((B, 1)), **{option: 0.5})


def experience(p=2, n=2):
  zeros = np.zeros((p, n, T), np.float32)
  prompts = Prompts(np.zeros((p, 3), np.int32), np.ones((p, 3), bool))
  rollouts = Rollouts(
    prompts, zeros.astype(np.int32), zeros == 0, zeros, zeros, zeros[..., 0] > 0, zeros[..., :1]
  )
  ids = np.zeros(p, np.int32)
  return Experience(rollouts, zeros[..., 0], zeros, ids, ids)


@pytest.mark.parametrize("shape", [(4,), (2, T), (2, 2, 1), (2, 2, T, 1), (1, 4)])
def test_an_update_refuses_advantages_of_another_shape(shape):
  config = UpdateConfig(minibatch_size=4, microbatch_size=4)
  minibatches = inspect.unwrap(update.policy_minibatches)
  with pytest.raises(UserError, match=r"shape \(2, 2\), one a response, or \(2, 2, 6\)"):
    minibatches(MODEL, config, {}, experience(), jnp.ones(shape))


def test_a_kl_without_a_reference_is_named():
  config = UpdateConfig(loss=PolicyLossConfig(kl_coef=0.1), minibatch_size=4, microbatch_size=4)
  minibatches = inspect.unwrap(update.policy_minibatches)
  with pytest.raises(UserError, match="train.loss.kl_coef=0.1 needs `reference`"):
    minibatches(MODEL, config, {}, experience(), jnp.ones((2, 2)))


@pytest.fixture
def sample(monkeypatch):
  """rollout.sample up to its program."""
  monkeypatch.setattr(sampler, "_sample", lambda *_: "sampled")
  return inspect.unwrap(rollout.sample)


def call(sample, mask, eos_ids=(1,), key=None, token=0):
  mask = np.array(mask, bool)
  prompts = Prompts(np.broadcast_to(np.int32(token), mask.shape), mask)
  options = rollout.RolloutConfig(n=1, max_new_tokens=7, eos_ids=eos_ids)
  key = jax.random.key(0) if key is None else key
  return sample(MODEL, {}, prompts, key, options)


@pytest.mark.parametrize(
  "key,message",
  [
    (5, r"got int64 of shape \(\)"),
    (jax.random.PRNGKey(3), r"got uint32 of shape \(2,\); jax.random.wrap_key_data\(key\)"),
    (jax.random.split(jax.random.key(0), 3), r"one for each of 2 prompts, got \(3,\)"),
  ],
)
def test_keys_that_are_none_are_named(sample, key, message):
  with pytest.raises(UserError, match=message):
    call(sample, [[1, 1], [1, 1]], key=key)


@pytest.mark.parametrize(
  "key", [jax.random.wrap_key_data(jax.random.PRNGKey(3)), jax.random.split(jax.random.key(0))]
)
def test_a_key_or_one_a_prompt_is_taken(sample, key):
  assert call(sample, [[1, 1], [1, 1]], key=key) == "sampled"


@pytest.mark.parametrize("token", [-1, 11, 40_000])
def test_tokens_that_the_model_does_not_know_are_named(sample, token):
  with pytest.raises(UserError, match=f"prompt 1 has the token {token}, .* has 11 tokens"):
    call(sample, [[0, 1], [0, 1]], token=[[0, 0], [0, token]])
  assert call(sample, [[0, 1]], token=[[token, 0]]) == "sampled"  # padding may be anything


def test_a_prompt_without_a_token_is_named(sample):
  with pytest.raises(UserError, match="prompt 1 has no token, .* tokenizer.bos_ids"):
    call(sample, [[0, 1], [0, 0]])


@pytest.mark.parametrize("mask", [[[1, 1, 0]], [[0, 1, 1], [0, 1, 0]], [[1, 0, 1]]])
def test_prompts_padded_on_the_right_are_named(sample, mask):
  with pytest.raises(UserError, match=f"prompt {len(mask) - 1} has padding after a token"):
    call(sample, mask)


@pytest.mark.parametrize("mask", [[[1, 1, 1]], [[0, 0, 1], [0, 1, 1]]])
def test_prompts_padded_on_the_left_are_sampled(sample, mask):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert call(sample, mask) == "sampled"


def test_empty_eos_ids_are_named(sample):
  with pytest.warns(UserWarning, match="eos_ids is empty, .*max_new_tokens=7 tokens"):
    call(sample, [[1]], eos_ids=())
