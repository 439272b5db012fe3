"""Advantages from the rewards of the group or of the batch. A group is the n responses to one
prompt."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from poise_jax.errors import UserError
from poise_jax.estimators.base import Estimator, EstimatorContext, stateless
from poise_jax.estimators.statistics import STD_EPSILON, whiten
from poise_jax.types import Estimate, Experience


def make(name: str, context: EstimatorContext) -> Estimator:
  """The estimator rloo, grpo, dr_grpo or reinforce_pp_baseline.

  Raises:
    UserError: rollout.n is 1, so that there is no group to compare.
  """
  if context.rollout.n < 2:
    raise UserError(
      f"{name} compares the responses of a group: rollout.n={context.rollout.n} must be at least 2"
    )
  return stateless(functools.partial(_estimate, name), needs_spread=True)


@functools.partial(jax.jit, static_argnums=0)
def _estimate(name: str, experience: Experience) -> Estimate:
  rewards = experience.rewards
  # The baseline is what the reward is compared with before any scaling.
  centred = rloo(rewards) if name == "rloo" else dr_grpo(rewards)
  return Estimate(GROUP[name](rewards), rewards - centred, {})


def make_reinforce_pp(context: EstimatorContext) -> Estimator:
  """REINFORCE++ (arXiv 2501.03262): rewards to go, whitened over the batch's tokens."""
  del context
  return stateless(_rewards_to_go)


@jax.jit
def _rewards_to_go(experience: Experience) -> Estimate:
  to_go = jnp.cumsum(experience.token_rewards[..., ::-1], axis=-1)[..., ::-1]
  rewards = experience.rewards
  baselines = jnp.full_like(rewards, rewards.mean())
  return Estimate(whiten(to_go, experience.rollouts.mask), baselines, {})


def grpo(rewards: Float[Array, "P n"]) -> Float[Array, "P n"]:
  """(r - mean) / (std + 1e-6) of the group, std with ddof=1 (DeepSeekMath, arXiv 2402.03300).

  Raises:
    UserError: groups of one have no standard deviation.
  """
  return _centred("grpo", rewards) / (rewards.std(axis=1, ddof=1, keepdims=True) + STD_EPSILON)


def dr_grpo(rewards: Float[Array, "P n"]) -> Float[Array, "P n"]:
  """r - mean of the group, without its standard deviation (Dr. GRPO, arXiv 2503.20783); (n - 1) / n
  of RLOO's advantage.

  Raises:
    UserError: in groups of one every advantage would be zero.
  """
  return _centred("dr_grpo", rewards)


def rloo(rewards: Float[Array, "P n"]) -> Float[Array, "P n"]:
  """r minus the mean of the group's other rewards (RLOO, arXiv 2402.14740 eq. 6); unbiased.

  Raises:
    UserError: groups of one have no other rewards.
  """
  _check_group("rloo", rewards)
  n = rewards.shape[1]
  return rewards - (rewards.sum(axis=1, keepdims=True) - rewards) / (n - 1)


def reinforce_pp(
  rewards: Float[Array, "P n"], lengths: Real[Array, "P n"] | None = None
) -> Float[Array, "P n"]:
  """(r - mean) / std of the whole batch (REINFORCE++, arXiv 2501.03262); n may be 1.

  Args:
    rewards: reward of every response.
    lengths: tokens of every response; mean and standard deviation are then over tokens, as in
      verl, so that the advantages of a token-mean loss are centred. None: over responses.

  Raises:
    UserError: a batch of one response has no standard deviation.
  """
  return whiten(rewards, lengths)


def reinforce_pp_baseline(
  rewards: Float[Array, "P n"], lengths: Real[Array, "P n"] | None = None
) -> Float[Array, "P n"]:
  """r - mean of the group, divided by the standard deviation of that over the whole batch (the
  baseline variant of REINFORCE++, arXiv 2501.03262). `lengths` as for `reinforce_pp`.

  Raises:
    UserError: groups of one have no baseline.
  """
  return whiten(_centred("reinforce_pp_baseline", rewards), lengths)


def _centred(name, rewards):
  """r - mean of the group; refuses groups of one."""
  _check_group(name, rewards)
  return rewards - rewards.mean(axis=1, keepdims=True)


def _check_group(name, rewards):
  if rewards.shape[1] < 2:
    raise UserError(f"{name} compares the responses of a group: rollout.n=1 must be at least 2")


GROUP = {
  "rloo": rloo,
  "grpo": grpo,
  "dr_grpo": dr_grpo,
  "reinforce_pp_baseline": reinforce_pp_baseline,
}
