"""GAE as the double sum of its definition, over ragged responses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import estimators, models
from poise_jax.estimators import ppo
from poise_jax.estimators.critic import CriticConfig
from poise_jax.learner.batching import flat, form
from poise_jax.learner.update import UpdateConfig
from poise_jax.models import ModelConfig
from poise_jax.rollout import RolloutConfig
from poise_jax.types import Experience, Prompts, Rollouts

LENGTHS = (6, 1, 0, 4)


def numbers():
  rng = np.random.default_rng(0)
  mask = np.arange(6) < np.array(LENGTHS)[:, None]
  rewards, values = rng.normal(size=(2, 4, 6)).astype(np.float32)
  return rewards, values, mask


def by_definition(rewards, values, gamma, lam):
  """Of one response, without padding."""
  after = [*values[1:], 0.0][: len(values)]
  deltas = [r + gamma * w - v for r, v, w in zip(rewards, values, after, strict=True)]
  return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_gae_is_its_double_sum(gamma, lam):
  rewards, values, mask = numbers()
  dirty = [np.where(mask, x, np.nan) for x in (rewards, values)]
  actual = ppo.gae(*dirty, mask, gamma, lam)
  for i, length in enumerate(LENGTHS):
    expected = by_definition(rewards[i, :length], values[i, :length], gamma, lam)
    np.testing.assert_allclose(actual[i, :length], expected, rtol=1e-5, atol=1e-6)
    assert not np.any(actual[i, length:])


def test_with_lam_1_the_target_is_the_reward_to_come():
  rewards, values, mask = numbers()
  targets = ppo.gae(rewards, values, mask, 1.0, 1.0) + values
  to_come = np.cumsum((rewards * mask)[:, ::-1], 1)[:, ::-1]
  np.testing.assert_allclose(targets[mask], to_come[mask], rtol=1e-5, atol=1e-6)


def test_a_fractional_reward_survives():
  """tunix kept rewards as integers: 0.5 became 0."""
  mask = np.ones((1, 2), bool)
  advantages = ppo.gae(np.array([[0.0, 0.5]]), np.zeros((1, 2)), mask, 1.0, 1.0)
  np.testing.assert_allclose(advantages, [[0.5, 0.5]])


def test_lam_of_each_length():
  rewards, values, _ = numbers()
  mask = np.arange(400) < np.array([400, 40, 20, 3, 0])[:, None]
  lam = ppo.length_adaptive_lam(mask)
  np.testing.assert_allclose(lam[:, 0], [0.95, 0.5, 0.0, 0.0, 0.0], atol=1e-6)
  mask = numbers()[2]
  lam = np.array([[0.1], [0.2], [0.3], [0.9]])
  actual = ppo.gae(rewards, values, mask, 0.9, lam)
  for i, length in enumerate(LENGTHS):
    expected = by_definition(rewards[i, :length], values[i, :length], 0.9, lam[i, 0])
    np.testing.assert_allclose(actual[i, :length], expected, rtol=1e-5, atol=1e-6)


def test_value_loss_and_its_clip():
  values, old, targets = np.array([[0.5, 2.0, np.nan]]), np.zeros((1, 3)), np.array([[1.0, 1.0, 0]])
  weights = np.array([[0.5, 0.5, 0.0]])
  loss = ppo.value_loss(values, old, targets, weights)
  np.testing.assert_allclose(loss, 0.5 * (0.5 * 0.25 + 0.5 * 1.0))
  loss, grad = jax.value_and_grad(ppo.value_loss)(values, old, targets, weights, 0.2)
  # The first is kept at 0.2, further from its target; the second at 0.2 too, closer to it.
  np.testing.assert_allclose(loss, 0.5 * (0.5 * 0.64 + 0.5 * 1.0), rtol=1e-6)
  np.testing.assert_allclose(grad, [[0.0, 0.5, 0.0]], atol=1e-6)


# The critics as estimators.

MODEL = ModelConfig("qwen3", 40, 16, 24, 2, 2, 1, 8)  # untied: a critic must do without lm_head
UPDATE = UpdateConfig(minibatch_size=4, microbatch_size=2)
CONFIG = CriticConfig(learning_rate=3e-3, whiten=False, value_clip=0.0)
P, N, TP, T = 4, 2, 3, 5


@pytest.fixture(scope="module")
def params():
  return models.init(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
  """Prompts whose first token says what every answer to them earns, on its last token."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(2, 40, (P, TP)).astype(np.int32)
  worth = np.array([0.0, 1.0, 0.0, 1.0], np.float32)
  tokens[:, 0] = worth
  mask = np.arange(T) < rng.integers(2, T + 1, (P, N, 1))
  scores = np.broadcast_to(worth[:, None], (P, N))
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
  return jax.tree.map(jnp.asarray, Experience(rollouts, scores, rewards, 0 * ids, ids))


def make(name, config=CONFIG, update=UPDATE):
  context = estimators.EstimatorContext(RolloutConfig(n=N), MODEL, update, critic=config)
  return estimators.make(name, context)


def train(name, params, batch, steps, config=CONFIG, update=UPDATE):
  """The state after so many steps on the same batch, the estimate with it, and the explained
  variance before each step."""
  estimator = make(name, config, update)
  state, explained = estimator.init(params), []
  for _ in range(steps):
    estimate = estimator.estimate(state, batch)
    explained.append(float(estimate.metrics["critic/explained_variance"]))
    state = estimator.update(state, batch, (), estimate.aux)
  return state, estimator.estimate(state, batch), explained


def test_a_critic_is_a_copy_that_predicts_nothing_yet(params, batch):
  estimator = make("ppo")
  state = estimator.init(params)
  assert "lm_head" in params and "lm_head" not in state.params["decoder"]
  for name in state.params["decoder"]:
    for a, b in zip(
      *map(jax.tree.leaves, (params[name], state.params["decoder"][name])), strict=True
    ):
      np.testing.assert_array_equal(a, b)
      assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()  # the update donates the policy
  estimate = estimator.estimate(state, batch)
  assert not estimate.baselines.any()
  # With lam = 0.95 and values of 0 a token's advantage is the reward, discounted to it.
  mask = np.asarray(batch.rollouts.mask)
  left = mask.sum(-1, keepdims=True) - 1 - np.arange(T)
  expected = np.where(mask, 0.95 ** np.maximum(left, 0) * np.asarray(batch.scores)[..., None], 0)
  np.testing.assert_allclose(estimate.advantages, expected, atol=1e-6)


def test_ppos_critic_learns_what_a_prompt_is_worth(params, batch):
  config = dataclasses.replace(CONFIG, value_lam=1.0)
  _, estimate, explained = train("ppo", params, batch, 30, config)
  assert explained[0] == 0 and explained[-1] > 0.9
  np.testing.assert_allclose(estimate.baselines, batch.scores, atol=0.2)
  assert np.abs(np.asarray(estimate.advantages)[np.asarray(batch.rollouts.mask)]).mean() < 0.15


def test_responses_in_one_row_have_the_values_of_each_alone(params, batch):
  state, _, _ = train("ppo", params, batch, 2)
  mask = np.asarray(flat(batch.rollouts.mask))
  alone, shared = (
    np.asarray(ppo.token_values(MODEL, state.params, form(batch.rollouts, m, {}), UPDATE))[mask]
    for m in (1, N)
  )
  assert np.ptp(alone) > 1e-3  # they differ, or equality says little
  np.testing.assert_allclose(shared, alone, atol=1e-6)


def test_a_value_depends_on_the_tokens_before_its_own(params, batch):
  state, _, _ = train("ppo", params, batch, 2)
  rows = form(batch.rollouts, 1, {})
  before = ppo.token_values(MODEL, state.params, rows, UPDATE)
  changed = rows.replace(tokens=rows.tokens.at[:, :, 2].add(1))
  after = ppo.token_values(MODEL, state.params, changed, UPDATE)
  mask = np.asarray(flat(rows.mask))
  np.testing.assert_array_equal(before[:, :3], after[:, :3])
  assert (np.asarray(before != after)[:, 3] | ~mask[:, 3]).all()


def test_the_critic_learns_from_the_values_of_its_estimate(params, batch, monkeypatch):
  """`update` does not run the critic over the batch again: its values come from `aux`."""
  estimator = make("ppo")
  state, _, _ = train("ppo", params, batch, 1)
  copy = jax.tree.map(jnp.copy, state)
  estimate = estimator.estimate(state, batch)
  monkeypatch.setattr(ppo, "_predict", None)
  plain = estimator.update(state, batch, (), estimate.aux)
  shifted = estimator.update(copy, batch, (), estimate.aux + 1.0)
  heads = [np.asarray(s.params["value_head"]["kernel"]) for s in (plain, shifted)]
  assert np.abs(heads[0] - heads[1]).max() > 1e-4


@pytest.mark.parametrize("name", ["ppo", "sppo"])
def test_micro_batches_do_not_change_a_critic(params, batch, name):
  states = [
    train(name, params, batch, 1, update=dataclasses.replace(UPDATE, microbatch_size=size))[0]
    for size in (2, 4)  # for sppo one prompt, and both of a mini-batch
  ]
  for a, b in zip(*(jax.tree.leaves(s.opt_state) for s in states), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
  assert int(states[0].step) == P * N // UPDATE.minibatch_size


def test_whitened_advantages_have_mean_zero_and_deviation_one(params, batch):
  config = dataclasses.replace(CONFIG, whiten=True)
  _, estimate, _ = train("ppo", params, batch, 3, config)
  values = np.asarray(estimate.advantages)[np.asarray(batch.rollouts.mask)]
  np.testing.assert_allclose([values.mean(), values.std(ddof=1)], [0, 1], atol=1e-4)


def test_sppos_critic_reads_the_prompt_alone_and_learns_a_probability(params, batch):
  state, estimate, explained = train("sppo", params, batch, 40)
  assert explained[0] == 0 and explained[-1] > 0.9
  np.testing.assert_allclose(estimate.baselines, batch.scores, atol=0.1)
  np.testing.assert_allclose(estimate.advantages, batch.scores - estimate.baselines, atol=1e-6)
  other = batch.replace(rollouts=batch.rollouts.replace(tokens=batch.rollouts.tokens + 1))
  again = make("sppo").estimate(state, other).baselines
  np.testing.assert_array_equal(again, estimate.baselines)


@pytest.mark.parametrize("field", ["lam", "value_lam", "gamma"])
def test_bad_options_are_named(field):
  with pytest.raises(ValueError, match=f"critic.{field} must .*1.5"):
    CriticConfig(**{field: 1.5})
