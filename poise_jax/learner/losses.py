"""Token log-probs without [B, T, V], surrogate losses, and aggregation by explicit weights.

A loss is a weighted sum over tokens, and the weights of a whole mini-batch are known before any of
its micro-batches runs. So how a mini-batch is cut up cannot change its loss.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from poise_jax.distributed.sharding import BATCH, batch_shards
from poise_jax.errors import UserError

AGGREGATIONS = (
  "token-mean",
  "seq-mean-token-mean",
  "seq-mean-token-sum",
  "seq-mean-token-sum-norm",
)


SURROGATES = ("ppo", "gspo", "cispo")
KL_ESTIMATORS = ("k1", "k2", "k3")
IMPORTANCE_LEVELS = ("token", "sequence")


@dataclasses.dataclass(frozen=True)
class PolicyLossConfig:
  """Options of `policy_loss`; raises UserError on construction for values without a meaning."""

  clip_low: float = 0.2  # ratios below 1 - clip_low stop counting (PPO, arXiv 1707.06347)
  clip_high: float = 0.2  # ratios above 1 + clip_high stop counting (DAPO's clip-higher: 0.28)
  dual_clip: float = 0.0  # c > 1 bounds the loss of a negative advantage at -A c; 0 is off
  aggregation: str = "token-mean"  # what counts the same, see token_weights
  surrogate: str = "ppo"  # what is clipped: "ppo", "gspo" or "cispo", see policy_loss
  kl_coef: float = 0.0  # weight of the KL to the reference policy in the loss
  kl_estimator: str = "k3"  # "k1", "k2" or "k3", see kl_estimate
  entropy_coef: float = 0.0  # weight of the token entropy that is added as a bonus
  importance_cap: float = 0.0  # bound of the trainer / sampler ratio, see policy_loss; 0 is off
  importance_level: str = "token"  # whether that ratio is of a "token" or of a "sequence"

  def __post_init__(self):
    for name, known in (
      ("aggregation", AGGREGATIONS),
      ("surrogate", SURROGATES),
      ("kl_estimator", KL_ESTIMATORS),
      ("importance_level", IMPORTANCE_LEVELS),
    ):
      if getattr(self, name) not in known:
        raise UserError(
          f"train.loss.{name}={getattr(self, name)!r} is unknown; known are {', '.join(known)}"
        )
    if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
      raise UserError(
        f"train.loss.clip_low={self.clip_low} must be in [0, 1] (1: no lower bound) and "
        f"train.loss.clip_high={self.clip_high} >= 0"
      )
    if self.dual_clip and (self.dual_clip <= 1 or self.surrogate != "ppo"):
      raise UserError(
        f"train.loss.dual_clip={self.dual_clip} must be above 1, or 0 for off, and belongs to "
        f"surrogate 'ppo', not to {self.surrogate!r}"
      )
    for name in ("kl_coef", "importance_cap"):
      if getattr(self, name) < 0:
        raise UserError(f"train.loss.{name}={getattr(self, name)} must not be negative")


def token_logprobs(
  hidden: Float[Array, "B T D"],
  unembed: Float[Array, "D V"],
  targets: Int[Array, "B T"],
  temperature: float = 1.0,
  chunk: int = 0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Log-probs of `targets` and entropies of softmax(hidden @ unembed / temperature), in nats.

  On a device, logits exist for `chunk` tokens at a time (0: see `chunk_of`), in the forward and in
  the backward pass, which computes them again. Differentiable in hidden and unembed, through both
  outputs. All in float32 but for the operands of the matrix products.
  """
  mesh = jax.sharding.get_abstract_mesh()
  chunk = chunk or chunk_of(unembed.shape[1] // (1 if mesh.empty else mesh.shape["tensor"]))

  def rows_of_a_device(hidden, unembed, targets):
    b, t, d = hidden.shape
    size = min(chunk, b * t)
    pad = -(b * t) % size
    rows = jnp.pad(hidden.reshape(b * t, d), ((0, pad), (0, 0))).reshape(-1, size, d)
    wanted = jnp.pad(targets.reshape(-1), (0, pad)).reshape(-1, size)
    outputs = _chunked(rows / temperature, unembed, wanted)
    return tuple(x.reshape(-1)[: b * t].reshape(b, t) for x in outputs)

  if mesh.empty or batch_shards(mesh) == 1:
    return rows_of_a_device(hidden, unembed, targets)
  # Left to itself, GSPMD has each device compute the logits of all devices' tokens.
  split = jax.shard_map(
    rows_of_a_device,
    in_specs=(P(BATCH), P(), P(BATCH)),
    out_specs=P(BATCH),
    axis_names=set(BATCH),
    check_vma=False,  # of the backward pass by hand, which says nothing of devices
  )
  return split(hidden, unembed, targets)


def chunk_of(vocab: int) -> int:
  """How many tokens' float32 logits take 256 MiB, of the `vocab` tokens on a device; at least 128,
  fewer than which would be bound by reading the unembedding."""
  return max(2**28 // (4 * vocab), 128)


def _softmax(rows, unembed, targets):
  """[C, D], [D, V], [C] -> log-probs of targets and entropies [C], all log-probs and probabilities
  [C, V]."""
  logits = jnp.dot(rows, unembed, preferred_element_type=jnp.float32)
  top = logits.max(-1, keepdims=True)
  # Not logits - log-sum-exp: where logits are large, that cancels.
  shifted = logits - top
  weights = jnp.exp(shifted)
  # Two sums in one reduction, and below a target taken from the logits themselves: otherwise XLA
  # fuses exp into each sum and the maximum into the product, of which a CPU makes slow work.
  total, moment = jax.lax.reduce(
    (weights, weights * shifted),
    (0.0, 0.0),
    lambda x, y: (x[0] + y[0], x[1] + y[1]),
    dimensions=(1,),
  )
  log_total = jnp.log(total)
  logprob = (jnp.take_along_axis(logits, targets[:, None], axis=-1) - top)[:, 0] - log_total
  entropy = log_total - moment / total  # of two terms that are not negative
  return logprob, entropy, shifted - log_total[:, None], weights / total[:, None]


@jax.custom_vjp
def _chunked(rows, unembed, targets):
  """[N, C, D], [D, V], [N, C] -> log-probs and entropies [N, C]."""
  return _chunked_forward(rows, unembed, targets)[0]


def _chunked_forward(rows, unembed, targets):
  def one(_, x):
    logprob, entropy, *_ = _softmax(x[0], unembed, x[1])
    return None, (logprob, entropy)

  return jax.lax.scan(one, None, (rows, targets))[1], (rows, unembed, targets)


def _chunked_backward(saved, cotangents):
  rows, unembed, targets = saved

  def one(d_unembed, x):
    rows, targets, d_logprob, d_entropy = x
    _, entropy, log_p, p = _softmax(rows, unembed, targets)
    # d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy)
    scale = d_logprob[:, None] + d_entropy[:, None] * (log_p + entropy[:, None])
    chosen = jnp.arange(p.shape[-1]) == targets[:, None]
    d_logits = jnp.where(chosen, d_logprob[:, None], 0.0) - p * scale
    d_logits = d_logits.astype(rows.dtype)
    d_unembed += jnp.dot(rows.T, d_logits, preferred_element_type=jnp.float32)
    return d_unembed, jnp.dot(d_logits, unembed.T, preferred_element_type=jnp.float32)

  d_unembed, d_rows = jax.lax.scan(
    one, jnp.zeros(unembed.shape, jnp.float32), (rows, targets, *cotangents)
  )
  return d_rows.astype(rows.dtype), d_unembed.astype(unembed.dtype), None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def token_weights(mask: Bool[Array, "B T"], aggregation: str) -> Float[Array, "B T"]:
  """What each token counts in the loss, zero where mask is False.

  token-mean: 1 / tokens (DAPO). seq-mean-token-mean: 1 / (sequences * own length) (GRPO).
  seq-mean-token-sum: 1 / sequences. seq-mean-token-sum-norm: 1 / T (Dr. GRPO as verl has it: a sum
  over sequences, divided by the response limit). Sequences without a token do not count.
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
    return mask / mask.shape[-1]
  raise UserError(f"aggregation {aggregation!r} is unknown; known are {', '.join(AGGREGATIONS)}")


def kl_estimate(
  logprobs: Float[Array, "B T"], reference: Float[Array, "B T"], estimator: str
) -> Float[Array, "B T"]:
  """What one token says about KL(policy || reference), for tokens that the policy sampled.

  With d = log policy - log reference: k1 = d (unbiased, but its gradient in a loss is zero on
  average), k2 = d^2 / 2 (its gradient is that of the KL), k3 = exp(-d) - 1 + d (unbiased and never
  negative; GRPO's choice, arXiv 2402.03300 eq. 4). d is bounded at +-20 nats, k3 at 10 as in verl.
  """
  d = jnp.clip(logprobs - reference, -20.0, 20.0)
  if estimator == "k1":
    return d
  if estimator == "k2":
    return d * d / 2
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
  """A surrogate whose gradient improves the policy; minimise it.

  With r = policy / old policy of a token, A its advantage, clip into [1 - clip_low, 1 + clip_high]:

  - ppo: -min(r A, clip(r) A) with bounds of their own (DAPO, arXiv 2503.14476 eq. 8) and dual clip
    (arXiv 1912.09729 eq. 5).
  - gspo: the same with one ratio a sequence, the geometric mean of its tokens' (GSPO, arXiv
    2507.18071 eq. 5, 7 and, for the gradient of a token, 13).
  - cispo: -clip(r) A log policy, where no gradient goes through clip(r), so that no token is left
    out (MiniMax-M1, arXiv 2506.13585 eq. 4; clip_low=1 is its lack of a lower bound).

  Args:
    logprobs: of the current policy, nats.
    old_logprobs: of the policy that sampled.
    advantages: a token, or a sequence as [B, 1].
    mask: the response's tokens; what stands elsewhere may be anything, NaN included.
    config: clipping and aggregation.
    weights: `token_weights` of the mini-batch of which this is a part; default: of this mask.
    entropies: of the current policy, nats; needed for config.entropy_coef.
    reference_logprobs: of the reference policy; needed for config.kl_coef.
    sampler_logprobs: what the sampler reported; needed for config.importance_cap C. The surrogate
      of a token is then multiplied by min(old / sampler, C), of the token or of its whole sequence,
      because the old policy as the trainer computes it is not quite the one that sampled.

  Returns:
    The loss, and means over the masked tokens: policy/clip_fraction and policy/dual_clip_fraction,
    where the bound is what the loss took, policy/kl, the k3 estimate of KL(old || current), and, if
    they are used, policy/reference_kl and rollout/importance_weight.
  """
  if weights is None:
    weights = token_weights(mask, config.aggregation)
  logprobs = jnp.where(mask, logprobs, 0.0)
  # Log-ratios beyond +-20 would overflow; no clipped surrogate can tell them apart.
  log_ratio = jnp.clip(jnp.where(mask, logprobs - old_logprobs, 0.0), -20.0, 20.0)
  ratio = jnp.exp(log_ratio)

  def mean(x):
    return jax.lax.stop_gradient(jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1))

  metrics = {"policy/kl": mean(ratio - 1 - log_ratio)}
  if config.surrogate == "gspo":
    lengths = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    of_sequence = jax.lax.stop_gradient(log_ratio.sum(-1, keepdims=True) / lengths - logprobs)
    ratio = jnp.exp(logprobs + of_sequence)
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
  metrics |= {
    "policy/clip_fraction": mean(clipped),
    "policy/dual_clip_fraction": mean(dual_clipped),
  }
  if config.importance_cap:
    mismatch = jnp.where(mask, old_logprobs - sampler_logprobs, 0.0)
    if config.importance_level == "sequence":
      mismatch = mismatch.sum(-1, keepdims=True)
    importance = jnp.minimum(jnp.exp(jnp.clip(mismatch, -20.0, 20.0)), config.importance_cap)
    importance = jax.lax.stop_gradient(importance)
    loss = loss * importance
    metrics["rollout/importance_weight"] = mean(importance)
  if config.kl_coef:
    kl = kl_estimate(logprobs, jnp.where(mask, reference_logprobs, 0.0), config.kl_estimator)
    loss = loss + config.kl_coef * kl
    metrics["policy/reference_kl"] = mean(kl)
  if config.entropy_coef:
    loss = loss - config.entropy_coef * entropies
  return (weights * jnp.where(mask, loss, 0.0)).sum(), metrics
