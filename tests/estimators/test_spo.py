"""SPO's Beta counts against values computed by hand, and its drift over three steps."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bias_variance import experience
from poise_jax import estimators, models
from poise_jax.estimators import spo
from poise_jax.learner.update import UpdateConfig, sequence_logprobs
from poise_jax.models import ModelConfig
from poise_jax.rollout import RolloutConfig
from poise_jax.types import Prompts


def test_values_before_the_first_step():
  np.testing.assert_allclose(spo.value(spo.init(3)), 0.5)
  state = spo.init(3, jnp.array([0.0, 8.0, 2.0]), trials=8)
  np.testing.assert_allclose(spo.value(state), [0.5 / 9, 8.5 / 9, 2.5 / 9], rtol=1e-6)
  np.testing.assert_allclose(state.successes + state.failures, 8.0, rtol=1e-6)


def test_drift_forgets():
  drift = jnp.array([0.0, 0.006, 0.012, 0.06, 9.0])
  expected = [0.96, 2**-0.1, 0.875, 0.875, 0.875]
  np.testing.assert_allclose(spo.retention(drift), np.clip(expected, 0.875, 0.96), rtol=1e-5)
  assert 0.875 < spo.retention(jnp.array([0.006]))[0] < 0.96


def test_only_the_prompts_of_the_step_change():
  state = spo.init(4)
  state = spo.update(state, jnp.array([2, 0]), jnp.array([1.0, 0.25]), jnp.array([0.0, 9.0]))
  np.testing.assert_allclose(state.successes, [0.875 * 0.5 + 0.25, 0.5, 0.96 * 0.5 + 1, 0.5])
  np.testing.assert_allclose(state.failures, [0.875 * 0.5 + 0.75, 0.5, 0.96 * 0.5, 0.5])


def test_the_value_follows_the_reward():
  state = spo.init(2)
  for _ in range(200):
    state = spo.update(state, jnp.arange(2), jnp.array([1.0, 0.3]), jnp.full(2, 0.01))
  np.testing.assert_allclose(spo.value(state), [1.0, 0.3], atol=1e-3)


def test_uncertain_prompts_have_the_largest_weight():
  state = spo.Tracker(jnp.array([0.0, 1.0, 1.0]), jnp.array([1.0, 1.0, 0.0]))
  np.testing.assert_allclose(spo.priorities(state), [0.05, 0.55, 0.05], rtol=1e-6)


def test_spo_measures_drift_on_the_previous_response_to_a_prompt():
  """Three steps: a prompt's first step forgets 4 %, a later one depends on the policy's change."""
  model = ModelConfig("qwen3", 30, 16, 24, 1, 2, 1, 8)
  update, length = UpdateConfig(minibatch_size=2, microbatch_size=2), 4
  rollout = RolloutConfig(n=1, max_new_tokens=length)
  context = estimators.EstimatorContext(rollout, model, update, prompts=5)
  estimator = estimators.make("spo", context)
  policies = [models.init(model, jax.random.key(i)) for i in range(3)]
  rng = np.random.default_rng(0)
  prompt_tokens = jnp.asarray(rng.integers(0, 30, (5, 3)), jnp.int32)

  def sampled(ids, rewards, params):
    ids = jnp.array(ids)
    batch = experience(np.array(rewards)[:, None], np.zeros((2, 1, 0)))
    mask = jnp.asarray(np.arange(length) < rng.integers(1, length + 1, (2, 1, 1)))
    rollouts = batch.rollouts.replace(
      prompts=Prompts(prompt_tokens[ids], jnp.ones((2, 3), bool)),
      tokens=jnp.asarray(rng.integers(0, 30, (2, 1, length)), jnp.int32),
      mask=mask,
    )
    rollouts = rollouts.replace(logprobs=sequence_logprobs(model, params, rollouts, update))
    rewards = jnp.where(jnp.arange(length) == 0, batch.token_rewards, 0.0)
    return batch.replace(rollouts=rollouts, prompt_ids=ids, token_rewards=rewards)

  state = estimator.init(())
  first = sampled([3, 1], [1.0, 0.0], policies[0])
  estimate = estimator.estimate(state, first)
  np.testing.assert_allclose(estimate.baselines, 0.5)
  np.testing.assert_allclose(
    estimate.advantages, [[0.5**0.5], [-(0.5**0.5)]], atol=1e-4
  )  # +-0.5 whitened
  state = estimator.update(state, first, policies[1], ())
  np.testing.assert_allclose(state.tracker.successes, [0.5, 0.48, 0.5, 1.48, 0.5], atol=1e-6)
  second = sampled([1, 4], [1.0, 1.0], policies[1])
  baselines = estimator.estimate(state, second).baselines
  np.testing.assert_allclose(baselines, [[0.48 / 1.96], [0.5]], rtol=1e-5)
  state = estimator.update(state, second, policies[2], ())
  now = sequence_logprobs(model, policies[2], first.rollouts, update)[1, 0]
  then, mask = first.rollouts.logprobs[1, 0], np.asarray(first.rollouts.mask[1, 0])
  drift = np.abs(np.asarray(now - then))[mask].mean()
  share = np.clip(2 ** (-drift / 0.06), 0.875, 0.96)
  expected = [0.5, share * 0.48 + 1, 0.5, 1.48, 1.48]
  np.testing.assert_allclose(state.tracker.successes, expected, rtol=1e-5)
  assert estimator.priorities(state).shape == (5,)
