"""Draws at the edges: tokens without probability are never drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax.errors import UserError
from poise_jax.rollout import RolloutConfig
from poise_jax.rollout.draw import pick

LARGEST = np.nextafter(np.float32(1), np.float32(0))  # largest u in [0, 1)


@pytest.mark.parametrize("zeros", ["behind", "in front", "everywhere"])
def test_an_index_of_weight_0_is_never_picked(zeros):
  rng = np.random.default_rng(0)
  n, rows = 600, 4096
  weights = np.exp(rng.normal(0, 6, (rows, n))).astype(np.float32)
  empty = {
    "behind": np.arange(n) >= rng.integers(1, n, (rows, 1)),
    "in front": np.arange(n) < rng.integers(0, n, (rows, 1)),
    "everywhere": rng.random((rows, n)) < 0.7,
  }[zeros]
  weights[empty] = 0
  weights[:, rng.integers(n)] += weights.sum(1) == 0  # each row has a positive weight
  for u in (0.0, 0.5, LARGEST):
    index = np.asarray(jax.jit(pick)(jnp.asarray(weights), jnp.full(rows, u)))
    assert index.max() < n
    assert (weights[np.arange(rows), index] > 0).all(), u


def test_picks_follow_the_weights():
  weights = jnp.tile(jnp.array([0.0, 1.0, 0.0, 3.0, 0.0]), (20_000, 1))
  u = jax.random.uniform(jax.random.key(0), (20_000,))
  shares = np.bincount(np.asarray(pick(weights, u)), minlength=5) / 20_000
  np.testing.assert_allclose(shares, [0, 0.25, 0, 0.75, 0], atol=0.01)


@pytest.mark.parametrize("temperature", [-1.0, 1e-30, 9e-4, float("nan"), float("inf")])
def test_a_temperature_that_overflows_is_refused(temperature):
  with pytest.raises(UserError, match="rollout.temperature must be .*, got "):
    RolloutConfig(temperature=temperature)
