"""POISE's gradient is unbiased: checked by enumeration of all groups of answers."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bias_variance import ANSWERS, PREFIXES, estimator_of, experience, policy
from poise_jax.estimators import cross_rollout_advantages, probe


def toy(seed):
  rng = np.random.default_rng(seed)
  probabilities, scores = policy(rng.normal(size=(len(PREFIXES), 2)))
  rewards = rng.random(len(ANSWERS))
  features = rng.normal(size=(len(ANSWERS), 4))
  predictions = 1 / (1 + np.exp(-np.sin(3 * features) @ rng.normal(size=4) - rewards))
  return probabilities, scores, rewards, predictions


def expected_gradient(seed, n, advantages_of):
  """E[1/n sum_i A_i grad log pi(y_i)] over all n-tuples, and the exact policy gradient.

  Args:
    advantages_of: (rewards [P, n], predictions [P, n]) -> advantages [P, n], P = all n-tuples.
  """
  probabilities, scores, rewards, predictions = toy(seed)
  groups = np.array(list(itertools.product(range(len(ANSWERS)), repeat=n)))
  advantages = np.asarray(
    advantages_of(jnp.asarray(rewards[groups]), jnp.asarray(predictions[groups])), np.float64
  )
  estimates = (advantages[..., None] * scores[groups]).mean(1)
  exact = (probabilities * rewards) @ scores
  return probabilities[groups].prod(1) @ estimates, exact


def own_rollout(rewards, predictions):
  return rewards - predictions


def rloo(rewards, _):
  return rewards - probe.leave_one_out_targets(rewards)


def grpo(rewards, _):
  centred = rewards - rewards.mean(1, keepdims=True)
  return centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-6)


def test_scores_have_zero_mean_and_probabilities_sum_to_one():
  probabilities, scores, _, _ = toy(0)
  np.testing.assert_allclose(probabilities.sum(), 1.0)
  np.testing.assert_allclose(probabilities @ scores, 0.0, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("advantages_of", [cross_rollout_advantages, rloo])
def test_unbiased(advantages_of, seed, n):
  estimate, exact = expected_gradient(seed, n, advantages_of)
  assert np.abs(exact).max() > 1e-2
  np.testing.assert_allclose(estimate, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("advantages_of", [own_rollout, grpo])
def test_biased(advantages_of, seed, n):
  estimate, exact = expected_gradient(seed, n, advantages_of)
  assert np.abs(estimate - exact).max() > 1e-3
  # Rescaling does not remove the bias. (With 0/1 rewards and n <= 3 it would remove GRPO's.)
  scale = estimate @ exact / (exact @ exact)
  assert np.abs(estimate - scale * exact).max() > 1e-3


def test_cross_rollout_has_less_variance_than_rloo_with_an_accurate_probe():
  """With two samples, the value itself is a better baseline than the sibling's reward."""
  probabilities, scores, rewards, _ = toy(0)
  groups = np.array(list(itertools.product(range(len(ANSWERS)), repeat=2)))
  weights = probabilities[groups].prod(1)
  value = np.full(groups.shape, probabilities @ rewards)
  exact = (probabilities * rewards) @ scores
  variances = []
  for advantages in (
    cross_rollout_advantages(jnp.asarray(rewards[groups]), jnp.asarray(value)),
    rloo(jnp.asarray(rewards[groups]), None),
  ):
    estimates = (np.asarray(advantages)[..., None] * scores[groups]).mean(1)
    variances.append(weights @ ((estimates - exact) ** 2).sum(1))
  assert variances[0] < variances[1]


@pytest.mark.parametrize("name", ["poise", "poise_sibling"])
@pytest.mark.parametrize("n", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_estimator_itself_is_unbiased(name, n):
  """From features to advantages, with a probe fitted on other rollouts."""
  probabilities, scores, rewards, _ = toy(1)
  rng = np.random.default_rng(0)
  features = rng.normal(size=(len(ANSWERS), 5)) + 2 * rewards[:, None]
  config = probe.ProbeConfig(alpha=1.0, buffer_rows=60, min_rows=40, bootstrap_steps=1)
  estimator = estimator_of(name, n, 5, config)
  earlier = rng.choice(len(ANSWERS), size=(20, n), p=probabilities)
  groups = np.array(list(itertools.product(range(len(ANSWERS)), repeat=n)))

  def batch(groups):
    return experience(rewards[groups], features[groups])

  state = estimator.update(estimator.init(()), batch(earlier), (), ())
  estimate = estimator.estimate(state, batch(groups))
  assert estimate.metrics["probe/active"] == 1 and np.asarray(estimate.baselines).std() > 1e-2
  estimates = (np.asarray(estimate.advantages, np.float64)[..., None] * scores[groups]).mean(1)
  exact = (probabilities * rewards) @ scores
  np.testing.assert_allclose(probabilities[groups].prod(1) @ estimates, exact, atol=1e-6)


def test_the_siblings_reward_helps_where_features_are_noise():
  """Values differ between prompts: POISE can only predict their mean, poise_sibling does better."""
  rng = np.random.default_rng(0)
  values = rng.choice([0.1, 0.9], size=(4000, 1))
  rewards = jnp.asarray((rng.random((4000, 2)) < values).astype(np.float32))
  features = jnp.asarray(rng.normal(size=(4000, 2, 5)), jnp.float32)
  variances = {}
  for name in ("poise", "poise_sibling", "rloo"):
    config = probe.ProbeConfig(alpha=1.0, buffer_rows=4000, bootstrap_steps=1)
    estimator = estimator_of(name, 2, 5, config)
    earlier = experience(rewards[:2000], features[:2000])
    state = estimator.update(estimator.init(()), earlier, (), ())
    estimate = estimator.estimate(state, experience(rewards[2000:], features[2000:]))
    variances[name] = float(estimate.advantages.var())
  # Var(r) = 0.25. The best linear baseline on r_j has correlation 0.64: 0.25 (1 - 0.64^2) = 0.148.
  # RLOO: the mean of 2 v (1 - v). Three standard errors of 2000 groups are at most 0.026.
  np.testing.assert_allclose(variances["poise"], 0.25, atol=0.026)
  np.testing.assert_allclose(variances["poise_sibling"], 0.148, atol=0.026)
  np.testing.assert_allclose(variances["rloo"], 0.18, atol=0.026)
  assert variances["poise_sibling"] < variances["rloo"] < variances["poise"]
