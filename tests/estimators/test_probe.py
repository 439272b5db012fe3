"""The ridge probe's fit against scikit-learn in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from poise_jax.errors import UserError
from poise_jax.estimators import poise, probe, ridge


def hidden_states(rows, num_features, decades=4, outlier=1000.0, held_out=128, seed=0):
  """Rows like a language model's: graded spectrum, outlier dimensions, pairs that share prompts."""
  rng = np.random.default_rng(seed)
  width, prompts = (num_features - 3) // 2, (rows + held_out + 1) // 2
  spectrum = 10 ** (-decades * np.arange(width) / width)
  basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
  prompt = rng.normal(size=(prompts, width)).repeat(2, 0)
  response = 0.6 * prompt + 0.8 * rng.normal(size=prompt.shape)
  gain = np.exp(0.5 * rng.normal(size=width))
  gain[rng.choice(width, 4, replace=False)] *= outlier
  offset = rng.normal(size=width) * gain
  x = np.concatenate(
    [
      prompt * spectrum @ basis * gain + offset,
      response * spectrum @ basis[::-1] * gain - offset,
      np.abs(response[:, :3]),
    ],
    axis=1,
  ).astype(np.float32)
  odds = np.exp(1.5 * prompt[:, 0] + response[:, 1])
  y = (rng.random(2 * prompts) < odds / (1 + odds)).astype(np.float32)
  return x[:rows], y[:rows], x[rows : rows + held_out]


def sklearn_predictions(x, y, held_out, config):
  width = (x.shape[1] - config.scalars) // 2
  blocks = {"pca_prompt": slice(0, width), "pca_response": slice(width, 2 * width)}
  projections = [
    (name, PCA(k, svd_solver="full") if (k := getattr(config, name)) else "passthrough", columns)
    for name, columns in blocks.items()
  ]
  pipeline = make_pipeline(
    ColumnTransformer([*projections, ("scalars", "passthrough", slice(2 * width, None))]),
    StandardScaler(),
    Ridge(alpha=config.alpha, solver="svd"),
  )
  return pipeline.fit(x.astype(np.float64), y).predict(held_out.astype(np.float64))


def unclipped(state, features):
  product = jnp.matmul(features - state.mean, state.coef, precision="highest")
  return np.asarray(product + state.intercept)


@pytest.mark.parametrize("shape", [(200, 303), (400, 103)], ids=["N<F", "N>F"])
@pytest.mark.parametrize(
  "config",
  [
    probe.ProbeConfig(alpha=0.01),
    pytest.param(probe.ProbeConfig(alpha=100.0), marks=pytest.mark.slow),
    pytest.param(
      probe.ProbeConfig(alpha=0.01, pca_prompt=8, pca_response=16), marks=pytest.mark.slow
    ),
    probe.ProbeConfig(alpha=100.0, pca_response=16),
  ],
  ids=["0.01", "100", "pca-0.01", "pca-100"],
)
def test_fit_matches_sklearn_in_float64(shape, config):
  x, y, held_out = hidden_states(*shape)
  state = probe.fit(x, y, config)
  expected = sklearn_predictions(x, y, held_out, config)
  np.testing.assert_allclose(unclipped(state, held_out), expected, rtol=0, atol=2e-5)
  predictions = probe.predict(state, held_out)
  np.testing.assert_allclose(predictions, expected.clip(0, 1), rtol=0, atol=2e-5)


def test_fit_is_accurate_at_the_papers_penalty():
  config = probe.ProbeConfig(alpha=0.01, buffer_rows=4096, bootstrap_steps=4)
  x, y, held_out = hidden_states(512, 603, decades=5)
  errors = unclipped(probe.fit(x, y, config), held_out) - sklearn_predictions(
    x, y, held_out, config
  )
  assert np.abs(errors).max() < 1e-4


@pytest.mark.parametrize("shape", [(60, 203), (300, 203)], ids=["N<D", "N>D"])
def test_principal_components_span_sklearns_subspace(shape):
  x, _, _ = hidden_states(*shape)
  z = x[:, :100] - x[:, :100].mean(0)
  directions = np.asarray(ridge.principal_components(jnp.asarray(z), 12))
  expected = PCA(12, svd_solver="full").fit(z.astype(np.float64)).components_
  np.testing.assert_allclose(directions.T @ directions, np.eye(12), atol=1e-5)
  np.testing.assert_allclose(np.abs(np.diag(expected @ directions)), 1.0, atol=1e-4)
  np.testing.assert_allclose(directions @ directions.T, expected.T @ expected, rtol=0, atol=1e-4)


def test_principal_components_without_variance_are_zero():
  rng = np.random.default_rng(0)
  z = (rng.normal(size=(50, 3)) @ rng.normal(size=(3, 40))).astype(np.float32)
  directions = np.asarray(ridge.principal_components(jnp.asarray(z), 6))
  np.testing.assert_array_equal(np.linalg.norm(directions, axis=0) > 0.5, [True] * 3 + [False] * 3)
  x = np.concatenate([z, z, z[:, :3]], axis=1)
  config = probe.ProbeConfig(alpha=0.1, pca_prompt=6, pca_response=6)
  state = probe.fit(x, (z[:, 0] > 0).astype(np.float32), config)
  assert np.isfinite(state.coef).all() and np.abs(unclipped(state, x)).max() < 3


@pytest.mark.parametrize("shape", [(100, 203), (300, 53)], ids=["N<F", "N>F"])
def test_constant_and_duplicated_columns(shape):
  x, y, held_out = hidden_states(*shape)
  for rows in (x, held_out):
    rows[:, 3], rows[:, 4], rows[:, -1] = 1234.567, 1e-3, 0.0  # no variance
    rows[:, 5] = rows[:, 30] = rows[:, 6]
    rows[:, 7] = 1000.0 + 1e-3 * rows[:, 8]  # varies in its last digits only: not constant
  config = probe.ProbeConfig(alpha=0.01)
  state = probe.fit(x, y, config)
  expected = sklearn_predictions(x, y, held_out, config)
  np.testing.assert_allclose(unclipped(state, held_out), expected, rtol=0, atol=3e-5)
  np.testing.assert_array_equal(np.asarray(state.coef)[[3, 4, -1]], 0.0)


@pytest.mark.parametrize(("shape", "components"), [((120, 203), 0), ((300, 53), 8)])
def test_rows_of_weight_zero_have_no_influence(shape, components):
  config = probe.ProbeConfig(alpha=1.0, pca_prompt=components, pca_response=components)
  x, y, held_out = hidden_states(*shape)
  valid = np.random.default_rng(1).random(len(x)) < 0.4
  subset = probe.fit(x[valid], y[valid], config)
  x[~valid], y[~valid] = np.nan, 1e6
  weighted = probe.fit(x, y, config, valid.astype(np.float32))
  np.testing.assert_allclose(
    unclipped(weighted, held_out), unclipped(subset, held_out), rtol=0, atol=1e-5
  )


def test_fit_without_any_row_is_finite():
  state = probe.fit(jnp.ones((8, 7)), jnp.ones(8), probe.ProbeConfig(), jnp.zeros(8))
  np.testing.assert_array_equal(state.coef, 0.0)
  assert state.intercept == 0.0


def test_fit_is_deterministic():
  x, y, _ = hidden_states(64, 33)
  config = probe.ProbeConfig(pca_prompt=4)
  jax.tree.map(np.testing.assert_array_equal, probe.fit(x, y, config), probe.fit(x, y, config))


def test_configs_and_shapes_are_validated():
  for field, value in [
    ("alpha", 0.0),
    ("alpha", float("nan")),
    ("pca_prompt", -1),
    ("buffer_rows", 1),
    ("bootstrap_steps", -1),
    ("mlp_steps", 0),
  ]:
    with pytest.raises(UserError, match=f"probe.{field} must .*got {value}"):
      probe.ProbeConfig(**{field: value})
  with pytest.raises(ValueError, match="8 features is not two equal blocks and 3 scalars"):
    probe.fit(jnp.ones((8, 8)), jnp.ones(8), probe.ProbeConfig())
  with pytest.raises(ValueError, match=r"pca_prompt must be at most .* min\(4, 10\), got 5"):
    probe.fit(jnp.ones((4, 23)), jnp.ones(4), probe.ProbeConfig(pca_prompt=5))
  with pytest.raises(ValueError, match=r"pca_response must be at most .* min\(4096, 10\), got 11"):
    poise.init(probe.ProbeConfig(pca_response=11), n=2, num_features=23)
  with pytest.raises(ValueError, match="buffer_rows must be at least rollout.n=4.*got 2"):
    poise.init(probe.ProbeConfig(buffer_rows=2), n=4, num_features=23)
  with pytest.raises(ValueError, match="at least 2, got 1"):
    poise.init(probe.ProbeConfig(), n=1, num_features=23)
  with pytest.raises(ValueError, match="at least 2, got 1"):
    probe.leave_one_out_targets(jnp.ones((3, 1)))
  with pytest.raises(ValueError, match="at least 2, got 1"):
    poise.cross_rollout_advantages(jnp.ones((3, 1)), jnp.ones((3, 1)))
