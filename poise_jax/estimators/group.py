"""Advantages from the rewards of the group (the n responses to one prompt) or of the batch."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from poise_jax.errors import UserError
from poise_jax.estimators.base import Estimator, EstimatorContext, stateless
from poise_jax.estimators.statistics import STD_EPSILON, deviations, whiten
from poise_jax.types import Estimate, Experience

Lengths = Real[Array, "P n"] | Bool[Array, "P n"]


def make(name: str, context: EstimatorContext) -> Estimator:
  """The estimator rloo, grpo, dr_grpo or reinforce_pp_baseline.

  Raises:
    UserError: rollout.n is 1, so that a response has nothing to be compared with.
  """
  _check_group(name, context.rollout.n)
  return stateless(functools.partial(_estimate, name), needs_spread=True)


@functools.partial(jax.jit, static_argnums=0)
def _estimate(name: str, experience: Experience) -> Estimate:
  rewards = experience.rewards
  # The baseline is what is subtracted from the reward, before any scaling.
  centred = rloo(rewards) if name == "rloo" else dr_grpo(rewards)
  if name == "reinforce_pp_baseline":
    real = jnp.broadcast_to(experience.real_groups[:, None], rewards.shape)
    return Estimate(reinforce_pp_baseline(rewards, real), rewards - centred, {})
  return Estimate(GROUP[name](rewards), rewards - centred, {})


def make_reinforce_pp(context: EstimatorContext) -> Estimator:
  """The estimator reinforce_pp: rewards to go, whitened over the batch's tokens (REINFORCE++,
  arXiv 2501.03262)."""
  del context
  return stateless(_rewards_to_go)


@jax.jit
def _rewards_to_go(experience: Experience) -> Estimate:
  to_go = jnp.cumsum(experience.token_rewards[..., ::-1], axis=-1)[..., ::-1]
  rewards = experience.rewards
  baselines = jnp.full_like(rewards, rewards.mean(where=experience.real_groups[:, None]))
  return Estimate(whiten(to_go, experience.rollouts.mask), baselines, {})


def grpo(rewards: Float[Array, "P n"]) -> Float[Array, "P n"]:
  """(r - mean) / (std + 1e-6) of the group, std with ddof=1 (DeepSeekMath, arXiv 2402.03300).

  Raises:
    UserError: n is 1.
  """
  centred = _centred("grpo", rewards)
  variance = (centred**2).sum(axis=1, keepdims=True) / (rewards.shape[1] - 1)
  return centred / (jnp.sqrt(variance) + STD_EPSILON)


def dr_grpo(rewards: Float[Array, "P n"]) -> Float[Array, "P n"]:
  """r - mean of the group, not divided by a standard deviation (Dr. GRPO, arXiv 2503.20783).

  Equals (n - 1) / n times RLOO's advantage.

  Raises:
    UserError: n is 1.
  """
  return _centred("dr_grpo", rewards)


def rloo(rewards: Float[Array, "P n"]) -> Float[Array, "P n"]:
  """r minus the mean of the group's other rewards (RLOO, arXiv 2402.14740 eq. 6); unbiased.

  Raises:
    UserError: n is 1.
  """
  _check_group("rloo", rewards.shape[1])
  n = rewards.shape[1]
  return deviations(rewards, axis=1) * (n / (n - 1))


def reinforce_pp(
  rewards: Float[Array, "P n"], lengths: Lengths | None = None
) -> Float[Array, "P n"]:
  """(r - mean) / std of the whole batch (REINFORCE++, arXiv 2501.03262); n may be 1.

  Args:
    rewards: reward of each response.
    lengths: tokens of each response; mean and standard deviation are then over tokens, as in verl,
      so that the advantages of a token-mean loss are centred. None: over responses. A response
      of length 0 has no influence on the others.

  Raises:
    UserError: the batch is a single response.
  """
  return whiten(rewards, lengths)


def reinforce_pp_baseline(
  rewards: Float[Array, "P n"], lengths: Lengths | None = None
) -> Float[Array, "P n"]:
  """r - mean of the group, whitened over the whole batch (REINFORCE++ with baseline, arXiv
  2501.03262).

  Args:
    rewards: reward of each response.
    lengths: as for `reinforce_pp`.

  Raises:
    UserError: n is 1.
  """
  size = jnp.abs(rewards).max()
  return whiten(_centred("reinforce_pp_baseline", rewards), lengths, size)


def _centred(name, rewards):
  """r - mean of the group; raises UserError for groups of one."""
  _check_group(name, rewards.shape[1])
  return deviations(rewards, axis=1)


def _check_group(name, n):
  if n < 2:
    raise UserError(
      f"{name} compares the responses of a group: rollout.n must be at least 2, got {n}"
    )


GROUP = {
  "rloo": rloo,
  "grpo": grpo,
  "dr_grpo": dr_grpo,
  "reinforce_pp_baseline": reinforce_pp_baseline,
}
