import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from poise_jax.estimators import poise, probe, ridge
from poise_jax.estimators.buffer import insert


def hidden_states(rows, num_features, decades=4, outlier=1000.0, held_out=128, seed=0):
  """Rows like a language model's: graded spectrum, outlier dimensions, siblings share prompts."""
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
    probe.ProbeConfig(alpha=100.0),
    probe.ProbeConfig(alpha=0.01, pca_prompt=8, pca_response=16),
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


def test_fit_keeps_its_digits_at_the_papers_penalty():
  config = probe.ProbeConfig(alpha=0.01, buffer_rows=4096)  # the paper's penalty
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
  np.testing.assert_allclose(
    directions @ directions.T, expected.T @ expected, rtol=0, atol=1e-4
  )


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
    rows[:, 7] = 1000.0 + 1e-3 * rows[:, 8]  # varies in its last digits only: not a constant
  config = probe.ProbeConfig(alpha=0.01)
  state = probe.fit(x, y, config)
  expected = sklearn_predictions(x, y, held_out, config)
  np.testing.assert_allclose(unclipped(state, held_out), expected, rtol=0, atol=3e-5)
  np.testing.assert_array_equal(np.asarray(state.coef)[[3, 4, -1]], 0.0)


@pytest.mark.parametrize(("shape", "components"), [((120, 203), 0), ((300, 53), 8)])
def test_rows_of_weight_zero_have_no_influence(shape, components):
  config = probe.ProbeConfig(alpha=1.0, pca_prompt=components, pca_response=components)
  x, y, held_out = hidden_states(*shape)
  keep = np.random.default_rng(1).random(len(x)) < 0.4
  subset = probe.fit(x[keep], y[keep], config)
  x[~keep], y[~keep] = np.nan, 1e6
  weighted = probe.fit(x, y, config, keep.astype(np.float32))
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
    ("mlp_steps", 1.5),
    ("buffer_rows", 1),
    ("bootstrap_steps", -1),
  ]:
    with pytest.raises(ValueError, match=field):
      probe.ProbeConfig(**{field: value})
  with pytest.raises(ValueError, match="8 features is not two equal blocks and 3 scalars"):
    probe.fit(jnp.ones((8, 8)), jnp.ones(8), probe.ProbeConfig())
  with pytest.raises(ValueError, match=r"pca_prompt must be at most .* min\(4, 10\), got 5"):
    probe.fit(jnp.ones((4, 23)), jnp.ones(4), probe.ProbeConfig(pca_prompt=5))
  with pytest.raises(ValueError, match=r"pca_response must be at most .* min\(4096, 10\), got 11"):
    poise.init(probe.ProbeConfig(pca_response=11), n=2, num_features=23)
  with pytest.raises(ValueError, match="buffer_rows must be at least rollout.n=4, .* got 2"):
    poise.init(probe.ProbeConfig(buffer_rows=2), n=4, num_features=23)
  with pytest.raises(ValueError, match="rollout.n must be at least 2, got 1"):
    poise.init(probe.ProbeConfig(), n=1, num_features=23)
  with pytest.raises(ValueError, match="rollout.n must be at least 2, got 1"):
    probe.leave_one_out_targets(jnp.ones((3, 1)))
  with pytest.raises(ValueError, match="rollout.n must be at least 2, got 1"):
    poise.cross_rollout_advantages(jnp.ones((3, 1)), jnp.ones((3, 1)))


@pytest.mark.parametrize("n", [2, 4])
def test_leave_one_out_and_cross_rollout_against_loops(n):
  rng = np.random.default_rng(n)
  rewards, predictions = rng.random((2, 5, n)).astype(np.float32)
  targets = probe.leave_one_out_targets(jnp.asarray(rewards))
  advantages = poise.cross_rollout_advantages(jnp.asarray(rewards), jnp.asarray(predictions))
  for p in range(5):
    for i in range(n):
      siblings = [j for j in range(n) if j != i]
      np.testing.assert_allclose(targets[p, i], rewards[p, siblings].mean(), rtol=1e-6)
      expected = rewards[p, i] - predictions[p, siblings].mean()
      np.testing.assert_allclose(advantages[p, i], expected, atol=1e-6)
  if n == 2:
    np.testing.assert_array_equal(targets, rewards[:, ::-1])


def test_buffer_is_a_queue_of_groups_per_domain():
  num_domains, groups, n, num_features = 3, 5, 2, 4
  config = probe.ProbeConfig(scalars=0, buffer_rows=groups * n + 1)
  buffer = poise.init(config, n, num_features, num_domains).buffer
  queues = [collections.deque(maxlen=groups) for _ in range(num_domains)]
  rng = np.random.default_rng(0)
  for arrivals in [1, 3, 17, 3, 3, 1, 17, 3, 1, 1, 3, 17, 17] + [3] * 12:
    features = rng.normal(size=(arrivals, n, num_features)).astype(np.float32)
    targets = rng.random((arrivals, n)).astype(np.float32)
    # The last domain stays empty for a while; whole batches of one domain overflow the ring.
    domains = rng.integers(0, 2 + (queues[0].maxlen == len(queues[0])), arrivals)
    domains = np.full_like(domains, domains[0]) if rng.random() < 0.3 else domains
    buffer = insert(buffer, features, targets, domains)
    for group, target, domain in zip(features, targets, domains, strict=True):
      queues[domain].append((group, target))
    for domain, queue in enumerate(queues):
      count = int(buffer.count[domain])
      slots = [j % groups for j in range(max(count - groups, 0), count)]
      assert len(slots) == len(queue)
      for slot, (group, target) in zip(slots, queue, strict=True):
        np.testing.assert_array_equal(buffer.features[domain, slot], group)
        np.testing.assert_array_equal(buffer.targets[domain, slot], target)
  assert buffer.count.sum() > 3 * groups * num_domains


def test_groups_of_unknown_domains_are_dropped():
  buffer = poise.init(probe.ProbeConfig(scalars=0, buffer_rows=4), 2, 2, num_domains=2).buffer
  after = insert(buffer, jnp.ones((3, 2, 2)), jnp.ones((3, 2)), jnp.array([-1, 2, 5]))
  jax.tree.map(np.testing.assert_array_equal, after, buffer)


CONFIG = probe.ProbeConfig(alpha=1.0, buffer_rows=64, bootstrap_steps=2)


def batch(seed, prompts=12, n=2, num_features=13):
  """Features whose first response dimension tells the chance of success."""
  rng = np.random.default_rng(seed)
  chance = rng.random((prompts, 1))
  features = rng.normal(size=(prompts, n, num_features)).astype(np.float32)
  features[..., 5] = chance + 0.05 * features[..., 5]
  rewards = (rng.random((prompts, n)) < chance).astype(np.float32)
  return rewards, features, np.zeros(prompts, np.int32)


def run(steps, config=CONFIG):
  state = poise.init(config, n=2, num_features=13)
  for seed in range(steps):
    state = poise.update(state, *batch(seed), config)
  return state


def test_bootstrap_is_rloo_then_the_probe_takes_over():
  state = poise.init(CONFIG, n=2, num_features=13)
  for step in range(2):
    rewards, features, domains = batch(step)
    advantages, baselines, predictions, metrics = poise.estimate(
      state, rewards, features, domains, CONFIG
    )
    np.testing.assert_array_equal(advantages, rewards - rewards[:, ::-1])
    np.testing.assert_array_equal(baselines, rewards[:, ::-1])
    np.testing.assert_array_equal(predictions, 0.0)
    assert metrics["probe/active"] == 0.0
    assert all(np.isnan(metrics[f"probe/{name}"]) for name in ("mae", "pearson", "value"))
    assert not state.fitted.any()
    state = poise.update(state, rewards, features, domains, CONFIG)
  assert state.step == 2 and state.fitted.all()
  rewards, features, domains = batch(2)
  advantages, baselines, predictions, metrics = poise.estimate(
    state, rewards, features, domains, CONFIG
  )
  np.testing.assert_array_equal(baselines, predictions[:, ::-1])
  np.testing.assert_array_equal(advantages, rewards - predictions[:, ::-1])
  assert metrics["probe/active"] == 1.0


def test_without_a_bootstrap_an_unfitted_probe_still_gives_rloo():
  config = dataclasses.replace(CONFIG, bootstrap_steps=0)
  state = poise.init(config, n=2, num_features=13)
  rewards, features, domains = batch(0)
  advantages = poise.estimate(state, rewards, features, domains, config)[0]
  np.testing.assert_array_equal(advantages, rewards - rewards[:, ::-1])
  state = poise.update(state, rewards, features, domains, config)
  assert poise.estimate(state, rewards, features, domains, config)[3]["probe/active"] == 1.0


def test_predict_then_learn():
  """The probe of step t is the fit of the last buffer_rows rollouts of steps < t."""
  state = run(4)
  past = [batch(seed) for seed in range(4)]
  rows = np.concatenate([features for _, features, _ in past])[-32:].reshape(64, 13)
  targets = np.concatenate([rewards[:, ::-1] for rewards, _, _ in past])[-32:].reshape(64)
  rewards, features, domains = batch(4)
  predictions = poise.estimate(state, rewards, features, domains, CONFIG)[2]
  expected = probe.predict(probe.fit(rows, targets, CONFIG), features)
  np.testing.assert_allclose(predictions, expected, rtol=0, atol=1e-5)
  other = poise.estimate(state, 1 - rewards, features, domains, CONFIG)[2]
  np.testing.assert_array_equal(predictions, other)


def test_own_rollout_does_not_reach_its_baseline():
  state = run(3)
  rewards, features, domains = batch(3, n=2)
  before = poise.estimate(state, rewards, features, domains, CONFIG)[1]
  changed = features.copy()
  changed[:, 0] += 1.0
  after = poise.estimate(state, rewards, changed, domains, CONFIG)[1]
  np.testing.assert_array_equal(before[:, 0], after[:, 0])
  assert (before[:, 1] != after[:, 1]).any()


def test_domains_do_not_leak():
  """Domain 1 among others equals domain 1 alone; a domain without data stays on RLOO."""
  together = poise.init(CONFIG, n=2, num_features=13, num_domains=3)
  alone = poise.init(CONFIG, n=2, num_features=13)
  for seed in range(3):
    rewards, features, _ = batch(seed)
    domains = np.arange(12, dtype=np.int32) % 2
    together = poise.update(together, rewards, features, domains, CONFIG)
    odd = domains == 1
    alone = poise.update(alone, rewards[odd], features[odd], domains[odd] * 0, CONFIG)
  np.testing.assert_array_equal(together.fitted, [True, True, False])
  rewards, features, domains = batch(9)
  predictions = poise.estimate(together, rewards, features, domains + 1, CONFIG)[2]
  expected = poise.estimate(alone, rewards, features, domains, CONFIG)[2]
  np.testing.assert_allclose(predictions, expected, rtol=0, atol=1e-6)
  mixed = np.arange(12, dtype=np.int32) % 3
  advantages, _, _, metrics = poise.estimate(together, rewards, features, mixed, CONFIG)
  np.testing.assert_allclose(metrics["probe/active"], 2 / 3, rtol=1e-6)
  rloo = rewards - rewards[:, ::-1]
  np.testing.assert_array_equal(advantages[mixed == 2], rloo[mixed == 2])
  predictions = np.asarray(poise.estimate(together, rewards, features, mixed, CONFIG)[2])
  error = np.abs(predictions - rewards[:, ::-1])
  np.testing.assert_allclose(metrics["probe/mae"], error[mixed < 2].mean(), rtol=1e-5)
  for domain in range(2):
    of = mixed == domain
    np.testing.assert_allclose(metrics["probe/mae_by_domain"][domain], error[of].mean(), rtol=1e-5)
    pearson = scipy.stats.pearsonr(predictions[of].ravel(), rewards[of][:, ::-1].ravel())[0]
    np.testing.assert_allclose(metrics["probe/pearson_by_domain"][domain], pearson, rtol=1e-4)
  assert np.isnan(metrics["probe/mae_by_domain"][2])


def test_equal_rewards_stay_finite():
  config = dataclasses.replace(CONFIG, bootstrap_steps=0)
  _, features, domains = batch(0)
  for value in (0.0, 0.3, 1.0):
    state = poise.init(config, n=2, num_features=13)
    rewards = np.full((12, 2), value, np.float32)
    state = poise.update(state, rewards, features, domains, config)
    advantages, _, predictions, metrics = poise.estimate(
      state, rewards, features, domains, config
    )
    np.testing.assert_allclose(predictions, value, atol=1e-6)
    np.testing.assert_allclose(advantages, 0.0, atol=1e-6)
    assert metrics["probe/pearson"] == 0.0 and metrics["probe/variance_reduction"] == 0.0
    assert all(np.isfinite(value).all() for value in metrics.values())


def test_a_fit_on_broken_features_falls_back_to_rloo():
  state = run(2)
  rewards, features, domains = batch(5)
  features[0, 0, 0] = np.nan
  state = poise.update(state, rewards, features, domains, CONFIG)
  rewards, features, domains = batch(6)
  advantages, _, predictions, metrics = poise.estimate(state, rewards, features, domains, CONFIG)
  np.testing.assert_array_equal(advantages, rewards - rewards[:, ::-1])
  np.testing.assert_array_equal(predictions, 0.0)
  assert metrics["probe/active"] == 0.0


def test_metrics_against_numpy_and_scipy():
  state = run(4)
  rewards, features, domains = batch(7, prompts=64)
  advantages, baselines, predictions, metrics = map(
    lambda x: jax.tree.map(np.asarray, x),
    poise.estimate(state, rewards, features, domains, CONFIG),
  )
  targets = rewards[:, ::-1]
  np.testing.assert_allclose(metrics["probe/mae"], np.abs(predictions - targets).mean(), rtol=1e-5)
  pearson = scipy.stats.pearsonr(predictions.ravel(), targets.ravel())[0]
  np.testing.assert_allclose(metrics["probe/pearson"], pearson, rtol=1e-4)
  assert pearson > 0.3
  reduction = 1 - advantages.var() / rewards.var()
  np.testing.assert_allclose(metrics["probe/variance_reduction"], reduction, rtol=1e-4)
  np.testing.assert_allclose(metrics["probe/value"], predictions.mean(), rtol=1e-5)
  np.testing.assert_allclose(advantages, rewards - baselines, atol=1e-6)


def test_estimate_and_update_trace_once_into_one_program():
  @jax.jit
  def step(state, rewards, features, domains):
    advantages, _, _, metrics = poise.estimate(state, rewards, features, domains, CONFIG)
    return poise.update(state, rewards, features, domains, CONFIG), advantages, metrics

  state = poise.init(CONFIG, n=2, num_features=13)
  for seed in range(4):
    state, advantages, _ = step(state, *batch(seed))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, run(4))
  assert step._cache_size() == 1 and advantages.shape == (12, 2)
