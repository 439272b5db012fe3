"""The reward of each token, compared with values by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax.training.rewards import RewardConfig, overlong_punishment, token_rewards

MASK = jnp.arange(8) < jnp.array([[3, 8], [5, 6]])[..., None]
SCORES = jnp.array([[1.0, 0.0], [0.25, 1.0]])


def test_the_last_token_gets_the_score():
  rewards = np.asarray(token_rewards(SCORES, MASK, RewardConfig()))
  expected = np.zeros((2, 2, 8))
  expected[0, 0, 2], expected[1, 0, 4], expected[1, 1, 5] = 1, 0.25, 1
  np.testing.assert_array_equal(rewards, expected)


def test_overlong_punishment_is_in_tokens_and_bounded():
  """With the numbers of DAPO: limit 20480, buffer 4096."""
  lengths = jnp.array([0.0, 16384, 18432, 20480, 30000])
  np.testing.assert_allclose(overlong_punishment(lengths, 20480, 4096, 1.0), [0, 0, -0.5, -1, -1])
  rewards = token_rewards(SCORES, MASK, RewardConfig(overlong_buffer=4, overlong_penalty=0.5))
  # Lengths 3, 8, 5 and 6 of 8 reach 0, 4, 1 and 2 tokens into the buffer of 4.
  np.testing.assert_allclose(rewards.sum(-1), [[1, -0.5], [0.25 - 0.125, 0.75]], atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_every_token_in_the_mask_gets_the_kl_penalty(estimator):
  rng = np.random.default_rng(0)
  policy, reference = rng.normal(-2, 0.5, (2, 2, 2, 8)).astype(np.float32)
  policy[~np.asarray(MASK)] = np.nan
  config = RewardConfig(kl_coef=0.1, kl_estimator=estimator)
  rewards = np.asarray(
    token_rewards(SCORES, MASK, config, jnp.asarray(policy), jnp.asarray(reference))
  )
  d = policy - reference
  kl = {"k1": d, "k2": d * d / 2, "k3": np.exp(-d) - 1 + d}[estimator]
  expected = np.asarray(token_rewards(SCORES, MASK, RewardConfig())) - 0.1 * kl
  np.testing.assert_allclose(rewards, np.where(MASK, expected, 0.0), atol=1e-6)


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(kl_coef=-1.0), "reward.kl_coef must be at least 0, got -1.0"),
    (dict(overlong_buffer=-1), "reward.overlong_buffer must be at least 0, got -1"),
    (dict(kl_estimator="k4"), "unknown reward.kl_estimator 'k4'; .*choose from k1, k2, k3"),
  ],
)
def test_invalid_options_are_an_error(changes, message):
  with pytest.raises(ValueError, match=message):
    RewardConfig(**changes)
