"""GAE against the double sum of its definition, over ragged responses; the clipped value loss."""

import jax
import numpy as np
import pytest

from poise_jax.estimators.ppo import gae, length_adaptive_lam, value_loss

LENGTHS = (6, 1, 0, 4)


def batch():
  rng = np.random.default_rng(0)
  mask = np.arange(6) < np.array(LENGTHS)[:, None]
  rewards, values = rng.normal(size=(2, 4, 6)).astype(np.float32)
  return rewards, values, mask


def by_definition(rewards, values, gamma, lam):
  """Advantages of one response without padding."""
  after = [*values[1:], 0.0][: len(values)]
  deltas = [r + gamma * w - v for r, v, w in zip(rewards, values, after, strict=True)]
  return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_gae_is_its_double_sum(gamma, lam):
  rewards, values, mask = batch()
  dirty = [np.where(mask, x, np.nan) for x in (rewards, values)]
  actual = gae(*dirty, mask, gamma, lam)
  for i, length in enumerate(LENGTHS):
    expected = by_definition(rewards[i, :length], values[i, :length], gamma, lam)
    np.testing.assert_allclose(actual[i, :length], expected, rtol=1e-5, atol=1e-6)
    assert not np.any(actual[i, length:])


def test_with_lam_1_the_target_is_the_reward_to_go():
  rewards, values, mask = batch()
  targets = gae(rewards, values, mask, 1.0, 1.0) + values
  to_go = np.cumsum((rewards * mask)[:, ::-1], 1)[:, ::-1]
  np.testing.assert_allclose(targets[mask], to_go[mask], rtol=1e-5, atol=1e-6)


def test_a_fractional_reward_is_not_rounded():
  """tunix stored rewards as integers: 0.5 became 0."""
  mask = np.ones((1, 2), bool)
  advantages = gae(np.array([[0.0, 0.5]]), np.zeros((1, 2)), mask, 1.0, 1.0)
  np.testing.assert_allclose(advantages, [[0.5, 0.5]])


def test_lam_of_each_length():
  rewards, values, _ = batch()
  mask = np.arange(400) < np.array([400, 40, 20, 3, 0])[:, None]
  lam = length_adaptive_lam(mask)
  np.testing.assert_allclose(lam[:, 0], [0.95, 0.5, 0.0, 0.0, 0.0], atol=1e-6)
  mask = batch()[2]
  lam = np.array([[0.1], [0.2], [0.3], [0.9]])
  actual = gae(rewards, values, mask, 0.9, lam)
  for i, length in enumerate(LENGTHS):
    expected = by_definition(rewards[i, :length], values[i, :length], 0.9, lam[i, 0])
    np.testing.assert_allclose(actual[i, :length], expected, rtol=1e-5, atol=1e-6)


def test_value_loss_and_its_clip():
  values, old, targets = np.array([[0.5, 2.0, np.nan]]), np.zeros((1, 3)), np.array([[1.0, 1.0, 0]])
  weights = np.array([[0.5, 0.5, 0.0]])
  loss = value_loss(values, old, targets, weights)
  np.testing.assert_allclose(loss, 0.5 * (0.5 * 0.25 + 0.5 * 1.0))
  loss, grad = jax.value_and_grad(value_loss)(values, old, targets, weights, 0.2)
  # Both are clipped to 0.2: the first farther from its target, which counts, the second closer.
  np.testing.assert_allclose(loss, 0.5 * (0.5 * 0.64 + 0.5 * 1.0), rtol=1e-6)
  np.testing.assert_allclose(grad, [[0.0, 0.5, 0.0]], atol=1e-6)
