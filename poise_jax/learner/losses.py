"""Surrogate losses, and aggregation by explicit weights.

A loss is a weighted sum over tokens, and the weights of a whole mini-batch are known before its
first micro-batch runs, so the division into micro-batches cannot change the loss.

Letters: B sequences, T response positions.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from poise_jax.errors import UserError, check_finite, unknown_name

AGGREGATIONS = (
  "token-mean",
  "seq-mean-token-mean",
  "seq-mean-token-sum",
  "seq-mean-token-sum-norm",
)
SURROGATES = ("ppo", "gspo", "cispo")
KL_ESTIMATORS = ("k1", "k2", "k3")
IMPORTANCE_LEVELS = ("token", "sequence")
REJECTIONS = ("none", "token", "sequence", "geometric")
MAX_LOG_RATIO = 20.0  # nats; exp of more would overflow, and no clipped surrogate can tell it apart


@dataclasses.dataclass(frozen=True)
class PolicyLossConfig:
  """Options of `policy_loss`; raises UserError for values that cannot work."""

  clip_low: float = 0.2  # lower clip range: ratios are bounded at 1 - clip_low (arXiv 1707.06347)
  clip_high: float = 0.2  # upper clip range: ratios are bounded at 1 + clip_high (DAPO: 0.28)
  dual_clip: float = 0.0  # bound c > 1 of a negative advantage's loss, at -A c; 0: none
  aggregation: str = "token-mean"  # weights of tokens and sequences, see token_weights
  surrogate: str = "ppo"  # objective and what it clips: "ppo", "gspo" or "cispo", see policy_loss
  kl_coef: float = 0.0  # weight of the KL to the reference policy in the loss
  kl_estimator: str = "k3"  # estimator of that KL: "k1", "k2" or "k3", see kl_estimate
  entropy_coef: float = 0.0  # weight of the token entropies, added as a bonus
  importance_cap: float = 0.0  # bound of the trainer / sampler ratio, see policy_loss; 0: unused
  importance_level: str = "token"  # level of that ratio: one a "token" or one a "sequence"
  # what is left out where the trainer / sampler ratio is out of bounds: "none", each "token", or a
  # whole response by its product of ratios ("sequence") or their "geometric" mean
  rejection: str = "none"
  rejection_low: float = 0.5  # least ratio that is not rejected
  rejection_high: float = 2.0  # largest ratio that is not rejected

  def __post_init__(self):
    check_finite("train.loss", self)
    for name, choices in (
      ("aggregation", AGGREGATIONS),
      ("surrogate", SURROGATES),
      ("kl_estimator", KL_ESTIMATORS),
      ("importance_level", IMPORTANCE_LEVELS),
      ("rejection", REJECTIONS),
    ):
      if getattr(self, name) not in choices:
        raise unknown_name(f"train.loss.{name}", getattr(self, name), choices)
    if not 0 <= self.clip_low <= 1:
      raise UserError(
        f"train.loss.clip_low must be in [0, 1] (1: no lower bound), got {self.clip_low}"
      )
    if self.dual_clip and self.surrogate != "ppo":
      raise UserError(
        f"train.loss.dual_clip={self.dual_clip} needs train.loss.surrogate='ppo', got "
        f"{self.surrogate!r}; set dual_clip to 0"
      )
    if self.dual_clip and self.dual_clip <= 1:
      raise UserError(
        f"train.loss.dual_clip must be above 1, or 0 for no bound, got {self.dual_clip}"
      )
    for name in ("clip_high", "kl_coef", "importance_cap"):
      if getattr(self, name) < 0:
        raise UserError(f"train.loss.{name} must not be negative, got {getattr(self, name)}")
    if not 0 < self.rejection_low <= 1 <= self.rejection_high:
      raise UserError(
        "train.loss.rejection_low must be in (0, 1] and train.loss.rejection_high at least 1, got "
        f"{self.rejection_low} and {self.rejection_high}"
      )


@functools.partial(jax.jit, static_argnames="aggregation")
def token_weights(mask: Bool[Array, "B T"], aggregation: str) -> Float[Array, "B T"]:
  """Weight of each token in the loss, zero where mask is False.

  token-mean: 1 / tokens (DAPO). seq-mean-token-mean: 1 / (sequences * length) (GRPO).
  seq-mean-token-sum: 1 / sequences. seq-mean-token-sum-norm: 1 / (sequences * T), where T, the
  response limit, is the same constant for all sequences (Dr. GRPO, arXiv 2503.20783). Sequences
  without a token are not counted.

  Raises:
    UserError: unknown aggregation.
  """
  mask = mask.astype(jnp.float32)
  lengths = mask.sum(-1, keepdims=True)
  sequences = jnp.maximum((lengths > 0).sum(), 1)
  if aggregation == "token-mean":
    return mask / jnp.maximum(mask.sum(), 1)
  if aggregation == "seq-mean-token-mean":
    return mask / jnp.maximum(lengths, 1) / sequences
  if aggregation == "seq-mean-token-sum":
    return mask / sequences
  if aggregation == "seq-mean-token-sum-norm":
    return mask / mask.shape[-1] / sequences
  raise unknown_name("aggregation", aggregation, AGGREGATIONS)


def kl_estimate(
  logprobs: Float[Array, "*shape"], reference: Float[Array, "*shape"], estimator: str
) -> Float[Array, "*shape"]:
  """One-sample estimates of KL(policy || reference) at tokens that the policy sampled.

  With d = log policy - log reference: k1 = d (unbiased, but its gradient in a loss is zero on
  average), k2 = d^2 / 2 (its gradient is that of the KL), k3 = exp(-d) - 1 + d (unbiased and never
  negative; GRPO, arXiv 2402.03300 eq. 4). As in verl, k3 alone is bounded, d at +-20 nats and the
  estimate at 10: beyond, its gradient is zero.
  """
  d = logprobs - reference
  if estimator == "k1":
    return d
  if estimator == "k2":
    return d * d / 2
  d = jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)
  return jnp.minimum(jnp.expm1(-d) + d, 10.0)


def policy_loss(
  logprobs: Float[Array, "B T"],
  old_logprobs: Float[Array, "B T"],
  advantages: Float[Array, "B T"] | Float[Array, "B 1"],
  mask: Bool[Array, "B T"],
  config: PolicyLossConfig,
  weights: Float[Array, "B T"] | None = None,
  entropies: Float[Array, "B T"] | None = None,
  reference_logprobs: Float[Array, "B T"] | None = None,
  sampler_logprobs: Float[Array, "B T"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """A surrogate loss; minimising it improves the policy.

  With r = policy / old policy of a token, A its advantage, clip into [1 - clip_low, 1 + clip_high]:

  - ppo: -min(r A, clip(r) A) with separate bounds (DAPO, arXiv 2503.14476 eq. 8) and dual clip
    (arXiv 1912.09729 eq. 5).
  - gspo: the same with one ratio a sequence, the geometric mean of its tokens' ratios (GSPO, arXiv
    2507.18071 eq. 5, 7 and, for the gradient of a token, 13).
  - cispo: -clip(r) A log policy. No gradient flows through clip(r), so that every token counts
    (MiniMax-M1, arXiv 2506.13585 eq. 4, which has no lower bound: clip_low=1).

  Args:
    logprobs: current policy, nats.
    old_logprobs: policy that sampled, nats.
    advantages: one a token, or one a sequence as [B, 1].
    mask: the responses' tokens; entries outside of it are never read, and may be NaN.
    config: objective, clipping and aggregation.
    weights: `token_weights` of the mini-batch to which these sequences belong. None: of this mask.
    entropies: current policy, nats; needed for config.entropy_coef.
    reference_logprobs: reference policy; needed for config.kl_coef.
    sampler_logprobs: log-probs that the sampler reported; needed for config.importance_cap C. Each
      token's surrogate is then multiplied by min(old / sampler, C), the ratio of the token or of
      its whole sequence: the old policy as the trainer computes it is not exactly the one that
      sampled.

  Returns:
    The loss, and means over the masked tokens: policy/clip_fraction and policy/dual_clip_fraction,
    tokens whose loss is a bound; policy/kl, the k3 estimate of KL(old || current); and, where
    used, policy/reference_kl and rollout/importance_weight.

  Raises:
    UserError: advantages have another shape, or an option lacks the values that it needs.
  """
  _check_inputs(logprobs, advantages, config, entropies, reference_logprobs, sampler_logprobs)
  if weights is None:
    weights = token_weights(mask, config.aggregation)
  logprobs = jnp.where(mask, logprobs, 0.0)
  log_ratio = jnp.where(mask, logprobs - old_logprobs, 0.0)
  log_ratio = jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
  loss, metrics = _surrogate(logprobs, log_ratio, advantages, mask, config)
  if config.importance_cap:
    importance = _importance(old_logprobs, sampler_logprobs, mask, config)
    loss = loss * importance
    metrics["rollout/importance_weight"] = _mean(importance, mask)
  if config.kl_coef:
    kl = kl_estimate(logprobs, jnp.where(mask, reference_logprobs, 0.0), config.kl_estimator)
    loss = loss + config.kl_coef * kl
    metrics["policy/reference_kl"] = _mean(kl, mask)
  if config.entropy_coef:
    loss = loss - config.entropy_coef * entropies
  return (weights * jnp.where(mask, loss, 0.0)).sum(), metrics


def _check_inputs(logprobs, advantages, config, entropies, reference_logprobs, sampler_logprobs):
  """Raises UserError for advantages that would broadcast wrongly, and for inputs that lack."""
  b, t = logprobs.shape
  if advantages.shape not in ((b, t), (b, 1)):
    raise UserError(
      f"advantages must have the shape ({b}, {t}), one a token, or ({b}, 1), one a sequence, got "
      f"{advantages.shape}" + ("; pass advantages[:, None]" if advantages.shape == (b,) else "")
    )
  for option, name, values in (
    ("kl_coef", "reference_logprobs", reference_logprobs),
    ("entropy_coef", "entropies", entropies),
    ("importance_cap", "sampler_logprobs", sampler_logprobs),
  ):
    if getattr(config, option) and values is None:
      raise UserError(
        f"{option}={getattr(config, option)} needs {name}, which were not passed; pass them, or "
        f"set {option} to 0"
      )


def _surrogate(logprobs, log_ratio, advantages, mask, config):
  """The surrogate of each token [B, T], and metrics of its ratios and bounds."""
  ratio = jnp.exp(log_ratio)
  metrics = {"policy/kl": _mean(ratio - 1 - log_ratio, mask)}
  if config.surrogate == "gspo":
    lengths = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    mean_log_ratio = log_ratio.sum(-1, keepdims=True) / lengths
    ratio = jnp.exp(logprobs + jax.lax.stop_gradient(mean_log_ratio - logprobs))
  bounded = jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
  dual_clipped = jnp.zeros_like(mask)
  if config.surrogate == "cispo":
    loss = -advantages * jax.lax.stop_gradient(bounded) * logprobs
    clipped = bounded != ratio
  else:
    plain, loss = -advantages * ratio, -advantages * bounded
    clipped = loss > plain
    loss = jnp.maximum(plain, loss)
  if config.dual_clip:
    bound = -advantages * config.dual_clip
    dual_clipped = (advantages < 0) & (loss > bound)
    loss = jnp.where(dual_clipped, bound, loss)
  metrics["policy/clip_fraction"] = _mean(clipped, mask)
  metrics["policy/dual_clip_fraction"] = _mean(dual_clipped, mask)
  return loss, metrics


def _importance(old_logprobs, sampler_logprobs, mask, config):
  """min(old / sampler, cap) of each token [B, T] or sequence [B, 1], without a gradient."""
  mismatch = jnp.where(mask, old_logprobs - sampler_logprobs, 0.0)
  if config.importance_level == "sequence":
    mismatch = mismatch.sum(-1, keepdims=True)
  ratio = jnp.exp(jnp.clip(mismatch, -MAX_LOG_RATIO, MAX_LOG_RATIO))
  return jax.lax.stop_gradient(jnp.minimum(ratio, config.importance_cap))


def accepted(
  old_logprobs: Float[Array, "B T"],
  sampler_logprobs: Float[Array, "B T"],
  mask: Bool[Array, "B T"],
  config: PolicyLossConfig,
) -> Bool[Array, "B T"]:
  """Which tokens the loss counts, after the rejection of verl's rollout correction.

  A ratio old / sampler outside of [rejection_low, rejection_high] leaves out its token, or the
  whole response: "sequence" is the product of its tokens' ratios, "geometric" their geometric mean,
  which does not grow with the response. Unlike a truncated weight, which keeps the token and bounds
  its influence, rejection says that the token may not be trusted at all.

  Args:
    old_logprobs: the policy before the update as the trainer computes it, nats.
    sampler_logprobs: log-probs that the sampler reported.
    mask: the responses' tokens; entries outside of it are never read.
    config: rejection and its bounds.
  """
  mismatch = jnp.where(mask, old_logprobs - sampler_logprobs, 0.0)
  mismatch = jnp.clip(mismatch, -MAX_LOG_RATIO, MAX_LOG_RATIO)
  if config.rejection in ("sequence", "geometric"):
    mismatch = mismatch.sum(-1, keepdims=True)
  if config.rejection == "geometric":
    mismatch /= jnp.maximum(mask.sum(-1, keepdims=True), 1)
  low, high = math.log(config.rejection_low), math.log(config.rejection_high)
  return mask & (mismatch >= low) & (mismatch <= high)


def _mean(x, mask):
  """Mean over the masked tokens, without a gradient."""
  return jax.lax.stop_gradient(jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1))
