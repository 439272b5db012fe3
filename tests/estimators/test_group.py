"""Group advantages by hand-written loops, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bias_variance import estimator_of, experience
from poise_jax import estimators
from poise_jax.estimators.group import GROUP
from poise_jax.models import ModelConfig
from poise_jax.rollout import RolloutConfig

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


WITHOUT_MODELS = ("poise", "poise_sibling", *GROUP, "reinforce_pp", "pvpo")


@pytest.mark.parametrize("name", ["poise", "poise_sibling", *GROUP])
def test_groups_of_one_are_refused_by_make(name):
  with pytest.raises(ValueError, match="rollout.n must be at least 2, got 1"):
    estimator_of(name, 1, 11, estimators.ProbeConfig())


def test_make_names_what_is_wrong():
  with pytest.raises(ValueError, match="unknown estimator 'popo'; .*choose from .*grpo"):
    estimator_of("popo", 2, 11, estimators.ProbeConfig())
  with pytest.raises(ValueError, match="rollout.n must be 1, got 2"):
    estimator_of("spo", 2, 11, estimators.ProbeConfig())
  model = ModelConfig("qwen3", 8, 4, 8, 1, 1, 1, 2)
  with pytest.raises(ValueError, match="feature_layers"):
    estimators.make("poise", estimators.EstimatorContext(RolloutConfig(n=2), model))


@pytest.mark.parametrize("name", WITHOUT_MODELS)
def test_every_estimator_has_the_same_shape(name):
  estimator = estimator_of(name, 4, 11, estimators.ProbeConfig(bootstrap_steps=1))
  state = estimator.init(())
  batch = experience(REWARDS, np.random.default_rng(0).normal(size=(4, 4, 11)))
  batch = batch.replace(reference_scores=jnp.array([[0.0, 1], [0, 0], [1, 1], [0.5, 0]]))
  for _ in range(3):
    estimate = estimator.estimate(state, batch)
    advantages, baselines = estimate.advantages, estimate.baselines
    assert advantages.reshape(REWARDS.shape).shape == baselines.shape == REWARDS.shape
    state = estimator.update(state, batch, (), estimate.aux)
  assert name.startswith("poise") == ("probe/mae" in estimate.metrics)
  if name not in ("grpo", "reinforce_pp_baseline", "reinforce_pp"):  # divided by something
    np.testing.assert_allclose(advantages, REWARDS - baselines, atol=1e-6)
  if name == "pvpo":
    np.testing.assert_allclose(baselines[:, 0], [0.5, 0, 1, 0.25])


def test_reinforce_pp_takes_what_is_still_to_come():
  """A penalty on a token counts for it and for those before it, not for those behind it."""
  batch = experience(np.ones((2, 1)), np.zeros((2, 1, 11)))
  mask = jnp.array([[[True, True, True]], [[True, False, False]]])
  rewards = jnp.array([[[-0.1, -0.2, 1.0]], [[0.5, 0, 0]]])
  batch = batch.replace(token_rewards=rewards, rollouts=batch.rollouts.replace(mask=mask))
  estimator = estimator_of("reinforce_pp", 1, 11, estimators.ProbeConfig())
  advantages = np.asarray(estimator.estimate((), batch).advantages)[np.asarray(mask)]
  to_come = np.array([0.7, 0.8, 1.0, 0.5])
  np.testing.assert_allclose(
    advantages, (to_come - to_come.mean()) / to_come.std(ddof=1), rtol=1e-4
  )
