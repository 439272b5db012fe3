"""Advantages from the other rewards of a group or of the batch. A group is the n responses to one
prompt."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from poise_jax.errors import UserError

STD_EPSILON = 1e-6  # verl's; TRL has 1e-4


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
  rewards: Float[Array, "P n"], lengths: Float[Array, "P n"] | None = None
) -> Float[Array, "P n"]:
  """(r - mean) / std of the whole batch (REINFORCE++, arXiv 2501.03262); n may be 1.

  Args:
    rewards: of every response.
    lengths: tokens of every response: mean and standard deviation are then over tokens, as in
      verl, so that the advantages of a token-mean loss are centred. None: over responses.

  Raises:
    UserError: a batch of one response has no standard deviation.
  """
  return whiten(rewards, lengths)


def reinforce_pp_baseline(
  rewards: Float[Array, "P n"], lengths: Float[Array, "P n"] | None = None
) -> Float[Array, "P n"]:
  """r - mean of the group, divided by the standard deviation of that over the whole batch (the
  baseline variant of REINFORCE++, arXiv 2501.03262). `lengths` as for `reinforce_pp`.

  Raises:
    UserError: groups of one have nothing to compare.
  """
  return whiten(_centred("reinforce_pp_baseline", rewards), lengths)


def _centred(name, rewards):
  """r - mean of the group; refuses groups of one."""
  _check_group(name, rewards)
  return rewards - rewards.mean(axis=1, keepdims=True)


def whiten(values: Array, weights: Array | None = None) -> Array:
  """Mean 0 and standard deviation (ddof=1) 1 over all entries; each counts `weights` times.

  Raises:
    UserError: there is nothing to compare.
  """
  if values.size < 2:
    raise UserError("whitening compares the answers of a batch: rollouts must be at least 2")
  weights = jnp.ones_like(values) if weights is None else weights
  total = jnp.maximum(weights.sum(), 2)
  centred = values - (weights * values).sum() / total
  variance = (weights * centred**2).sum() / (total - 1)
  return centred / (jnp.sqrt(variance) + STD_EPSILON)


def _check_group(name, rewards):
  if rewards.shape[1] < 2:
    raise UserError(f"{name} compares the answers of a group: rollout.n must be at least 2, not 1")
