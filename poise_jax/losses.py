"""Token log-probs without [B, T, V], the clipped surrogate, and aggregation by explicit weights.

A loss is a weighted sum over tokens, and the weights of a whole mini-batch are known before any of
its micro-batches runs. So how a mini-batch is cut up cannot change its loss.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

AGGREGATIONS = (
  "token-mean",
  "seq-mean-token-mean",
  "seq-mean-token-sum",
  "seq-mean-token-sum-norm",
)


@dataclasses.dataclass(frozen=True)
class PolicyLossConfig:
  """Options of `policy_loss`; raises ValueError on construction for values without a meaning."""

  clip_low: float = 0.2  # ratios below 1 - clip_low stop counting (PPO, arXiv 1707.06347)
  clip_high: float = 0.2  # ratios above 1 + clip_high stop counting (DAPO's clip-higher: 0.28)
  dual_clip: float = 0.0  # c > 1 bounds the loss of a negative advantage at -A c; 0 is off
  aggregation: str = "token-mean"

  def __post_init__(self):
    if self.aggregation not in AGGREGATIONS:
      raise ValueError(
        f"train.loss.aggregation={self.aggregation!r} is unknown; "
        f"known are {', '.join(AGGREGATIONS)}"
      )
    if not 0 <= self.clip_low < 1 or self.clip_high < 0:
      raise ValueError(
        f"train.loss.clip_low={self.clip_low} must be in [0, 1) and "
        f"train.loss.clip_high={self.clip_high} >= 0"
      )
    if self.dual_clip and self.dual_clip <= 1:
      raise ValueError(f"train.loss.dual_clip={self.dual_clip} must be above 1, or 0 for off")


def token_logprobs(
  hidden: Float[Array, "B T D"],
  unembed: Float[Array, "D V"],
  targets: Int[Array, "B T"],
  temperature: float = 1.0,
  chunk: int = 512,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Log-probs of `targets` and entropies of softmax(hidden @ unembed / temperature), in nats.

  Logits exist for `chunk` tokens at a time, in the forward and in the backward pass, which computes
  them again. Differentiable in hidden and unembed, through both outputs. All in float32 but for the
  operands of the matrix products.
  """
  b, t, d = hidden.shape
  chunk = min(chunk, b * t)
  pad = -(b * t) % chunk
  rows = jnp.pad(hidden.reshape(b * t, d), ((0, pad), (0, 0))).reshape(-1, chunk, d)
  wanted = jnp.pad(targets.reshape(-1), (0, pad)).reshape(-1, chunk)
  outputs = _chunked(rows / temperature, unembed, wanted)
  return tuple(x.reshape(-1)[: b * t].reshape(b, t) for x in outputs)


def _log_p(rows, unembed):
  # log_softmax, not logits - logsumexp: for large logits the latter cancels.
  return jax.nn.log_softmax(jnp.dot(rows, unembed, preferred_element_type=jnp.float32))


@jax.custom_vjp
def _chunked(rows, unembed, targets):
  """[N, C, D], [D, V], [N, C] -> log-probs and entropies [N, C]."""
  return _chunked_forward(rows, unembed, targets)[0]


def _chunked_forward(rows, unembed, targets):
  def one(_, x):
    log_p = _log_p(x[0], unembed)
    logprob = jnp.take_along_axis(log_p, x[1][:, None], axis=-1)[:, 0]
    return None, (logprob, -(jnp.exp(log_p) * log_p).sum(-1))

  _, (logprobs, entropies) = jax.lax.scan(one, None, (rows, targets))
  return (logprobs, entropies), (rows, unembed, targets, entropies)


def _chunked_backward(saved, cotangents):
  rows, unembed, targets, entropies = saved

  def one(d_unembed, x):
    rows, targets, entropies, d_logprob, d_entropy = x
    log_p = _log_p(rows, unembed)
    # d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy)
    scale = d_logprob[:, None] + d_entropy[:, None] * (log_p + entropies[:, None])
    chosen = jnp.arange(log_p.shape[-1]) == targets[:, None]
    d_logits = jnp.where(chosen, d_logprob[:, None], 0.0) - jnp.exp(log_p) * scale
    d_logits = d_logits.astype(rows.dtype)
    d_unembed += jnp.dot(rows.T, d_logits, preferred_element_type=jnp.float32)
    return d_unembed, jnp.dot(d_logits, unembed.T, preferred_element_type=jnp.float32)

  d_unembed, d_rows = jax.lax.scan(
    one, jnp.zeros(unembed.shape, jnp.float32), (rows, targets, entropies, *cotangents)
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
  raise ValueError(f"aggregation {aggregation!r} is unknown; known are {', '.join(AGGREGATIONS)}")


def policy_loss(
  logprobs: Float[Array, "B T"],
  old_logprobs: Float[Array, "B T"],
  advantages: Float[Array, "B T"] | Float[Array, "B 1"],
  mask: Bool[Array, "B T"],
  config: PolicyLossConfig,
  weights: Float[Array, "B T"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The clipped surrogate of PPO with separate bounds (DAPO, arXiv 2503.14476 eq. 8) and dual clip
  (arXiv 1912.09729 eq. 5); minimise it.

  Args:
    logprobs: of the current policy, nats.
    old_logprobs: of the policy that sampled.
    advantages: a token, or a sequence as [B, 1].
    mask: the response's tokens; what stands elsewhere may be anything, NaN included.
    config: clipping and aggregation.
    weights: `token_weights` of the mini-batch of which this is a part; default: of this mask.

  Returns:
    The loss, and means over the masked tokens: policy/clip_fraction and policy/dual_clip_fraction,
    where the bound is what the loss took, and policy/kl, the k3 estimate of KL(old || current).
  """
  if weights is None:
    weights = token_weights(mask, config.aggregation)
  # Log-ratios beyond +-20 would overflow; no clipped surrogate can tell them apart.
  log_ratio = jnp.clip(jnp.where(mask, logprobs - old_logprobs, 0.0), -20.0, 20.0)
  ratio = jnp.exp(log_ratio)
  plain = -advantages * ratio
  clipped = -advantages * jnp.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
  loss, dual_clipped = jnp.maximum(plain, clipped), jnp.zeros_like(mask)
  if config.dual_clip:
    bound = -advantages * config.dual_clip
    dual_clipped = (advantages < 0) & (loss > bound)
    loss = jnp.where(dual_clipped, bound, loss)

  def mean(x):
    return jax.lax.stop_gradient(jnp.where(mask, x, 0.0).sum() / jnp.maximum(mask.sum(), 1))

  metrics = {
    "policy/clip_fraction": mean(clipped > plain),
    "policy/dual_clip_fraction": mean(dual_clipped),
    "policy/kl": mean(ratio - 1 - log_ratio),
  }
  return (weights * jnp.where(mask, loss, 0.0)).sum(), metrics
