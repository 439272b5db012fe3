"""The Beta tracker by hand."""

import jax.numpy as jnp
import numpy as np

from poise_jax.estimators import tracker


def test_what_is_known_of_a_prompt_before_the_first_step():
  np.testing.assert_allclose(tracker.value(tracker.init(3)), 0.5)
  state = tracker.init(3, jnp.array([0.0, 8.0, 2.0]), trials=8)
  np.testing.assert_allclose(tracker.value(state), [0.5 / 9, 8.5 / 9, 2.5 / 9], rtol=1e-6)
  np.testing.assert_allclose(state.successes + state.failures, 8.0, rtol=1e-6)


def test_drift_forgets():
  drift = jnp.array([0.0, 0.006, 0.012, 0.06, 9.0])
  expected = [0.96, 2**-0.1, 0.875, 0.875, 0.875]
  np.testing.assert_allclose(tracker.kept(drift), np.clip(expected, 0.875, 0.96), rtol=1e-5)
  assert 0.875 < tracker.kept(jnp.array([0.006]))[0] < 0.96


def test_only_the_prompts_of_the_step_change():
  state = tracker.init(4)
  state = tracker.update(state, jnp.array([2, 0]), jnp.array([1.0, 0.25]), jnp.array([0.0, 9.0]))
  np.testing.assert_allclose(state.successes, [0.875 * 0.5 + 0.25, 0.5, 0.96 * 0.5 + 1, 0.5])
  np.testing.assert_allclose(state.failures, [0.875 * 0.5 + 0.75, 0.5, 0.96 * 0.5, 0.5])


def test_the_value_follows_the_reward():
  state = tracker.init(2)
  for _ in range(200):
    state = tracker.update(state, jnp.arange(2), jnp.array([1.0, 0.3]), jnp.full(2, 0.01))
  np.testing.assert_allclose(tracker.value(state), [1.0, 0.3], atol=1e-3)


def test_prompts_in_the_middle_come_first():
  state = tracker.Tracker(jnp.array([0.0, 1.0, 1.0]), jnp.array([1.0, 1.0, 0.0]))
  np.testing.assert_allclose(tracker.priorities(state), [0.05, 0.55, 0.05], rtol=1e-6)
