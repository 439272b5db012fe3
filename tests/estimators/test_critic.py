"""The critics of PPO and SPPO as estimators."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import estimators, models
from poise_jax.estimators import CriticConfig, EstimatorContext, ppo
from poise_jax.estimators import critic as critics
from poise_jax.learner.batching import form, map_microbatches, minibatches
from poise_jax.learner.update import UpdateConfig
from poise_jax.models import ModelConfig
from poise_jax.rollout import RolloutConfig
from poise_jax.types import Experience, Prompts, Rollouts

MODEL = ModelConfig("qwen3", 40, 16, 24, 2, 2, 1, 8)  # untied: a critic has no lm_head
UPDATE = UpdateConfig(minibatch_size=4, microbatch_size=2)
CONFIG = CriticConfig(learning_rate=3e-3, whiten=False, value_clip=0.0)
P, N, TP, T = 4, 2, 3, 5


@pytest.fixture(scope="module")
def params():
  return models.init(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def experience():
  """Prompts whose first token is the reward of every response to them, on its last token."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(2, 40, (P, TP)).astype(np.int32)
  value = np.array([0.0, 1.0, 0.0, 1.0], np.float32)
  tokens[:, 0] = value
  mask = np.arange(T) < rng.integers(2, T + 1, (P, N, 1))
  scores = np.broadcast_to(value[:, None], (P, N))
  last = np.arange(T) == mask.sum(-1)[..., None] - 1
  zeros = np.zeros((P, N, T), np.float32)
  rollouts = Rollouts(
    prompts=Prompts(tokens, np.ones((P, TP), bool)),
    tokens=rng.integers(2, 40, (P, N, T)).astype(np.int32),
    mask=mask,
    logprobs=zeros,
    entropies=zeros,
    truncated=mask[..., -1],
    features=zeros,
  )
  ids = np.arange(P, dtype=np.int32)
  rewards = np.where(last, scores[..., None], 0).astype(np.float32)
  return jax.tree.map(jnp.asarray, Experience(rollouts, scores, rewards, 0 * ids, ids, 0 * ids))


def make(name, config=CONFIG, update=UPDATE):
  context = EstimatorContext(RolloutConfig(n=N, max_new_tokens=T), MODEL, update, critic=config)
  return estimators.make(name, context)


def train(estimator, params, experience, steps):
  """The state after some steps, the estimate that follows, and each step's explained variance."""
  state, explained = estimator.init(params), []
  for _ in range(steps):
    estimate = estimator.estimate(state, experience)
    explained.append(float(estimate.metrics["critic/explained_variance"]))
    state = estimator.update(state, experience, (), estimate.aux)
  return state, estimator.estimate(state, experience), explained


def test_a_critic_starts_as_a_copy_that_predicts_zero(params, experience):
  estimator = make("ppo")
  state = estimator.init(params)
  assert "lm_head" in params and "lm_head" not in state.params["decoder"]
  for name in state.params["decoder"]:
    for a, b in zip(
      *map(jax.tree.leaves, (params[name], state.params["decoder"][name])), strict=True
    ):
      np.testing.assert_array_equal(a, b)
      assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()  # the update donates the policy
  estimate = estimator.estimate(state, experience)
  assert not estimate.baselines.any()
  # With lam = 0.95 and values of 0 a token's advantage is the discounted reward.
  mask = np.asarray(experience.rollouts.mask)
  left = mask.sum(-1, keepdims=True) - 1 - np.arange(T)
  expected = np.where(
    mask, 0.95 ** np.maximum(left, 0) * np.asarray(experience.scores)[..., None], 0
  )
  np.testing.assert_allclose(estimate.advantages, expected, atol=1e-6)


def test_ppos_critic_learns_the_value_of_a_prompt(params, experience):
  estimator = make("ppo", dataclasses.replace(CONFIG, value_lam=1.0))
  _, estimate, explained = train(estimator, params, experience, 30)
  assert explained[0] == 0 and explained[-1] > 0.9
  np.testing.assert_allclose(estimate.baselines, experience.scores, atol=0.2)
  advantages = np.asarray(estimate.advantages)[np.asarray(experience.rollouts.mask)]
  assert np.abs(advantages).mean() < 0.15


def token_values(state, rollouts):
  """V_t [P n, T] of a critic."""
  parts = minibatches(form(rollouts, {}), P * N, P * N)
  program = functools.partial(critics.microbatch_values, MODEL, UPDATE, state.params)
  return np.asarray(map_microbatches(program, parts)[0])


def test_a_value_depends_on_the_tokens_before_its_own(params, experience):
  state, _, _ = train(make("ppo"), params, experience, 2)
  rollouts = experience.rollouts
  before = token_values(state, rollouts)
  after = token_values(state, rollouts.replace(tokens=rollouts.tokens.at[..., 2].add(1)))
  mask = np.asarray(rollouts.mask).reshape(-1, T)
  early = mask & (np.arange(T) < 3)
  np.testing.assert_array_equal(before[early], after[early])
  assert mask[:, 3].any() and (before[:, 3] != after[:, 3])[mask[:, 3]].all()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_do_not_change_ppos_estimate(params, experience, size):
  state, estimate, _ = train(make("ppo"), params, experience, 2)
  estimator = make("ppo", update=dataclasses.replace(UPDATE, microbatch_size=size))
  other = estimator.estimate(state, experience)
  assert estimate.aux.shape == other.aux.shape == (P, N, T)
  mask = np.asarray(experience.rollouts.mask)
  np.testing.assert_allclose(np.asarray(other.aux)[mask], np.asarray(estimate.aux)[mask], atol=1e-6)
  np.testing.assert_allclose(other.advantages, estimate.advantages, atol=1e-6)


@pytest.mark.parametrize("name", ["ppo", pytest.param("sppo", marks=pytest.mark.slow)])
def test_micro_batches_do_not_change_a_critic(params, experience, name):
  states = [
    train(
      make(name, update=dataclasses.replace(UPDATE, microbatch_size=size)), params, experience, 1
    )[0]
    for size in (1, 2, 4)
  ]
  for state in states[1:]:
    for a, b in zip(*(jax.tree.leaves(s.opt_state) for s in (states[0], state)), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-6)
  assert int(states[0].step) == P * N // UPDATE.minibatch_size


def test_the_update_learns_from_the_values_of_the_estimate(params, experience):
  """It takes old values and targets from `aux`: other values there give another critic."""
  estimator = make("ppo", dataclasses.replace(CONFIG, value_clip=0.5, value_lam=0.5))
  aux = estimator.estimate(estimator.init(params), experience).aux

  def gradients(aux):
    state = estimator.update(estimator.init(params), experience, (), aux)
    return jax.tree.leaves(state.opt_state)

  first, again, other = (gradients(values) for values in (aux, aux, aux + 1.0))
  for a, b in zip(first, again, strict=True):
    np.testing.assert_array_equal(a, b)
  assert max(np.abs(a - b).max() for a, b in zip(first, other, strict=True)) > 1e-3


def test_ppos_critic_predicts_once_a_step(params, experience, monkeypatch):
  """Programs that predict a batch's values run in the estimate, and never in the update."""
  estimator = make("ppo")
  calls = []
  predict = ppo._predict
  monkeypatch.setattr(ppo, "_predict", lambda *args: calls.append("predict") or predict(*args))
  state = estimator.init(params)
  for _ in range(2):
    calls.append("estimate")
    estimate = estimator.estimate(state, experience)
    calls.append("update")
    state = estimator.update(state, experience, (), estimate.aux)
  assert calls == ["estimate", "predict", "update"] * 2


def test_the_update_runs_one_pass_over_each_micro_batch(params, experience, monkeypatch):
  """No pass of the critic is traced but the one whose gradient is taken."""
  passes = []
  values = critics.values

  def traced(*args):
    passes.append(args[2].tokens.shape)
    return values(*args)

  monkeypatch.setattr(critics, "values", traced)
  jax.clear_caches()
  config = dataclasses.replace(UPDATE, microbatch_size=4)  # a mini-batch is a micro-batch
  estimator = make("ppo", update=config)
  state = estimator.init(params)
  estimate = estimator.estimate(state, experience)
  assert len(set(passes)) == 1
  passes.clear()
  estimator.update(state, experience, (), estimate.aux)
  assert len(passes) == 1


def test_whitened_advantages_have_mean_zero_and_deviation_one(params, experience):
  estimator = make("ppo", dataclasses.replace(CONFIG, whiten=True))
  _, estimate, _ = train(estimator, params, experience, 3)
  values = np.asarray(estimate.advantages)[np.asarray(experience.rollouts.mask)]
  np.testing.assert_allclose([values.mean(), values.std(ddof=1)], [0, 1], atol=1e-4)


def test_sppos_critic_reads_the_prompt_alone_and_learns_a_probability(params, experience):
  estimator = make("sppo")
  state, estimate, explained = train(estimator, params, experience, 40)
  assert explained[0] == 0 and explained[-1] > 0.9
  np.testing.assert_allclose(estimate.baselines, experience.scores, atol=0.1)
  np.testing.assert_allclose(estimate.advantages, experience.scores - estimate.baselines, atol=1e-6)
  rollouts = experience.rollouts
  other = experience.replace(rollouts=rollouts.replace(tokens=rollouts.tokens + 1))
  np.testing.assert_array_equal(estimator.estimate(state, other).baselines, estimate.baselines)


def test_a_pass_of_the_critic_names_its_head(params, experience):
  state = make("ppo").init(params)
  (part,) = minibatches(form(experience.rollouts, {}), P * N, P * N)
  lowered = critics.microbatch_values.lower(
    MODEL, UPDATE, state.params, part.batch, part.plan.micro_batches[0]
  )
  assert "value_head" in lowered.as_text(debug_info=True)


@pytest.mark.parametrize("field", ["lam", "value_lam", "gamma"])
def test_bad_options_are_named(field):
  with pytest.raises(ValueError, match=rf"critic.{field} must be in \[0, 1\], got 1.5"):
    CriticConfig(**{field: 1.5})
