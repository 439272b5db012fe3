"""The parts of a training step: their order, what each of them gets, and their times."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny

from poise_jax.estimators import Estimator
from poise_jax.training import build, step
from poise_jax.training.rewards import RewardConfig
from poise_jax.types import Estimate, Experience, Prompts, Rollouts, TrainState

P, N, T = 4, 2, 3
ZERO = jnp.zeros((), jnp.int32)
POLICY = TrainState(ZERO, {"updates": jnp.zeros(())}, (), ZERO, ZERO)


@pytest.fixture(scope="module")
def experiment():
  return build.build(tiny(warm_start__steps=0))


def make_experience(reward=1.0):
  """Groups of responses that each get `reward`; one response is truncated."""
  ones = jnp.ones((P, N, T), jnp.float32)
  rollouts = Rollouts(
    prompts=Prompts(jnp.ones((P, 2), jnp.int32), jnp.ones((P, 2), bool)),
    tokens=jnp.ones((P, N, T), jnp.int32),
    mask=jnp.ones((P, N, T), bool),
    logprobs=-ones,
    entropies=ones,
    truncated=jnp.zeros((P, N), bool).at[0, 1].set(True),
    features=jnp.ones((P, N, 5)),
  )
  ids = jnp.arange(P)
  return Experience(rollouts, ones[..., 0], reward * ones / T, domains=0 * ids, prompt_ids=ids)


@pytest.fixture
def learn(experiment, monkeypatch):
  """learn(...) -> (what step.learn returns, its calls in order).

  The estimator and the policy's update only count their calls, and record what they get.
  """
  calls = []

  def estimate(state, experience):
    calls.append(("estimate", {"state": float(state)}))
    baselines = jnp.zeros(experience.scores.shape)
    return Estimate(experience.rewards, baselines, {"probe/mae": jnp.ones(())}, aux=jnp.ones(2))

  def update_estimator(state, experience, params, aux):
    calls.append(("update estimator", {"params": float(params["updates"]), "aux": aux.tolist()}))
    return state + 1

  def update_policy(model, config, state, experience, advantages, reference, groups):
    mask = np.asarray(experience.rollouts.mask)
    calls.append(("update policy", {"mask": mask, "groups": groups}))
    state = state.replace(params={"updates": state.params["updates"] + 1})
    return state, {"policy/loss": jnp.zeros(())}

  monkeypatch.setattr(step.update, "step", update_policy)

  def learn(number=1, experience=None, groups=P, reward=None, pretrain_steps=0):
    estimator = Estimator(
      lambda params: jnp.zeros(()), estimate, update_estimator, pretrain_steps=pretrain_steps
    )
    run = dataclasses.replace(experiment, estimator=estimator, reward=reward or RewardConfig())
    experience = experience or make_experience()
    clock = step.Clock()
    state = jnp.zeros(())
    return step.learn(run, number, POLICY, state, (), experience, groups, clock), calls

  return learn


def test_the_estimator_predicts_before_and_learns_after_the_policys_update(learn):
  (policy, estimator, estimate, metrics), calls = learn()
  assert [name for name, _ in calls] == ["estimate", "update policy", "update estimator"]
  assert calls[0][1] == {"state": 0.0}
  assert calls[2][1] == {"params": 1.0, "aux": [1.0, 1.0]}  # the new policy, the estimate's aux
  assert policy.params["updates"] == estimator == 1
  assert {"probe/mae", "policy/loss", "reward/mean"} < set(metrics)
  np.testing.assert_allclose(metrics["reward/mean"], 1.0)


def test_in_pretraining_only_the_estimator_learns(learn):
  (policy, estimator, *_), calls = learn(number=2, pretrain_steps=2)
  assert [name for name, _ in calls] == ["estimate", "update estimator"]
  assert policy.params["updates"] == 0 and estimator == 1
  assert learn(number=3, pretrain_steps=2)[0][0].params["updates"] == 1


def test_a_batch_of_padding_updates_no_policy_and_has_no_metrics(learn):
  (policy, _, _, metrics), _ = learn(groups=0)
  assert policy.params["updates"] == 0 and set(metrics) == {"probe/mae"}


@pytest.mark.parametrize("reward", [np.nan, np.inf])
def test_an_estimator_does_not_learn_from_values_that_are_not_finite(learn, reward):
  (policy, estimator, *_), _ = learn(experience=make_experience(reward))
  assert policy.params["updates"] == 1 and estimator == 0


def test_overlong_filter_masks_truncated_responses_in_the_policys_loss(learn):
  _, calls = learn(reward=RewardConfig(overlong_filter=True))
  mask = dict(calls)["update policy"]["mask"]
  assert not mask[0, 1].any() and mask.sum() == (P * N - 1) * T


def test_the_clock_sums_the_times_of_parts_and_other_metrics(monkeypatch):
  times = iter([10.0, 11.0, 14.0, 14.5])
  monkeypatch.setattr(step.time, "perf_counter", lambda: next(times))
  clock = step.Clock(checkpoint=0.25)
  for part in ("rollout", "reward", "rollout"):
    clock.lap(part)
    clock.add("collect/tokens", 3)
  assert clock.metrics() == {
    "time/step": 4.75,
    "time/checkpoint": 0.25,
    "time/rollout": 1.5,
    "time/reward": 3.0,
    "collect/tokens": 9.0,
  }


def test_no_two_policies_and_no_two_rows_draw_with_the_same_key():
  """The sampler draws a row's tokens with keys that it folds the row's number into."""

  @jax.jit
  def keys_of(key, number, generation):
    policy, reference = step._sampling_keys(key, number, generation)
    # As rows of the sampler, and as what it folds those numbers into.
    rows = [
      jax.vmap(functools.partial(jax.random.fold_in, root))(jnp.arange(16))
      for root in (policy, reference)
    ]
    return jax.random.key_data(jnp.concatenate([policy[None], reference[None], *rows]))

  root = jax.random.key(5)
  found = [
    tuple(key)
    for number in (1, 2, 3)
    for generation in (0, 1, 2)
    for key in np.asarray(keys_of(root, jnp.int32(number), jnp.int32(generation)))
  ]
  found.append(tuple(np.asarray(jax.random.key_data(jax.random.fold_in(root, 0)))))  # weights
  assert len(set(found)) == len(found) == 3 * 3 * 34 + 1
