"""Update rules: learning rates, decay, moments and clipping, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poise_jax.learner import update
from poise_jax.learner.update import UpdateConfig


@pytest.mark.parametrize("warmup,expected", [(0, [1, 1, 1]), (1, [1, 1, 1]), (4, [1, 2, 3, 4, 4])])
def test_warm_up_is_linear_and_then_constant(warmup, expected):
  """Adam's step for a constant gradient is the learning rate."""
  config = UpdateConfig(learning_rate=0.5, warmup_steps=warmup)
  optimizer, w = update.optimizer(config), jnp.ones(3)
  state, steps = optimizer.init(w), []
  for _ in expected:
    delta, state = optimizer.update(jnp.full(3, -0.1), state, w)
    steps.append(float(delta[0]))
  np.testing.assert_allclose(steps, 0.5 * np.array(expected) / max(expected), rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_bfloat16", "adafactor"])
@pytest.mark.parametrize(
  "schedule,warmup,expected",
  [
    ("constant", 0, [1, 1, 1, 1, 1, 1]),
    ("linear", 0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ("linear", 2, [1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4]),
    ("cosine", 0, [(1 + np.cos(np.pi * i / 6)) / 2 for i in range(6)]),
    ("cosine", 3, [1 / 3, 2 / 3, 1, 1, 3 / 4, 1 / 4]),
  ],
)
def test_the_learning_rate_rises_and_falls_to_the_end(optimizer, schedule, warmup, expected):
  """The step of each rule for a constant gradient is the learning rate."""
  config = UpdateConfig(
    learning_rate=0.5,
    warmup_steps=warmup,
    schedule=schedule,
    optimizer=optimizer,
    optimizer_steps=6,
    max_grad_norm=0.0,
  )
  rule, w = update.optimizer(config), jnp.ones(3)
  rate, state, steps, rates = update.learning_rate(config), rule.init(w), [], []
  for i in range(6):
    delta, state = rule.update(jnp.full(3, -0.1), state, w)
    steps.append(float(delta[0]))
    rates.append(float(rate(i) if callable(rate) else rate))
  np.testing.assert_allclose(rates, 0.5 * np.array(expected), rtol=1e-5)
  np.testing.assert_allclose(steps, rates, rtol=1e-2 if "bfloat16" in optimizer else 1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_bfloat16", "adafactor"])
def test_every_optimizer_decays_parameters_by_rate_times_decay(optimizer):
  config = UpdateConfig(optimizer=optimizer, learning_rate=0.1, weight_decay=0.5)
  w = jnp.array([[2.0, -4.0]])
  delta, _ = update.optimizer(config).update(0 * w, update.optimizer(config).init(w), w)
  np.testing.assert_allclose(delta, -0.1 * 0.5 * w, rtol=1e-5)


@pytest.mark.parametrize(
  "optimizer,bytes_each", [("adamw", 8), ("adamw_bfloat16", 6), ("adafactor", 0)]
)
def test_memory_of_the_moments(optimizer, bytes_each):
  params = {"w": jnp.zeros((256, 512))}
  state = jax.eval_shape(update.optimizer(UpdateConfig(optimizer=optimizer)).init, params)
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
  assert size == pytest.approx(bytes_each * 256 * 512, abs=4 * (256 + 512) + 64)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_bfloat16", "adafactor"])
def test_every_optimizer_keeps_its_dtypes_and_skips_what_is_not_finite(optimizer):
  config = UpdateConfig(optimizer=optimizer, learning_rate=0.1, max_grad_norm=0.0)
  w = {"w": jnp.array([[1.0, -2.0], [3.0, 4.0]])}
  grads = {"w": jnp.array([[0.5, -0.5], [0.25, -1.0]])}
  state = update.init(w, config)
  new = update.apply_gradients(config, state, grads)
  np.testing.assert_array_equal(jnp.sign(new.params["w"] - w["w"]), -jnp.sign(grads["w"]))
  dtypes = [[x.dtype for x in jax.tree.leaves(s)] for s in (new, state)]
  assert dtypes[0] == dtypes[1]
  bad = update.apply_gradients(config, new, {"w": grads["w"].at[0, 0].set(jnp.nan)})
  assert int(bad.skipped) == 1
  kept = (bad.params, bad.opt_state), (new.params, new.opt_state)
  jax.tree.map(np.testing.assert_array_equal, *kept)


@pytest.mark.parametrize("limit,scale", [(0.0, 1.0), (10.0, 1.0), (1.0, 1 / 5)])
def test_gradients_are_clipped_by_their_global_norm(limit, scale):
  grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
  optimizer = update.optimizer(UpdateConfig(max_grad_norm=limit))
  _, state = optimizer.update(grads, optimizer.init(grads), grads)
  mu = optax.tree_utils.tree_get(state, "mu")
  np.testing.assert_allclose([mu["a"][0], mu["b"][0]], 0.1 * scale * np.array([3, 4]), rtol=1e-5)
