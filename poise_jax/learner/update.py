"""TrainState -> TrainState: one pass over a step's experience, an optimizer step a mini-batch.

Letters: P prompts, n samples a prompt, R rows of m responses (batching.py), B = R m sequences, T
response positions.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from poise_jax.errors import UserError, check_finite, unknown_name
from poise_jax.learner.batching import (
  Batch,
  accumulate,
  flat,
  form,
  map_microbatches,
  over_minibatches,
  responses_per_row,
)
from poise_jax.learner.logprobs import token_logprobs
from poise_jax.learner.losses import PolicyLossConfig, policy_loss, token_weights
from poise_jax.models import ModelConfig, hidden_states, unembedding
from poise_jax.models.transformer import REMAT_POLICIES
from poise_jax.types import Experience, Rollouts, TrainState

DTYPES = ("float32", "bfloat16", "float16")
OLD_LOGPROBS = ("sampler", "recompute")


def check_dtype(field: str, dtype: str):
  """Raises UserError if `dtype` is not a computation dtype."""
  if dtype not in DTYPES:
    raise unknown_name(field, dtype, DTYPES)


@dataclasses.dataclass(frozen=True)
class UpdateOptions:
  """Options of the update that a user may set; raises UserError for values that cannot work."""

  loss: PolicyLossConfig = PolicyLossConfig()  # objective
  minibatch_size: int = 64  # sequences an optimizer step, for any n
  microbatch_size: int = 64  # sequences in memory at once; does not change the result
  # source of the old policy's log-probs: "recompute" in the trainer, or those of the "sampler"
  old_logprobs: str = "recompute"
  learning_rate: float = 1e-6  # AdamW's learning rate after the warm-up
  warmup_steps: int = 0  # optimizer steps of linear warm-up; constant afterwards
  weight_decay: float = 0.0  # decoupled decay (AdamW) of every parameter
  max_grad_norm: float = 1.0  # global norm to which gradients are clipped; 0: no clipping
  adam_b1: float = 0.9  # decay rate of AdamW's mean of gradients
  adam_b2: float = 0.999  # decay rate of AdamW's mean of squared gradients
  dtype: str = "float32"  # computation dtype; master weights stay float32
  # activations recomputed in the backward pass: "none", "full", or "dots" (all but products)
  remat: str = "none"
  # attention kernel: "xla", "splash" (TPU), "cudnn" (GPU), or "auto": the fastest that runs on the
  # devices in use; float32 is always computed by "xla"
  attention: str = "auto"
  logprob_chunk: int = 0  # tokens whose logits a device holds at once; 0: as many as take 256 MiB

  def __post_init__(self):
    check_finite("train", self)
    if self.old_logprobs not in OLD_LOGPROBS:
      raise unknown_name("train.old_logprobs", self.old_logprobs, OLD_LOGPROBS)
    if self.loss.importance_cap and self.old_logprobs == "sampler":
      raise UserError(
        f"train.loss.importance_cap={self.loss.importance_cap} compares recomputed log-probs with "
        "the sampler's; it needs train.old_logprobs='recompute'"
      )
    for name in ("minibatch_size", "microbatch_size"):
      if getattr(self, name) < 1:
        raise UserError(f"train.{name} must be at least 1, got {getattr(self, name)}")
    for name in (
      "learning_rate",
      "warmup_steps",
      "weight_decay",
      "max_grad_norm",
      "logprob_chunk",
    ):
      if getattr(self, name) < 0:
        raise UserError(f"train.{name} must not be negative, got {getattr(self, name)}")
    for name in ("adam_b1", "adam_b2"):
      if not 0 <= getattr(self, name) < 1:
        raise UserError(f"train.{name} must be in [0, 1), got {getattr(self, name)}")
    if self.remat not in REMAT_POLICIES:
      raise unknown_name("train.remat", self.remat, REMAT_POLICIES)
    check_dtype("train.dtype", self.dtype)
    if self.minibatch_size % self.microbatch_size:
      raise UserError(
        f"train.minibatch_size must be a multiple of train.microbatch_size="
        f"{self.microbatch_size}, got {self.minibatch_size}"
      )


@dataclasses.dataclass(frozen=True)
class UpdateConfig(UpdateOptions):
  """UpdateOptions and what a run derives: a static argument of the update."""

  temperature: float = 1.0  # temperature of the trained policy, which is the sampling temperature


@functools.cache
def optimizer(config: UpdateOptions) -> optax.GradientTransformation:
  """Global-norm clipping, then AdamW with linear warm-up."""
  rate = config.learning_rate
  if config.warmup_steps:
    rate = optax.linear_schedule(rate / config.warmup_steps, rate, config.warmup_steps - 1)
  adamw = optax.adamw(rate, config.adam_b1, config.adam_b2, weight_decay=config.weight_decay)
  if not config.max_grad_norm:
    return adamw
  return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adamw)


def init(params: PyTree[Array], config: UpdateOptions) -> TrainState:
  """The state before the first optimizer step; its optimizer moments are sharded like `params`."""
  step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # each buffer is donated
  # Not under jit, where zeros would not depend on params, and XLA would replicate them.
  opt_state = optimizer(config).init(params)
  return TrainState(step, params, opt_state, skipped, in_a_row)


def response_logprobs(
  model: ModelConfig, params: PyTree[Array], batch: Batch, config: UpdateConfig
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Log-probs and entropies of the responses' tokens under `params`, in nats.

  Logits of prompts are not computed. Entries outside of the mask are meaningless.

  Args:
    model: the decoder's shape.
    params: parameters in the training layout.
    batch: rows; only their tokens are read.
    config: dtype, remat, attention, temperature and logprob_chunk.
  """
  dtype = jnp.dtype(config.dtype)
  states, _ = hidden_states(
    model, params, batch.rows, dtype, config.remat, attention=config.attention
  )
  unembed = unembedding(model, params)
  with jax.named_scope("token_logprobs"):
    return token_logprobs(
      batch.before_tokens(states),
      unembed,
      flat(batch.tokens),
      config.temperature,
      config.logprob_chunk,
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def batch_logprobs(
  model: ModelConfig, params: PyTree[Array], batch: Batch, config: UpdateConfig
) -> Float[Array, "R m T"]:
  """Log-probs of the responses' tokens under `params`, a micro-batch at a time."""
  rows = config.microbatch_size // batch.tokens.shape[1]
  logprobs = map_microbatches(
    lambda micro: response_logprobs(model, params, micro, config)[0], batch, rows
  )
  return logprobs.reshape(batch.tokens.shape)


def sequence_logprobs(
  model: ModelConfig, params: PyTree[Array], rollouts: Rollouts, config: UpdateConfig
) -> Float[Array, "P n T"]:
  """Log-probs of sampled responses under `params`, in nats, a micro-batch at a time.

  Entries outside of the mask are meaningless.
  """
  shape = rollouts.tokens.shape
  batch = form(rollouts, responses_per_row(shape[1], config.microbatch_size), {})
  return batch_logprobs(model, params, batch, config).reshape(shape)


def apply_gradients(
  config: UpdateOptions,
  state: TrainState,
  grads: PyTree[Array],
  loss: Float[Array, ""] | float = 0.0,
  has_tokens: Bool[Array, ""] | bool = True,
) -> TrainState:
  """One optimizer step. Where loss or gradient are not finite, the step is skipped: only the counts
  of skipped steps change. Where the mini-batch has no tokens, nothing changes: AdamW would move the
  parameters by momentum and weight decay alone."""
  with jax.named_scope("optimizer"):
    updates, opt_state = optimizer(config).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(optax.tree.norm(grads)) & jnp.isfinite(loss)
    taken, failed = finite & has_tokens, ~finite & has_tokens
    params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(taken, new, old),
      (params, opt_state),
      (state.params, state.opt_state),
    )
  return TrainState(
    step=state.step + taken,
    params=params,
    opt_state=opt_state,
    skipped=state.skipped + failed,
    skipped_in_a_row=jnp.where(taken, 0, state.skipped_in_a_row + failed),
  )


def step(
  model: ModelConfig,
  config: UpdateConfig,
  state: TrainState,
  experience: Experience,
  advantages: Float[Array, "P n"] | Float[Array, "P n T"],
  reference: PyTree[Array] = (),
  groups: int | None = None,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
  """Updates the policy once over all P n sequences, in order, an optimizer step a mini-batch.

  Args:
    model: the decoder's shape.
    config: static; each new value compiles once.
    state: donated; use only the returned state.
    experience: P n sequences, a multiple of config.minibatch_size. Where it has an age, the old
      log-probs of groups from earlier steps are the sampler's, since the policy that sampled them
      no longer exists.
    advantages: one a sequence, or one a token.
    reference: parameters of the reference policy; needed for config.loss.kl_coef; not donated.
    groups: number of groups, at the front, that are not padding; mini-batches that are all padding
      are skipped. None: all P.

  Returns:
    The new state, and metrics averaged over the mini-batches that have tokens and whose loss and
    gradient are finite. The other mini-batches change nothing; policy/skipped_updates counts those
    whose loss or gradient is not finite since training began. policy/grad_clipped is the fraction
    of optimizer steps whose gradient norm exceeded config.max_grad_norm. rollout/mismatch_kl is the
    k3 estimate of KL(sampler || trainer) in nats a token, over the tokens of the first mini-batch
    with groups of this step; groups from earlier steps do not count.

  Raises:
    UserError: P n is not a multiple of config.minibatch_size.
  """
  batch, count = policy_batch(
    model, config, state.params, experience, advantages, reference, groups
  )
  rows = config.minibatch_size // batch.tokens.shape[1]
  optimizer_step = functools.partial(minibatch_step, model, config)
  state, history = over_minibatches(optimizer_step, state, batch, rows, count)
  return state, _over_history(history, state.skipped)


@jax.jit
def _over_history(history, skipped):
  """Metrics of a step from those of its mini-batches. The count is copied: the next step donates
  the state that it belongs to."""
  series = jax.tree.map(lambda *x: jnp.stack(x), *history)
  metrics = jax.tree.map(jnp.nanmean, series)
  # The policy has moved since the rollouts were sampled, in all mini-batches but the first.
  mismatch = series["rollout/mismatch_kl"]
  metrics["rollout/mismatch_kl"] = mismatch[jnp.argmax(jnp.isfinite(mismatch))]
  return {**metrics, "policy/skipped_updates": jnp.copy(skipped)}


def policy_batch(
  model: ModelConfig,
  config: UpdateConfig,
  params: PyTree[Array],
  experience: Experience,
  advantages: Float[Array, "P n"] | Float[Array, "P n T"],
  reference: PyTree[Array] = (),
  groups: int | None = None,
) -> tuple[Batch, int]:
  """The rows of all mini-batches of `step`, and the number of mini-batches.

  Args:
    params: the policy's parameters before the update. Other arguments as for `step`.
  """
  p, n, _ = experience.rollouts.tokens.shape
  if (p * n) % config.minibatch_size:
    raise UserError(
      f"{p} prompts x {n} samples are {p * n} sequences, "
      f"not a multiple of train.minibatch_size={config.minibatch_size}"
    )
  batch = _form(experience, advantages, responses_per_row(n, config.microbatch_size))
  stale = batch.fields.get("stale")
  tokens = batch.replace(fields={})  # log-probs need no fields: one program for both policies
  count = -(-(p if groups is None else groups) * n // config.minibatch_size)
  if config.old_logprobs == "sampler":
    batch = batch.with_fields(old_logprobs=batch.fields["sampler_logprobs"])
  elif count > 1 or stale is not None:
    # With a single optimizer step over new rollouts, the loss's own log-probs are the old ones.
    old = batch_logprobs(model, params, tokens, config)
    if stale is not None:
      old = _where(stale, batch.fields["sampler_logprobs"], old)
    batch = batch.with_fields(old_logprobs=old)
  if config.loss.kl_coef:
    reference_logprobs = batch_logprobs(model, reference, tokens, config)
    batch = batch.with_fields(reference_logprobs=reference_logprobs)
  return batch, count


@functools.partial(jax.jit, static_argnames="responses")
def _form(experience, advantages, responses):
  """Rows with advantages, the sampler's log-probs and, where groups have an age, which responses
  are from an earlier step."""
  p, n, _ = experience.rollouts.tokens.shape
  fields = {
    "sampler_logprobs": experience.rollouts.logprobs,
    "advantages": advantages.reshape(p, n, -1),
  }
  if not isinstance(experience.age, tuple):
    fields["stale"] = jnp.broadcast_to((experience.age > 0)[:, None, None], (p, n, 1))
  return form(experience.rollouts, responses, fields)


_where = jax.jit(jnp.where)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def minibatch_step(
  model: ModelConfig, config: UpdateConfig, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
  """One optimizer step on a mini-batch of `policy_batch`; `state` is donated.

  Returns:
    The new state, and metrics: means over the mini-batch's tokens, or NaN where there are none or
    where loss or gradient are not finite.
  """
  mask = flat(batch.mask)
  weights = token_weights(mask, config.loss.aggregation).reshape(batch.mask.shape)

  def loss_fn(params, micro):
    logprobs, entropies = response_logprobs(model, params, micro, config)
    fields = {name: flat(field) for name, field in micro.fields.items()}
    with jax.named_scope("policy_loss"):
      return _policy_loss(config, logprobs, entropies, flat(micro.mask), fields)

  rows = config.microbatch_size // batch.tokens.shape[1]
  grads, sums = accumulate(loss_fn, state.params, batch.with_fields(weights=weights), rows)
  loss, norm = sums.pop("policy/loss"), optax.tree.norm(grads)
  mismatch = sums.pop("rollout/mismatch_kl") / _fresh(batch.mask, batch.fields).sum()
  metrics = {
    **jax.tree.map(lambda x: x / mask.sum(), sums),
    "policy/loss": loss,
    "policy/grad_norm": norm,
    "policy/grad_clipped": (norm > (config.max_grad_norm or jnp.inf)).astype(jnp.float32),
    "rollout/mismatch_kl": mismatch,
  }
  new = apply_gradients(config, state, grads, loss, mask.any())
  taken = new.step > state.step
  return new, jax.tree.map(lambda x: jnp.where(taken, x, jnp.nan), metrics)


def _policy_loss(config, logprobs, entropies, mask, fields):
  """The loss of a micro-batch, and the sums over its tokens of the metrics of `minibatch_step`."""
  loss, metrics = policy_loss(
    logprobs,
    fields.get("old_logprobs", jax.lax.stop_gradient(logprobs)),
    fields["advantages"],
    mask,
    config.loss,
    fields["weights"],
    entropies,
    fields.get("reference_logprobs"),
    fields["sampler_logprobs"],
  )
  difference = logprobs - fields["sampler_logprobs"]
  difference = jnp.where(_fresh(mask, fields), difference, 0.0)
  sums = {
    "policy/loss": loss,
    "policy/entropy": jnp.where(mask, entropies, 0.0).sum(),
    "rollout/mismatch_kl": (jnp.expm1(difference) - difference).sum(),
    **jax.tree.map(lambda mean: mean * mask.sum(), metrics),
  }
  return loss, jax.lax.stop_gradient(sums)


def _fresh(mask, fields):
  """The tokens of responses that this step sampled, in the shape of `mask`."""
  return mask & ~fields["stale"] if "stale" in fields else mask
