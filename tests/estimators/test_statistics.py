"""Rounding is never an advantage: constant numbers of any size become exactly 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_batch import T, experience_of

from experiments.bias_variance import experience
from poise_jax import estimators
from poise_jax.estimators import CriticConfig, group, ppo, spo, statistics

f32 = np.float32
# The same number, computed in two ways that round differently.
TENTHS = np.array([sum([f32(0.1)] * 10), 1, np.nextafter(f32(1), f32(2))], f32)
PARTS = np.array([f32(0.7), np.nextafter(f32(0.7), f32(1)), f32(0.7) + f32(2e-7)], f32)
NEGATIVE = -1000 * PARTS
WAYS = pytest.mark.parametrize(
  "ways", [TENTHS, PARTS, NEGATIVE], ids=["tenths", "ulps", "negative"]
)
NAMES = ("grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline")
by_name = pytest.mark.parametrize("name", NAMES)


@by_name
@pytest.mark.parametrize("n", [3, 16])
def test_equal_rewards_have_no_advantage(name, n):
  estimator = jax.jit(getattr(estimators, name))
  for value in (0.1, 0.9, 0.7, 1 / 3, 12345.678, 1e-4, -0.6):
    assert not np.any(estimator(jnp.full((5, n), value, f32))), value


@by_name
@WAYS
def test_rewards_that_differ_by_rounding_have_no_advantage(name, ways):
  assert len(set(ways.tolist())) > 1
  assert not np.any(jax.jit(getattr(estimators, name))(jnp.asarray(np.tile(ways, (4, 2)))))


@by_name
def test_a_constant_group_among_others_has_no_advantage(name):
  rewards = jnp.array([[0.9] * 6, [0.1, 0.9, 0.9, 0.1, 0.9, 0.9], [0.7] * 6])
  actual = np.asarray(jax.jit(getattr(estimators, name))(rewards))
  if name == "reinforce_pp":  # compares with the batch, where the groups do differ
    assert np.abs(actual).min() > 0.1
  else:
    assert not actual[[0, 2]].any() and np.abs(actual[1]).min() > 0.1


@pytest.mark.parametrize("difference", [1 / 4096, 1 / 8192, 1e-5])
def test_small_differences_count(difference):
  """One token of a length penalty, or a KL penalty of 1e-5 nats."""
  rewards = np.full((2, 4), 0.9, f32)
  rewards[:, 0] -= f32(difference)
  exact = rewards.astype(np.float64)
  centred = exact - exact.mean(1, keepdims=True)
  for actual, std in (
    (jax.jit(estimators.grpo)(jnp.asarray(rewards)), exact.std(1, ddof=1, keepdims=True)),
    (jax.jit(estimators.reinforce_pp_baseline)(jnp.asarray(rewards)), centred.std(ddof=1)),
  ):
    np.testing.assert_allclose(actual, centred / (std + 1e-6), rtol=3e-2)
    assert np.abs(actual).max() > 0.8


@pytest.mark.parametrize("value", [0.9, 0.1, 0.3])
def test_rewards_to_go_that_are_equal_have_no_advantage(value):
  """A score on the last token only: every token has the same reward to go."""
  batch = experience_of(np.full((4, 2), value), lengths=[1, 5, 3, 2, 4, 5, 2, 1])
  estimate = group._rewards_to_go(batch)
  assert not np.asarray(estimate.advantages)[np.asarray(batch.rollouts.mask)].any()


@pytest.mark.parametrize("value", [0.9, 0.1, 0.3])
@pytest.mark.parametrize("gamma,lam", [(1.0, 1.0), (0.9, 0.95), (0.99, 1.0)])
def test_ppos_advantages_that_are_rounding_are_zero(value, gamma, lam):
  """A critic that is right about every token, and one that is wrong by the same everywhere."""
  batch = experience_of(np.full((4, 2), value), lengths=[1, 5, 3, 2, 4, 5, 2, 1])
  mask = np.asarray(batch.rollouts.mask).reshape(-1, T)
  left = mask.sum(1, keepdims=True) - 1 - np.arange(T)
  right = np.where(mask, value * gamma ** np.maximum(left, 0), 0).astype(f32)
  config = CriticConfig(gamma=gamma, lam=lam)
  predictions = [right]
  if (gamma, lam) == (1.0, 1.0):
    predictions.append(np.where(mask, right - f32(0.2), 0))
  for predicted in predictions:
    estimate = ppo._estimate(batch, [jnp.asarray(predicted)], jnp.int32(0), config)
    assert not np.asarray(estimate.advantages).reshape(-1, T)[mask].any()


@pytest.mark.parametrize("value", [0.9, 0.1, 0.7])
def test_spos_advantages_that_are_rounding_are_zero(value):
  """Every prompt's tracker is at its reward, but for rounding."""
  counts = np.geomspace(3, 7, 8, dtype=f32)
  successes = counts * f32(value)
  successes[::2] = np.nextafter(successes[::2], f32(9))
  tracker = spo.Tracker(jnp.asarray(successes), jnp.asarray(counts * f32(1 - value)))
  ids = jnp.arange(8)
  batch = experience(np.full((8, 1), value), np.zeros((8, 1, 0))).replace(prompt_ids=ids)
  empty = jnp.zeros((8, 1))
  state = spo.State(tracker, empty.astype(int), empty.astype(bool), empty)
  assert len(set(np.asarray(spo.value(tracker)).tolist())) > 1
  assert not np.any(spo._estimate(state, batch).advantages)


@pytest.mark.parametrize("value", [0.9, 0.1, 1 / 3, 777.7])
def test_the_variance_of_equal_targets_is_zero(value):
  """Otherwise a ratio of two roundings would be reported as explained variance."""
  mask = np.arange(24) < 19
  targets = jnp.where(mask, f32(value), 5.0)
  values = jnp.asarray(np.random.default_rng(0).random(24, f32))
  assert statistics.variance(targets, mask) == 0
  assert statistics.explained_variance(values, targets, mask) == 0
  varied = jnp.where(np.arange(24) < 9, targets, 0.5)
  exact = np.asarray(varied, np.float64)[mask]
  expected = 1 - (exact - np.asarray(values)[mask]).var() / exact.var()
  actual = statistics.explained_variance(values, varied, mask)
  np.testing.assert_allclose(actual, expected, rtol=1e-4)


@WAYS
def test_scores_that_differ_by_rounding_are_not_mixed(ways):
  scores = np.stack([ways, ways[[0, 0, 0]], [*ways[:2], f32(1.001) * ways[2]]])
  assert statistics.mixed(scores).tolist() == [False, False, True]
