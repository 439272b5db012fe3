"""Group advantages by hand-written loops, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

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
  assert not np.asarray(actual)[1:3].any()  # groups of equal rewards teach nothing


def test_dr_grpo_is_rloo_shrunk():
  expected = [[r - g.mean() for r in g] for g in REWARDS]
  actual = estimators.dr_grpo(jnp.array(REWARDS))
  np.testing.assert_allclose(actual, expected, atol=1e-6)
  np.testing.assert_allclose(actual, 0.75 * estimators.rloo(jnp.array(REWARDS)), atol=1e-6)


def whitened(values, lengths):
  """Every token of a response has its value, as verl repeats them."""
  tokens = np.repeat(values.ravel(), lengths.ravel())
  return (values - tokens.mean()) / (tokens.std(ddof=1) + 1e-6)


def test_reinforce_pp_whitens_the_batch():
  ones = np.ones(REWARDS.shape, int)
  lengths = np.random.default_rng(0).integers(0, 9, REWARDS.shape)
  centred = REWARDS - REWARDS.mean(1, keepdims=True)
  for of, values in (
    (estimators.reinforce_pp, REWARDS),
    (estimators.reinforce_pp_baseline, centred),
  ):
    actual = of(jnp.array(REWARDS))
    np.testing.assert_allclose(actual, whitened(values, ones), atol=1e-5)
    actual = of(jnp.array(REWARDS), jnp.array(lengths))
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
  with pytest.raises(ValueError, match=f"{name} compares.*at least 2"):
    getattr(estimators, name)(jnp.ones((3, 1)))


@pytest.mark.parametrize("name", estimators.NAMES)
def test_groups_of_one_are_refused_by_make(name):
  with pytest.raises(ValueError, match="rollout.n=1"):
    estimators.make(name, 1, 0, 1, estimators.ProbeConfig())


def test_make_names_what_is_wrong():
  with pytest.raises(ValueError, match="'popo' is unknown; known are poise, .*, grpo"):
    estimators.make("popo", 2, 8, 1, estimators.ProbeConfig())
  with pytest.raises(ValueError, match="feature_layers"):
    estimators.make("poise", 2, 0, 1, estimators.ProbeConfig())


@pytest.mark.parametrize("name", estimators.NAMES)
def test_every_estimator_has_the_same_shape(name):
  estimator = estimators.make(name, 4, 11, 1, estimators.ProbeConfig(bootstrap_steps=1))
  state, domains = estimator.init(), jnp.zeros(4, int)
  features = jnp.array(np.random.default_rng(0).normal(size=(4, 4, 11)), jnp.float32)
  for _ in range(3):
    advantages, baselines, metrics = estimator.estimate(
      state, jnp.array(REWARDS), features, domains
    )
    assert advantages.shape == baselines.shape == REWARDS.shape
    state = estimator.update(state, jnp.array(REWARDS), features, domains)
  assert name.startswith("poise") == ("probe/mae" in metrics)
  if name not in ("grpo", "reinforce_pp_baseline"):  # those two are divided by something
    np.testing.assert_allclose(advantages, REWARDS - baselines, atol=1e-6)
