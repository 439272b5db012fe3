"""POISE's steps: bootstrap, predict then learn, domains, metrics and broken features."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from small_batch import experience_of

from poise_jax import models
from poise_jax.estimators import EstimatorContext, poise, probe, statistics
from poise_jax.rollout import RolloutConfig

MODEL = models.ModelConfig("llama", 8, 5, 8, 1, 1, 1, 2)  # 13 features
CONFIG = probe.ProbeConfig(alpha=1.0, buffer_rows=64, min_rows=12, bootstrap_steps=2)


def batch(seed, prompts=12, n=2, num_features=13):
  """Features whose first response dimension is about the chance of success."""
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
    assert all(
      np.isnan(metrics[f"probe/{name}"]) for name in ("mae", "pearson", "ceiling", "value")
    )
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


def test_a_baseline_does_not_depend_on_its_own_rollout():
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
    rows = mixed == domain
    np.testing.assert_allclose(
      metrics["probe/mae_by_domain"][domain], error[rows].mean(), rtol=1e-5
    )
    pearson = scipy.stats.pearsonr(predictions[rows].ravel(), rewards[rows][:, ::-1].ravel())[0]
    np.testing.assert_allclose(metrics["probe/pearson_by_domain"][domain], pearson, rtol=1e-4)
    ceiling = statistics.noise_ceiling(rewards, rows)
    np.testing.assert_allclose(metrics["probe/ceiling_by_domain"][domain], ceiling, rtol=1e-4)
  assert np.isnan(metrics["probe/mae_by_domain"][2])


def test_equal_rewards_stay_finite():
  config = dataclasses.replace(CONFIG, bootstrap_steps=0)
  _, features, domains = batch(0)
  for value in (0.0, 0.3, 1.0):
    state = poise.init(config, n=2, num_features=13)
    rewards = np.full((12, 2), value, np.float32)
    state = poise.update(state, rewards, features, domains, config)
    advantages, _, predictions, metrics = poise.estimate(state, rewards, features, domains, config)
    np.testing.assert_allclose(predictions, value, atol=1e-6)
    np.testing.assert_allclose(advantages, 0.0, atol=1e-6)
    assert metrics["probe/pearson"] == 0.0 and metrics["probe/variance_reduction"] == 0.0
    for name in ("probe/ceiling", "probe/ceiling_by_domain"):  # rewards without any variance
      assert np.isnan(metrics.pop(name)).all()
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
  ceiling = statistics.noise_ceiling(rewards, np.ones(64, bool))
  np.testing.assert_allclose(metrics["probe/ceiling"], ceiling, rtol=1e-5)
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


@pytest.mark.parametrize("minimum,buffered", [(24, 64), (60, 64), (256, 64)])
def test_a_domain_takes_its_probe_from_min_rows_on(minimum, buffered):
  """Of 12 groups a step, a quarter is of domain 1: 6 rows. A full buffer is enough."""
  config = dataclasses.replace(CONFIG, min_rows=minimum, buffer_rows=buffered, bootstrap_steps=0)
  state = poise.init(config, n=2, num_features=13, num_domains=2)
  domains = (np.arange(12) % 4 == 0).astype(np.int32)
  rows = np.zeros(2)
  for seed in range(12):
    rewards, features, _ = batch(seed)
    ready = rows >= min(minimum, buffered)
    assert state.fitted.tolist() == ready.tolist(), seed
    advantages, _, _, metrics = poise.estimate(state, rewards, features, domains, config)
    np.testing.assert_allclose(metrics["probe/active"], ready[domains].mean(), rtol=1e-6)
    rloo = rewards - rewards[:, ::-1]
    uses_rloo = (np.asarray(advantages) == rloo).all(1)
    assert uses_rloo[~ready[domains]].all()
    assert all(not uses_rloo[domains == domain].all() for domain in np.flatnonzero(ready))
    state = poise.update(state, rewards, features, domains, config)
    rows += [18, 6]
  assert ready.all()


def test_one_group_does_not_replace_rloo_by_default():
  config = probe.ProbeConfig(alpha=100.0, bootstrap_steps=1)
  state = poise.init(config, n=2, num_features=13, num_domains=2)
  rewards, features, domains = batch(0)
  domains[3] = 1
  state = poise.update(state, rewards, features, domains, config)
  assert not state.fitted.any()


def test_domains_have_buffers_of_their_own_size():
  """A domain with a buffer of 16 rows predicts as if it were alone with that buffer."""
  config = dataclasses.replace(CONFIG, domain_buffer_rows={"code": 16})
  sizes = config.rows_of(("math", "code"))
  assert sizes == (64, 16)
  together = poise.init(config, n=2, num_features=13, num_domains=2, rows=sizes)
  small = dataclasses.replace(CONFIG, buffer_rows=16)
  alone = poise.init(small, n=2, num_features=13)
  domains = np.arange(12, dtype=np.int32) % 2
  for seed in range(5):
    rewards, features, _ = batch(seed)
    together = poise.update(together, rewards, features, domains, config)
    odd = domains == 1
    alone = poise.update(alone, rewards[odd], features[odd], 0 * domains[odd], small)
  rewards, features, domains = batch(9)
  predictions = poise.estimate(together, rewards, features, domains + 1, config)[2]
  expected = poise.estimate(alone, rewards, features, domains, small)[2]
  np.testing.assert_allclose(predictions, expected, rtol=0, atol=1e-5)
  assert together.buffer.filled.tolist() == [30, 8]


def test_domains_can_share_a_probe():
  """Of four domains two share a probe, which sees the groups of both, as one domain would."""
  domains = ("arcs", "code", "math", "tables")
  config = dataclasses.replace(
    CONFIG, domain_probes={"arcs": "other", "tables": "other"}, domain_buffer_rows={"other": 32}
  )
  names, index = config.probes_of(domains)
  assert names == ("other", "code", "math") and index == (0, 1, 2, 0)
  assert config.rows_of(names) == (32, 64, 64)
  assert CONFIG.probes_of(domains) == (domains, (0, 1, 2, 3))
  merged = dataclasses.replace(config, domain_probes={})
  options = dict(rollout=RolloutConfig(feature_layers=(0,)), model=MODEL)
  pair = (
    poise.make(EstimatorContext(**options, probe=config, domains=domains)),
    poise.make(EstimatorContext(**options, probe=merged, domains=names)),
  )
  states = [estimator.init({}) for estimator in pair]
  for seed in range(4):
    rewards, features, _ = batch(seed)
    kinds = np.random.default_rng(seed).integers(0, 4, len(rewards))
    experience = experience_of(rewards, np.full(rewards.shape, 3), features=13)
    rollouts = experience.rollouts.replace(features=jnp.asarray(features))
    inputs = [
      experience.replace(rollouts=rollouts, domains=jnp.asarray(kind, jnp.int32))
      for kind in (kinds, np.array(index)[kinds])
    ]
    estimates = [e.estimate(*args) for e, *args in zip(pair, states, inputs, strict=True)]
    jax.tree.map(np.testing.assert_array_equal, *estimates)
    states = [e.update(*args, {}, ()) for e, *args in zip(pair, states, inputs, strict=True)]
  assert states[0].fitted.tolist() == [True, True, True]
  assert states[0].buffer.capacity.tolist() == [16, 32, 32]
  assert np.isfinite(estimates[0].metrics["probe/mae/other"])


def test_the_ceiling_is_that_of_the_targets():
  """With n samples predictions are compared with the mean of n - 1 rewards, which is less noisy."""
  state = poise.init(CONFIG, n=4, num_features=13)
  for seed in range(2):
    state = poise.update(state, *batch(seed, n=4), CONFIG)
  rewards, features, domains = batch(5, prompts=200, n=4)
  domains[150:] = -1
  metrics = poise.estimate(state, rewards, features, domains, CONFIG)[3]
  real = domains == 0
  ceilings = [statistics.noise_ceiling(rewards, real, samples) for samples in (3, 1)]
  np.testing.assert_allclose(metrics["probe/ceiling"], ceilings[0], rtol=1e-5)
  assert ceilings[0] > ceilings[1] + 0.1 and metrics["probe/pearson"] < ceilings[0]


@pytest.mark.parametrize("ablation", [dict(own_rollout=True), dict(reads=("prompt",))])
def test_one_rollout_a_prompt(ablation):
  """The baseline is the rollout's own prediction, and before that the mean of all others."""
  config = dataclasses.replace(CONFIG, min_rows=20, **ablation)
  state = poise.init(config, n=1, num_features=13)
  for seed in range(4):
    rewards, features, domains = batch(seed, n=1)
    advantages, baselines, predictions, metrics = poise.estimate(
      state, rewards, features, domains, config
    )
    if seed < 2:
      others = [np.delete(rewards, p).mean() for p in range(12)]
      np.testing.assert_allclose(baselines[:, 0], others, atol=1e-6)
      assert metrics["probe/active"] == 0
    else:
      past = [batch(s, n=1) for s in range(seed)]
      rows = np.concatenate([x for _, x, _ in past])[:, 0]
      targets = np.concatenate([r for r, _, _ in past])[:, 0]
      expected = probe.predict(probe.fit(rows, targets, config), features)
      np.testing.assert_allclose(predictions, expected, atol=1e-5)
      np.testing.assert_array_equal(baselines, predictions)
      np.testing.assert_allclose(metrics["probe/mae"], np.abs(expected - rewards).mean(), rtol=1e-4)
      assert np.isnan(metrics["probe/ceiling"])
    np.testing.assert_allclose(advantages, rewards - baselines, atol=1e-6)
    state = poise.update(state, rewards, features, domains, config)
