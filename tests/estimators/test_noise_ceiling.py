"""The noise ceiling against simulations in which the value of each prompt is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax.estimators import statistics


def drawn(seed, prompts, n, kind):
  """Values [P] and rewards [P, n] that are independent given the value."""
  rng = np.random.default_rng(seed)
  value = rng.beta(0.6, 0.9, size=prompts)
  if kind == "right or wrong":
    rewards = rng.random((prompts, n)) < value[:, None]
  elif kind == "partial scores":
    rewards = rng.beta(3 * value[:, None] + 0.01, 3 - 3 * value[:, None] + 0.01, (prompts, n))
  else:  # any unit
    rewards = 40 * value[:, None] - 7 + rng.normal(size=(prompts, n)) * 12
  return value, np.asarray(rewards, np.float32)


KINDS = ("right or wrong", "partial scores", "any unit")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n,samples", [(2, 1), (3, 2), (9, 8), (4, 1)])
def test_the_ceiling_is_the_r_of_the_known_value(kind, n, samples):
  value, rewards = drawn(n, 30_000, n, kind)
  reached = np.corrcoef(value, rewards[:, :samples].mean(1))[0, 1]
  real = jnp.ones(len(rewards), bool)
  ceiling = statistics.noise_ceiling(jnp.asarray(rewards), real, samples)
  np.testing.assert_allclose(ceiling, reached, atol=0.012)
  if samples == 1:  # the variance that the value removes as a baseline; the value in its own unit
    slope, offset = np.polyfit(value, rewards.mean(1), 1)
    baseline = slope * value + offset
    removed = 1 - np.var(rewards - baseline[:, None]) / np.var(rewards)
    np.testing.assert_allclose(float(ceiling) ** 2, removed, atol=0.012)


@pytest.mark.parametrize("n", [2, 5])
def test_the_variance_of_the_value_is_the_covariance_of_two_samples(n):
  """By loops over pairs in float64, on a few prompts; a mean square would count noise as value."""
  _, rewards = drawn(7, 12, n, "partial scores")
  exact = rewards.astype(np.float64)
  grand = exact.mean()
  pairs, squares = [], []
  for group in exact:
    pairs += [(group[i] - grand) * (group[j] - grand) for i in range(n) for j in range(n) if i != j]
    squares.append(group.var(ddof=1))
  # The mean of the batch is itself drawn: it hides 1 / P of a group mean's variance from each pair.
  correction = (exact.mean(1).var(ddof=1)) / len(exact)
  value, noise = statistics.value_variance(jnp.asarray(rewards), jnp.ones(12, bool))
  np.testing.assert_allclose(value, np.mean(pairs) + correction, rtol=1e-4)
  np.testing.assert_allclose(noise, np.mean(squares), rtol=1e-5)


def test_the_variance_of_the_value_is_unbiased_in_small_batches():
  value, _ = drawn(0, 200_000, 2, KINDS[0])
  estimates = [
    statistics.value_variance(jnp.asarray(drawn(seed, 8, 2, KINDS[0])[1]), jnp.ones(8, bool))[0]
    for seed in range(600)
  ]
  error = np.std(estimates) / np.sqrt(len(estimates))
  assert abs(np.mean(estimates) - value.var()) < 3 * error
  assert min(estimates) < 0  # not clipped, which would be a bias


def test_padding_has_no_influence():
  _, rewards = drawn(3, 20, 4, KINDS[1])
  real = np.arange(26) < 20
  for junk in (0.0, 1e6, np.nan):
    padded = jnp.asarray(np.concatenate([rewards, np.full((6, 4), junk, np.float32)]))
    np.testing.assert_allclose(
      statistics.noise_ceiling(padded, jnp.asarray(real), 3),
      statistics.noise_ceiling(jnp.asarray(rewards), jnp.ones(20, bool), 3),
      rtol=1e-5,
    )


@pytest.mark.parametrize(
  "rewards,real",
  [
    (np.eye(5, 1), np.ones(5, bool)),  # one sample a prompt
    (np.eye(5, 3), np.arange(5) < 1),  # one prompt
    (np.eye(5, 3), np.zeros(5, bool)),
    (np.full((5, 3), 0.1), np.ones(5, bool)),  # no variance at all
  ],
)
def test_what_cannot_be_estimated_is_nan(rewards, real):
  ceiling = statistics.noise_ceiling(jnp.asarray(rewards, jnp.float32), jnp.asarray(real))
  assert np.isnan(ceiling)


def test_the_ends_of_the_range():
  noise = np.array([[0, 1], [1, 0], [0, 1]], np.float32)  # less agreement than by chance
  known = np.array([[0.5, 0.5], [1, 1], [0, 0]], np.float32)
  for rewards, expected in ((noise, 0.0), (known, 1.0)):
    assert statistics.noise_ceiling(jnp.asarray(rewards), jnp.ones(3, bool)) == expected


@pytest.mark.parametrize("shape", [(40,), (20, 3)])
def test_pearson_against_numpy(shape):
  rng = np.random.default_rng(1)
  x, y = rng.normal(size=(2, *shape)).astype(np.float32)
  where = rng.random(shape) < 0.7
  r = statistics.pearson(jnp.asarray(x), jnp.asarray(x + y), jnp.asarray(where))
  np.testing.assert_allclose(r, np.corrcoef(x[where], (x + y)[where])[0, 1], rtol=1e-4)
  assert statistics.pearson(jnp.asarray(x), jnp.full(shape, 0.3), jnp.asarray(where)) == 0
  assert np.isnan(statistics.pearson(jnp.asarray(x), jnp.asarray(y), jnp.zeros(shape, bool)))
