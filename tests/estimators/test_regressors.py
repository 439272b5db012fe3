"""Logistic and multi-layer probes against scikit-learn and PyTorch, and a task that ridge fails."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from poise_jax.estimators import poise, probe
from poise_jax.estimators.regressors import LEARNING_RATE, SEED, mlp

BUFFER = dict(buffer_rows=64, min_rows=48, bootstrap_steps=0)
LOGISTIC = probe.ProbeConfig(model="logistic", alpha=3.0, **BUFFER)
MLP = probe.ProbeConfig(model="mlp", mlp_widths=(16, 8), **BUFFER)


def rows(count=200, width=13, seed=0):
  """Features with an offset and different scales, and 0/1 rewards that depend on them."""
  rng = np.random.default_rng(seed)
  z = rng.normal(size=(count, width))
  odds = 2 * z[:, 0] - z[:, 7] + 0.5
  y = (rng.random(count) < 1 / (1 + np.exp(-odds))).astype(np.float32)
  return (z * np.geomspace(0.1, 30, width) + 5).astype(np.float32), y


@pytest.mark.parametrize("alpha", [0.1, 30.0])
def test_the_logistic_probe_equals_scikit_learns(alpha):
  x, y = rows()
  held_out, _ = (x.astype(np.float64) for x in rows(seed=1))
  scaler = StandardScaler().fit(x.astype(np.float64))
  theirs = LogisticRegression(C=1 / alpha, solver="newton-cholesky", tol=1e-8)
  theirs.fit(scaler.transform(x.astype(np.float64)), y)
  expected = theirs.predict_proba(scaler.transform(held_out))[:, 1]
  state = probe.fit(x, y, dataclasses.replace(LOGISTIC, alpha=alpha))
  np.testing.assert_allclose(probe.predict(state, held_out), expected, rtol=0, atol=1e-5)


def test_a_fractional_target_is_a_share_of_right_rows():
  """A row of target 0.25 is one right and three wrong rows; alpha counts rows, so it grows too."""
  x, _ = rows(60)
  y = np.random.default_rng(0).choice([0, 0.25, 0.5, 1], 60).astype(np.float32)
  split = np.concatenate([np.r_[np.ones(int(4 * v)), np.zeros(4 - int(4 * v))] for v in y])
  one = probe.fit(x, y, LOGISTIC)
  many = probe.fit(np.repeat(x, 4, 0), split, dataclasses.replace(LOGISTIC, alpha=12.0))
  np.testing.assert_allclose(probe.predict(one, x), probe.predict(many, x), atol=1e-4)


def scikit_learns_mlp(x, y, widths, steps, alpha):
  """MLPRegressor after `steps` full-batch Adam steps from our initial weights."""
  net = MLPRegressor(
    hidden_layer_sizes=widths,
    alpha=alpha,
    batch_size=len(x),
    learning_rate_init=LEARNING_RATE,
    shuffle=False,
    max_iter=1,
    n_iter_no_change=steps + 1,
    warm_start=True,
  )
  net.fit(x, y)  # makes weights of the right shapes, from which the next fit continues
  make = jax.nn.initializers.glorot_normal()
  keys = jax.random.split(jax.random.key(SEED), len(net.coefs_))
  for i, key in enumerate(keys):
    net.coefs_[i][:] = make(key, net.coefs_[i].shape, jnp.float32)
    net.intercepts_[i][:] = 0
  net.max_iter = steps
  return net.fit(x, y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0])
def test_the_mlp_equals_scikit_learns_with_the_same_initial_weights(alpha):
  x, y = rows(64)
  x = StandardScaler().fit_transform(x).astype(np.float32)
  valid = np.arange(64) < 50
  hidden, coef, intercept = mlp(x, y, valid, (16, 8), 50, alpha)
  theirs = scikit_learns_mlp(x[valid].astype(np.float64), y[valid], (16, 8), 50, alpha)
  ours = [*hidden, (coef[:, None], intercept[None])]
  for (kernel, bias), their_kernel, their_bias in zip(
    ours, theirs.coefs_, theirs.intercepts_, strict=True
  ):
    # 50 steps move a weight by up to 0.05. scikit-learn adds Adam's epsilon before it corrects the
    # bias of the moments, which shows where a gradient is small.
    np.testing.assert_allclose(kernel, their_kernel, atol=3e-4)
    np.testing.assert_allclose(bias, their_bias, atol=3e-4)


def test_the_mlps_penalty_shrinks_its_predictions():
  x, y = rows(120)
  spread = [
    np.ptp(probe.predict(probe.fit(x, y, dataclasses.replace(MLP, alpha=alpha)), x))
    for alpha in (0.01, 100.0, 1e4)
  ]
  assert spread[0] > spread[1] + 0.1 and spread[2] < 0.05


def test_the_mlp_learns_a_product_of_features():
  """Reward 1 where two features have the same sign: no linear probe can predict it."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(600, 5)).astype(np.float32)
  y = (x[:, 0] * x[:, 1] > 0).astype(np.float32)
  held_out = rng.normal(size=(1000, 5)).astype(np.float32)
  right = held_out[:, 0] * held_out[:, 1] > 0

  def agreement(model):
    state = probe.fit(x * 7 + 3, y, dataclasses.replace(MLP, model=model, alpha=1.0, scalars=1))
    return np.mean((np.asarray(probe.predict(state, held_out * 7 + 3)) > 0.5) == right)

  assert agreement("mlp") > 0.85 and agreement("ridge") < 0.6 and agreement("logistic") < 0.6


@pytest.mark.parametrize("config", [LOGISTIC, MLP], ids=["logistic", "mlp"])
def test_rows_of_weight_zero_and_principal_components(config):
  """Empty buffer slots have no influence, and a fit on few components predicts as well."""
  x, y = rows(60)
  padded = np.concatenate([x, np.full((20, 13), 1e3, np.float32)])
  weights = np.r_[np.ones(60), np.zeros(20)].astype(np.float32)
  plain = probe.predict(probe.fit(x, y, config), x)
  with_slots = probe.fit(padded, np.r_[y, np.ones(20)].astype(np.float32), config, weights)
  np.testing.assert_allclose(probe.predict(with_slots, x), plain, atol=2e-3)
  fewer = dataclasses.replace(config, pca_prompt=2, pca_response=3)
  predictions = np.asarray(probe.predict(probe.fit(x, y, fewer), x))
  assert ((predictions >= 0) & (predictions <= 1)).all()
  assert np.corrcoef(predictions, y)[0, 1] > 0.3


@pytest.mark.parametrize("config", [LOGISTIC, MLP], ids=["logistic", "mlp"])
def test_other_regressors_replace_ridge_in_a_whole_step(config):
  """Of two domains, the one without data stays on RLOO."""
  state = poise.init(config, n=2, num_features=13, num_domains=2)
  shapes = jax.tree.map(jnp.shape, state)
  x, y = rows(48)
  rewards, features = y.reshape(24, 2), x.reshape(24, 2, 13)
  state = poise.update(state, rewards, features, np.zeros(24, np.int32), config)
  assert jax.tree.map(jnp.shape, state) == shapes
  assert state.fitted.tolist() == [True, False]
  domains = np.arange(24, dtype=np.int32) % 2
  advantages, _, predictions, metrics = poise.estimate(state, rewards, features, domains, config)
  first = probe.predict(jax.tree.map(lambda leaf: leaf[0], state.probes), features)
  np.testing.assert_allclose(predictions[::2], first[::2], atol=1e-6)
  np.testing.assert_array_equal(advantages[1::2], (rewards - rewards[:, ::-1])[1::2])
  assert np.isfinite(metrics["probe/mae_by_domain"][0])
  assert np.isnan(metrics["probe/mae_by_domain"][1])


@pytest.mark.parametrize(
  "fields", [dict(model="forest"), dict(mlp_widths=()), dict(mlp_widths=(0,)), dict(mlp_steps=0)]
)
def test_bad_options_are_named(fields):
  with pytest.raises(ValueError, match=f"probe.{next(iter(fields))}"):
    probe.ProbeConfig(**fields)
