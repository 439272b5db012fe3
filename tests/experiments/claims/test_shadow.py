"""Shadows see what POISE sees, are what they say, and change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims.tracking import shadow
from poise_jax import models
from poise_jax.estimators import CriticConfig, EstimatorContext, ProbeConfig, poise
from poise_jax.learner.config import UpdateConfig
from poise_jax.rollout import RolloutConfig
from poise_jax.types import Experience, Prompts, Rollouts

P, T, STEPS = 8, 3, 9
MODEL = models.ModelConfig("qwen3", 9, 8, 8, 1, 1, 1, 8)
CONTEXT = EstimatorContext(
  RolloutConfig(n=2, feature_layers=(0,)),
  MODEL,
  UpdateConfig(minibatch_size=8, microbatch_size=8),
  ProbeConfig(alpha=1.0, buffer_rows=32, min_rows=4, bootstrap_steps=4),
  CriticConfig(learning_rate=1e-2),
)


def experience(seed):
  rng = np.random.default_rng(seed)
  rewards = jnp.asarray(rng.integers(0, 2, (P, 2)), jnp.float32)
  tokens = jnp.asarray(rng.integers(1, 9, (P, 2, T)))
  zeros, mask = jnp.zeros((P, 2, T)), jnp.ones((P, 2, T), bool)
  features = jnp.asarray(rng.normal(size=(P, 2, 19)), jnp.float32)
  prompts = Prompts(tokens[:, 0], mask[:, 0])
  rollouts = Rollouts(prompts, tokens, mask, zeros, zeros, mask[..., 0], features)
  token_rewards = zeros.at[..., -1].set(rewards)
  ids = jnp.zeros(P, jnp.int32)
  return Experience(rollouts, rewards, token_rewards, ids, ids)


@pytest.fixture(scope="module")
def history():
  """States before and estimates of STEPS steps, with shadows and of POISE alone."""
  params = models.init(MODEL, jax.random.key(0))
  made = {}
  for name, make in (("shadows", shadow.make), ("alone", poise.make)):
    estimator, rows = make(CONTEXT), []
    state = estimator.init(params)
    for step in range(STEPS):
      batch = experience(step)
      estimate = estimator.estimate(state, batch)
      probes = state if name == "alone" else state["shadows"]
      rows.append((jax.tree.map(np.asarray, probes), estimate, estimator.predict(state, batch)))
      state = estimator.update(state, batch, params, estimate.aux)
    made[name] = rows
  return made


def test_training_is_that_of_poise_alone(history):
  for (_, a, predicted), (_, b, expected) in zip(*history.values(), strict=True):
    np.testing.assert_array_equal(a.advantages, b.advantages)
    np.testing.assert_array_equal(predicted, expected)
    assert b.metrics.keys() < a.metrics.keys()


def test_shadows_are_what_they_say(history):
  states = [probes for probes, _, _ in history["shadows"]]
  kernels = {
    name: [jax.tree.leaves(state[name].probes) for state in states] for name in shadow.VARIANTS
  }

  def refits(name):
    pairs = zip(kernels[name], kernels[name][1:], strict=False)
    return [
      step
      for step, (a, b) in enumerate(pairs, 1)
      if any((x != y).any() for x, y in zip(a, b, strict=True))
    ]

  assert refits("probe") == [4, 5, 6, 7, 8]
  assert refits("refitted every 4 steps") == [4, 8]
  assert refits("refitted every 16 steps") == [4]
  sizes = {name: states[0][name].buffer.targets[0].size for name in shadow.VARIANTS}
  assert sizes["probe"] == 32 and sizes["a quarter of the buffer"] == 8
  assert sizes["half of the buffer"] == 16 and sizes["four times the buffer"] == 128


def test_metrics_are_those_of_the_probe_and_of_the_critic(history):
  early, late = history["shadows"][1][1].metrics, history["shadows"][-1][1].metrics
  assert np.isnan(early["shadow/probe/mae"]) and not np.isnan(early["shadow/critic/mae"])
  for theirs, ours in (("mae", "mae"), ("pearson", "pearson"), *[("variance_reduction",) * 2]):
    np.testing.assert_allclose(late[f"shadow/probe/{ours}"], late[f"probe/{theirs}"], atol=1e-6)
  critic = [row[1].metrics["shadow/critic/mae"] for row in history["shadows"]]
  np.testing.assert_allclose(critic[0], 0.5)  # it starts at one half
  assert critic[-1] != critic[0]
  last = history["shadows"][-1][0]
  first = jax.tree.leaves(history["shadows"][0][0]["critic"].params)

  def moved(name):
    pairs = zip(jax.tree.leaves(last[name].params), first, strict=True)
    return np.mean([np.abs(a - b).mean() for a, b in pairs])

  ratio = moved("critic at a tenth of the rate") / moved("critic")
  assert 0.05 < ratio < 0.2


def test_probes_of_several_domains_are_refused_nothing():
  context = dataclasses.replace(CONTEXT, domains=("a", "b"))
  estimator = shadow.make(context)
  state = estimator.init(models.init(MODEL, jax.random.key(0)))
  assert np.isfinite(estimator.estimate(state, experience(0)).advantages).all()
