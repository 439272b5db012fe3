"""Advantages from the other rewards of a group. A group is the n responses to one prompt."""

from jaxtyping import Array, Float

STD_EPSILON = 1e-6  # verl's; TRL has 1e-4


def grpo(rewards: Float[Array, "P n"]) -> Float[Array, "P n"]:
  """(r - mean) / (std + 1e-6) of the group, std with ddof=1 (DeepSeekMath, arXiv 2402.03300).

  Raises:
    ValueError: groups of one have no standard deviation.
  """
  _check_group("grpo", rewards)
  centred = rewards - rewards.mean(axis=1, keepdims=True)
  return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + STD_EPSILON)


def rloo(rewards: Float[Array, "P n"]) -> Float[Array, "P n"]:
  """r minus the mean of the group's other rewards (RLOO, arXiv 2402.14740 eq. 6); unbiased.

  Raises:
    ValueError: groups of one have no other rewards.
  """
  _check_group("rloo", rewards)
  n = rewards.shape[1]
  return rewards - (rewards.sum(axis=1, keepdims=True) - rewards) / (n - 1)


def _check_group(name, rewards):
  if rewards.shape[1] < 2:
    raise ValueError(f"{name} compares the answers of a group: rollout.n must be at least 2, not 1")
