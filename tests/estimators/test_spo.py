"""SPO's Beta counts against values computed by hand, and its drift over three steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


MODEL, LENGTH = ModelConfig("qwen3", 30, 16, 24, 1, 2, 1, 8), 4


def make(update):
  rollout = RolloutConfig(n=1, max_new_tokens=LENGTH)
  context = estimators.EstimatorContext(rollout, MODEL, update, prompts=5)
  return estimators.make("spo", context)


def sampled(rng, ids, rewards, params, mismatch=0.0):
  """Random responses to two prompts; the sampler's log-probs differ from the trainer's in float32
  by `mismatch` nats."""
  ids = jnp.array(ids)
  prompt_tokens = jnp.asarray(np.random.default_rng(0).integers(0, 30, (5, 3)), jnp.int32)
  batch = experience(np.array(rewards)[:, None], np.zeros((2, 1, 0)))
  rollouts = batch.rollouts.replace(
    prompts=Prompts(prompt_tokens[ids], jnp.ones((2, 3), bool)),
    tokens=jnp.asarray(rng.integers(0, 30, (2, 1, LENGTH)), jnp.int32),
    mask=jnp.asarray(np.arange(LENGTH) < rng.integers(1, LENGTH + 1, (2, 1, 1))),
  )
  logprobs = sequence_logprobs(
    MODEL, params, rollouts, UpdateConfig(minibatch_size=2, microbatch_size=2)
  )
  rewards = jnp.where(jnp.arange(LENGTH) == 0, batch.token_rewards, 0.0)
  rollouts = rollouts.replace(logprobs=logprobs + mismatch)
  return batch.replace(rollouts=rollouts, prompt_ids=ids, token_rewards=rewards)


def test_spo_measures_drift_on_the_previous_response_to_a_prompt():
  """Three steps: a prompt's first step forgets 4 %, a later one depends on how far the trainer's
  log-probs have moved since the step that sampled the response."""
  update = UpdateConfig(minibatch_size=2, microbatch_size=2)
  estimator, rng = make(update), np.random.default_rng(0)
  near = models.init(MODEL, jax.random.key(0))
  away = jax.tree.map(lambda x: 1.06 * x, near)
  policies = [near, near, away]  # before the first step, and after each step
  state = estimator.init(())
  first = sampled(rng, [3, 1], [1.0, 0.0], policies[0], mismatch=0.3)
  estimate = estimator.estimate(state, first)
  np.testing.assert_allclose(estimate.baselines, 0.5)
  np.testing.assert_allclose(
    estimate.advantages, [[0.5**0.5], [-(0.5**0.5)]], atol=1e-4
  )  # +-0.5 whitened
  state = estimator.update(state, first, policies[1], ())
  np.testing.assert_allclose(state.tracker.successes, [0.5, 0.48, 0.5, 1.48, 0.5], atol=1e-6)
  second = sampled(rng, [1, 4], [1.0, 1.0], policies[1], mismatch=-0.2)
  baselines = estimator.estimate(state, second).baselines
  np.testing.assert_allclose(baselines, [[0.48 / 1.96], [0.5]], rtol=1e-5)
  state = estimator.update(state, second, policies[2], ())
  then, now = (
    np.asarray(sequence_logprobs(MODEL, params, first.rollouts, update))[1, 0]
    for params in policies[1:]
  )
  drift = np.abs(now - then)[np.asarray(first.rollouts.mask[1, 0])].mean()
  share = 2 ** (-drift / 0.06)
  assert 0.875 < share < 0.96  # no bound decides
  expected = [0.5, share * 0.48 + 1, 0.5, 1.48, 1.48]
  np.testing.assert_allclose(state.tracker.successes, expected, rtol=1e-5)
  assert estimator.priorities(state).shape == (5,)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_without_a_change_of_the_policy_spo_forgets_least(dtype):
  """Whatever the trainer's rounding, and however far the sampler's log-probs are from it."""
  update = UpdateConfig(minibatch_size=2, microbatch_size=2, dtype=dtype)
  estimator, rng = make(update), np.random.default_rng(1)
  params = models.init(MODEL, jax.random.key(0))
  state, expected = estimator.init(()), 0.5
  for mismatch, ids in ((0.0, [2, 0]), (0.04, [0, 2]), (-0.5, [2, 0])):
    batch = sampled(rng, ids, [1.0, 1.0], params, mismatch)
    state = estimator.update(state, batch, params, ())
    expected = spo.RETENTION_MAX * expected + 1
    np.testing.assert_allclose(state.tracker.successes[jnp.array([2, 0])], expected, rtol=1e-6)


def test_priorities_are_finite_where_rewards_round_above_one():
  state = spo.init(2)
  reward = np.nextafter(np.float32(1), np.float32(2))
  for _ in range(300):
    state = spo.update(state, jnp.arange(2), jnp.full(2, reward), jnp.ones(2))
  assert spo.value(state).max() > 1
  np.testing.assert_allclose(spo.priorities(state), 0.05, atol=1e-3)
