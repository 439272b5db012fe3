"""Group advantages against plain loops, and the errors of groups that are too small."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bias_variance import estimator_of, experience
from poise_jax import estimators

REWARDS = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0.2, 0.9, 0.5, 0.4]], np.float32)


def test_rloo_subtracts_the_mean_of_the_others():
  expected = [
    [r - np.mean([q for j, q in enumerate(group) if j != i]) for i, r in enumerate(group)]
    for group in REWARDS
  ]
  np.testing.assert_allclose(estimators.rloo(jnp.array(REWARDS)), expected, atol=1e-6)


def test_grpo_divides_by_the_sample_standard_deviation():
  expected = [[(r - g.mean()) / (g.std(ddof=1) + 1e-6) for r in g] for g in REWARDS]
  actual = estimators.grpo(jnp.array(REWARDS))
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  assert not np.asarray(actual)[1:3].any()  # groups of equal rewards have no advantage


def test_dr_grpo_is_rloo_shrunk():
  expected = [[r - g.mean() for r in g] for g in REWARDS]
  actual = estimators.dr_grpo(jnp.array(REWARDS))
  np.testing.assert_allclose(actual, expected, atol=1e-6)
  np.testing.assert_allclose(actual, 0.75 * estimators.rloo(jnp.array(REWARDS)), atol=1e-6)


def whitened(values, lengths):
  """Whitens values that are repeated for each token of a response, as in verl."""
  tokens = np.repeat(values.ravel(), lengths.ravel())
  return (values - tokens.mean()) / (tokens.std(ddof=1) + 1e-6)


def test_reinforce_pp_whitens_the_batch():
  ones = np.ones(REWARDS.shape, int)
  lengths = np.random.default_rng(0).integers(0, 9, REWARDS.shape)
  centred = REWARDS - REWARDS.mean(1, keepdims=True)
  for estimate, values in (
    (estimators.reinforce_pp, REWARDS),
    (estimators.reinforce_pp_baseline, centred),
  ):
    actual = estimate(jnp.array(REWARDS))
    np.testing.assert_allclose(actual, whitened(values, ones), atol=1e-5)
    actual = estimate(jnp.array(REWARDS), jnp.array(lengths))
    np.testing.assert_allclose(actual, whitened(values, lengths), atol=1e-5)
    assert abs((actual * lengths).sum()) < 1e-4
  np.testing.assert_allclose(
    estimators.reinforce_pp(jnp.array([[0.0], [1.0]])), np.array([[-1], [1]]) * 0.5**0.5, rtol=1e-5
  )
  assert not np.any(estimators.reinforce_pp(jnp.ones((2, 2))))
  with pytest.raises(ValueError, match="rollouts must be at least 2"):
    estimators.reinforce_pp(jnp.ones((1, 1)))


@pytest.mark.parametrize("name", ["grpo", "rloo", "dr_grpo", "reinforce_pp_baseline"])
def test_groups_of_one_are_refused(name):
  with pytest.raises(ValueError, match=f"{name} compares.*rollout.n must be at least 2, got 1"):
    getattr(estimators, name)(jnp.ones((3, 1)))


def test_reinforce_pp_takes_rewards_to_go():
  """A penalty on a token counts for it and for the tokens before it, not for those after it."""
  batch = experience(np.ones((2, 1)), np.zeros((2, 1, 11)))
  mask = jnp.array([[[True, True, True]], [[True, False, False]]])
  rewards = jnp.array([[[-0.1, -0.2, 1.0]], [[0.5, 0, 0]]])
  batch = batch.replace(token_rewards=rewards, rollouts=batch.rollouts.replace(mask=mask))
  estimator = estimator_of("reinforce_pp", 1, 11, estimators.ProbeConfig())
  advantages = np.asarray(estimator.estimate((), batch).advantages)[np.asarray(mask)]
  to_go = np.array([0.7, 0.8, 1.0, 0.5])
  np.testing.assert_allclose(advantages, (to_go - to_go.mean()) / to_go.std(ddof=1), rtol=1e-4)
