"""From verdicts to what each token earned: length penalties and a KL penalty."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from poise_jax.errors import UserError
from poise_jax.learner.losses import KL_ESTIMATORS, kl_estimate


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """Options of `token_rewards`; raises UserError on construction for values without a meaning."""

  overlong_buffer: int = 0  # last tokens over which DAPO's soft overlong punishment grows; 0: off
  overlong_penalty: float = 1.0  # what that punishment reaches at the limit
  overlong_filter: bool = False  # responses cut off by the limit do not count in the loss
  kl_coef: float = 0.0  # times the KL to the reference policy is taken off every token's reward
  kl_estimator: str = "k1"  # "k1", "k2" or "k3", see losses.kl_estimate; k1 is unbiased in a reward

  def __post_init__(self):
    for name in ("overlong_buffer", "overlong_penalty", "kl_coef"):
      if getattr(self, name) < 0:
        raise UserError(f"reward.{name}={getattr(self, name)} must not be negative")
    if self.kl_estimator not in KL_ESTIMATORS:
      raise UserError(
        f"reward.kl_estimator={self.kl_estimator!r} is unknown; "
        f"known are {', '.join(KL_ESTIMATORS)}"
      )


def overlong_punishment(
  lengths: Float[Array, "*rows"], limit: int, buffer: int, penalty: float
) -> Float[Array, "*rows"]:
  """0 up to limit - buffer tokens, then falling linearly to -penalty at the limit (DAPO, arXiv
  2503.14476 eq. 13). In tokens; never below -penalty."""
  return -penalty * jnp.clip((lengths - (limit - buffer)) / buffer, 0.0, 1.0)


@functools.partial(jax.jit, static_argnames="config")
def token_rewards(
  scores: Float[Array, "P n"],
  mask: Bool[Array, "P n T"],
  config: RewardConfig,
  logprobs: Float[Array, "P n T"] | None = None,
  reference_logprobs: Float[Array, "P n T"] | None = None,
) -> Float[Array, "P n T"]:
  """What each token earned: the score and the punishment on a response's last token, and
  -kl_coef * KL on every token. 0 outside of the mask, where the rest may be anything.

  Args:
    scores: verdicts.
    mask: the responses' tokens, at least one each.
    config: what shapes them; the limit of overlong_buffer is T.
    logprobs: of the policy that sampled; needed for config.kl_coef.
    reference_logprobs: of the reference policy; needed for config.kl_coef.
  """
  lengths = mask.sum(-1)
  earned = scores
  if config.overlong_buffer:
    limit = mask.shape[-1]
    earned += overlong_punishment(lengths, limit, config.overlong_buffer, config.overlong_penalty)
  last = jnp.arange(mask.shape[-1]) == lengths[..., None] - 1
  rewards = jnp.where(last, earned[..., None], 0.0)
  if config.kl_coef:
    kl = kl_estimate(logprobs, reference_logprobs, config.kl_estimator)
    rewards -= config.kl_coef * jnp.where(mask, kl, 0.0)
  return rewards
