"""Advantages, losses and gradients against verl and TRL (fixtures/make_peers.py) and live rlax."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from poise_jax import estimators
from poise_jax.estimators.ppo import gae, value_loss
from poise_jax.learner import losses
from poise_jax.learner.losses import PolicyLossConfig

PEERS = json.loads(pathlib.Path(__file__).parents[1].joinpath("fixtures", "peers.json").read_text())
X = {name: jnp.asarray(value, jnp.float32) for name, value in PEERS["inputs"].items()}
MASK = X["mask"] > 0
B, T = MASK.shape
REWARDS = X["rewards"].reshape(3, 4)
VERL, TRL = PEERS["verl"], PEERS["trl"]
LOW, HIGH, DUAL = 0.2, 0.28, 3.0
NONEMPTY = np.asarray(MASK.any(1))  # one response is empty
SEQUENCES = NONEMPTY.sum()


def close(ours, theirs):
  """Equal within 1e-5 of the largest number."""
  theirs = np.asarray(theirs)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(np.abs(theirs).max(), 1.0))


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_advantages_of_groups(name):
  # verl writes advantages on tokens, so an empty response has none; its reward still counts.
  close(jnp.where(NONEMPTY, getattr(estimators, name)(REWARDS).reshape(-1), 0), VERL[name])


def test_reinforce_pp_with_baseline_weighted_by_tokens():
  lengths = MASK.sum(-1).reshape(REWARDS.shape)
  ours = estimators.reinforce_pp_baseline(REWARDS, lengths)
  close(jnp.where(NONEMPTY, ours.reshape(-1), 0), VERL["reinforce_pp_baseline"])


def test_reinforce_pp_of_token_rewards():
  to_go = jnp.cumsum(jnp.where(MASK, X["token_rewards"], 0)[:, ::-1], axis=1)[:, ::-1]
  close(jnp.where(MASK, estimators.whiten(to_go, MASK), 0), VERL["reinforce_pp"])


def test_gae_and_its_targets():
  values = jnp.where(MASK, X["values"], 0)
  advantages = gae(X["token_rewards"], values, MASK, 0.98, 0.9)
  whitened, targets = (np.asarray(x) for x in VERL["gae"])
  mask = np.asarray(MASK)
  close(np.asarray(estimators.whiten(advantages, MASK))[mask], whitened[mask])
  close(np.asarray(advantages + values)[mask], targets[mask])


def test_gae_and_rewards_to_go_against_rlax():
  """rlax takes one sequence a call, without padding, and the value after the last token."""
  ours = gae(X["token_rewards"], X["values"], MASK, 0.98, 0.9)
  to_go = gae(X["token_rewards"], 0 * X["values"], MASK, 0.98, 1.0)
  for row, length in enumerate(MASK.sum(1)):
    if not length:
      assert not ours[row].any()
      continue
    rewards, discounts = X["token_rewards"][row, :length], jnp.full(length, 0.98)
    values = jnp.append(X["values"][row, :length], 0.0)
    theirs = rlax.truncated_generalized_advantage_estimation(rewards, discounts, 0.9, values)
    close(ours[row, :length], theirs)
    close(to_go[row, :length], rlax.discounted_returns(rewards, discounts, jnp.zeros(length)))


def test_the_symmetric_clip_against_rlax():
  """rlax has one epsilon and a plain mean over steps."""
  ratios = jnp.exp(X["logprobs"] - X["old"])
  advantages = jnp.broadcast_to(X["advantages"][:, None], ratios.shape)
  theirs, gradient = jax.value_and_grad(
    lambda r: rlax.clipped_surrogate_pg_loss(r[MASK], advantages[MASK], 0.2)
  )(ratios)

  def ours_of(logprobs):
    return losses.policy_loss(logprobs, X["old"], advantages, MASK, PolicyLossConfig(0.2, 0.2))[0]

  ours, our_gradient = jax.value_and_grad(ours_of)(X["logprobs"])
  close(ours, theirs)
  close(our_gradient, gradient * ratios)  # the chain rule from ratios to log-probs


def test_value_loss():
  weights = losses.token_weights(MASK, "token-mean")
  loss, gradient = jax.value_and_grad(
    lambda v: value_loss(v, X["old_values"], X["token_rewards"], weights, 0.2)
  )(X["values"])
  close(loss, VERL["value_loss"][0])
  close(gradient, VERL["value_loss"][1])


@pytest.mark.parametrize("kind", losses.KL_ESTIMATORS)
def test_kl_estimates(kind):
  close(jnp.where(MASK, losses.kl_estimate(X["logprobs"], X["reference"], kind), 0), VERL[kind])


@pytest.mark.parametrize("aggregation", losses.AGGREGATIONS)
@pytest.mark.parametrize("surrogate", losses.SURROGATES)
def test_surrogates_and_their_gradients_against_verl(surrogate, aggregation):
  low, high = (3e-4, 4e-4) if surrogate == "gspo" else (LOW, HIGH)
  config = PolicyLossConfig(low, high, DUAL if surrogate == "ppo" else 0.0, aggregation, surrogate)
  current = X["near" if surrogate == "gspo" else "logprobs"]
  advantages = X["advantages"][:, None]
  (loss, metrics), gradient = jax.value_and_grad(losses.policy_loss, has_aux=True)(
    current, X["old"], advantages, MASK, config
  )
  theirs, their_gradient = VERL[f"{surrogate} {aggregation}"]
  close(loss, theirs)
  close(gradient, their_gradient)
  assert metrics["policy/clip_fraction"] > 0.02  # the batch reaches the bounds
  if surrogate == "ppo":
    assert metrics["policy/dual_clip_fraction"] > 0.02


@pytest.mark.parametrize(
  "name,options,scale",
  [
    # TRL's means over sequences include the empty one.
    ("grpo", dict(aggregation="seq-mean-token-mean", kl_coef=0.04), SEQUENCES / B),
    ("dr_grpo", dict(aggregation="seq-mean-token-sum-norm"), SEQUENCES / B),
    ("dapo", dict(aggregation="token-mean"), 1.0),
    ("bnpo with entropy", dict(aggregation="token-mean", entropy_coef=0.01), 1.0),
    ("cispo", dict(aggregation="token-mean", surrogate="cispo", clip_low=1.0), 1.0),
  ],
)
def test_losses_and_their_gradients_against_trl(name, options, scale):
  config = PolicyLossConfig(**{"clip_low": LOW, "clip_high": HIGH, **options})

  def loss_fn(logprobs):
    return losses.policy_loss(
      logprobs,
      X["old"],
      X["advantages"][:, None],
      MASK,
      config,
      entropies=X["entropies"],
      reference_logprobs=X["reference"],
    )[0]

  loss, gradient = jax.value_and_grad(loss_fn)(X["logprobs"])
  close(loss * scale, TRL[name][0])
  close(gradient * scale, TRL[name][1])
