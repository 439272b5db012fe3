"""What an estimator predicts of a prompt, from each of its responses."""

import dataclasses

import jax
import numpy as np
import pytest
from small_batch import T, experience_of, padded

from poise_jax import estimators, models
from poise_jax.estimators import EstimatorContext, ProbeConfig
from poise_jax.learner.update import UpdateConfig
from poise_jax.models import ModelConfig
from poise_jax.rollout import RolloutConfig, feature_size
from poise_jax.types import Prompts

MODEL = ModelConfig("qwen3", 9, 16, 16, 1, 2, 1, 8)
P, N = 4, 2


def context(**probe):
  return EstimatorContext(
    rollout=RolloutConfig(n=N, max_new_tokens=T, feature_layers=(0,)),
    model=MODEL,
    update=UpdateConfig(minibatch_size=P * N, microbatch_size=2 * N),
    probe=ProbeConfig(bootstrap_steps=0, min_rows=4, buffer_rows=16, **probe),
    domains=("maths", "words"),
  )


def batch(features=0, n=N, seed=0):
  """Prompts of different lengths with random rewards; the last one is of the second domain."""
  rng = np.random.default_rng(seed)
  made = experience_of(rng.random((P, n)), rng.integers(1, T, (P, n)), features=features, seed=seed)
  mask = np.arange(6) >= np.arange(P)[:, None]
  tokens = np.random.default_rng(seed + 99).integers(3, 9, mask.shape).astype(np.int32)
  prompts = Prompts(tokens, mask)
  return made.replace(
    rollouts=made.rollouts.replace(prompts=prompts), domains=np.array([0, 0, 0, 1], np.int32)
  )


@pytest.mark.parametrize("name", ["ppo", "sppo"])
def test_a_critic_predicts_the_baseline_that_it_would_use(name):
  estimator = estimators.make(name, context())
  state = estimator.init(models.init(MODEL, jax.random.key(1)))
  kernel = jax.random.normal(jax.random.key(2), (MODEL.hidden_size,))  # a new head is zero
  head = {**state.params["value_head"], "kernel": kernel}
  state = state.replace(params={**state.params, "value_head": head})
  experience = batch()
  predictions = np.asarray(estimator.predict(state, experience))
  baselines = estimator.estimate(state, experience).baselines
  np.testing.assert_allclose(predictions, baselines, atol=1e-5)
  assert len(np.unique(predictions[:, 0].round(3))) == P  # of four prompts
  several = estimator.predict(state, batch(n=7))  # any number of responses
  np.testing.assert_allclose(several[:, :2], predictions, atol=1e-5)


@pytest.mark.parametrize("name", ["poise", "poise_sibling"])
def test_a_probe_predicts_the_baseline_of_the_sibling(name):
  experience = batch(feature_size(MODEL, context().rollout))
  estimator = estimators.make(name, context())
  state = estimator.init(())
  assert np.isnan(estimator.predict(state, experience)).all()  # before the first fit
  for seed in range(3):
    learned = batch(feature_size(MODEL, context().rollout), seed=seed + 1)
    learned = learned.replace(domains=0 * learned.domains)
    state = estimator.update(state, learned, (), ())
  predictions = np.asarray(estimator.predict(state, padded(experience, 6)))
  assert np.isnan(predictions[3:]).all()  # a domain without a fit, and padding
  baselines = np.asarray(estimator.estimate(state, experience).baselines)[:3]
  np.testing.assert_allclose(predictions[:3], baselines[:, ::-1], atol=1e-5)
  assert np.ptp(predictions[:3]) > 0.01


def test_an_unknown_domain_has_no_prediction():
  experience = batch(feature_size(MODEL, context().rollout))
  estimator = estimators.make("poise", dataclasses.replace(context(), domains=("maths",)))
  state = estimator.init(())
  for _ in range(2):
    known = experience.replace(domains=0 * experience.domains)
    state = estimator.update(state, known, (), ())
  unknown = experience.replace(domains=np.array([0, -1, 0, -1], np.int32))
  predictions = estimator.predict(state, unknown)
  assert np.isnan(np.asarray(predictions)).all(1).tolist() == [False, True, False, True]


@pytest.mark.parametrize("name", ["rloo", "grpo", "reinforce_pp"])
def test_what_compares_responses_predicts_nothing(name):
  assert estimators.make(name, context()).predict is None
