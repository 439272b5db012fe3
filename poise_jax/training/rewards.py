"""From scores to the reward of each token: length penalties and a KL penalty."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from poise_jax.errors import UserError, check_finite, unknown_name
from poise_jax.learner.losses import KL_ESTIMATORS, kl_estimate


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """Options of `token_rewards`; raises UserError for values that cannot work."""

  overlong_buffer: int = 0  # last tokens over which DAPO's soft overlong punishment grows; 0: off
  overlong_penalty: float = 1.0  # size of that punishment at the length limit
  overlong_filter: bool = False  # whether the loss leaves out responses cut off by the limit
  kl_coef: float = 0.0  # weight of the KL to the reference policy, subtracted from token rewards
  kl_estimator: str = "k1"  # "k1", "k2" or "k3", see losses.kl_estimate; k1 is unbiased in a reward

  def __post_init__(self):
    check_finite("reward", self)
    for name in ("overlong_buffer", "overlong_penalty", "kl_coef"):
      if getattr(self, name) < 0:
        raise UserError(f"reward.{name} must be at least 0, got {getattr(self, name)}")
    if self.kl_estimator not in KL_ESTIMATORS:
      raise unknown_name("reward.kl_estimator", self.kl_estimator, KL_ESTIMATORS)


def overlong_punishment(
  lengths: Num[Array, "*shape"], limit: int, buffer: int, penalty: float
) -> Float[Array, "*shape"]:
  """DAPO's soft overlong punishment (arXiv 2503.14476 eq. 13).

  0 up to limit - buffer tokens, falling linearly to -penalty at the limit, and -penalty beyond.

  Args:
    lengths: of responses, in tokens.
    limit: maximum length, in tokens.
    buffer: tokens over which the punishment grows, at least 1.
    penalty: size of the punishment at the limit.
  """
  return -penalty * jnp.clip((lengths - (limit - buffer)) / buffer, 0.0, 1.0)


@functools.partial(jax.jit, static_argnames="config")
def token_rewards(
  scores: Float[Array, "P n"],
  mask: Bool[Array, "P n T"],
  config: RewardConfig,
  logprobs: Float[Array, "P n T"] | None = None,
  reference_logprobs: Float[Array, "P n T"] | None = None,
) -> Float[Array, "P n T"]:
  """The reward of each token.

  A response's last token gets the score and the punishment; every token gets -kl_coef * KL.

  Args:
    scores: of the verdicts.
    mask: the responses' tokens, at least one per response.
    config: the length limit of overlong_buffer is T.
    logprobs: log-probs of the tokens under the policy that sampled them, in nats; needed for
      config.kl_coef. Values outside of the mask are ignored.
    reference_logprobs: the same under the reference policy.

  Returns:
    Rewards, 0 outside of the mask.
  """
  lengths = mask.sum(-1)
  response_rewards = scores
  if config.overlong_buffer:
    limit = mask.shape[-1]
    response_rewards += overlong_punishment(
      lengths, limit, config.overlong_buffer, config.overlong_penalty
    )
  last = jnp.arange(mask.shape[-1]) == lengths[..., None] - 1
  rewards = jnp.where(last, response_rewards[..., None], 0.0)
  if config.kl_coef:
    kl = kl_estimate(logprobs, reference_logprobs, config.kl_estimator)
    rewards -= config.kl_coef * jnp.where(mask, kl, 0.0)
  return rewards
