"""TrainState -> TrainState: passes over a step's experience, an optimizer step a mini-batch.

Letters: P prompts, n samples a prompt, B sequences of a mini-batch, T response positions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from poise_jax.errors import UserError
from poise_jax.learner.batching import (
  Batch,
  Minibatch,
  accumulate,
  form,
  map_microbatches,
  minibatches,
  over_minibatches,
  useful_positions,
)
from poise_jax.learner.config import UpdateConfig
from poise_jax.learner.logprobs import token_logprobs
from poise_jax.learner.losses import accepted, policy_loss, token_weights
from poise_jax.learner.micro_batch import MicroBatch
from poise_jax.learner.optimizer import learning_rate, optimizer
from poise_jax.models import ModelConfig, hidden_states, unembedding
from poise_jax.types import Experience, Rollouts, TrainState


def init(params: PyTree[Array], config: UpdateConfig) -> TrainState:
  """The state before the first optimizer step; its optimizer moments are sharded like `params`."""
  step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # each buffer is donated
  # Not under jit, where zeros would not depend on params, and XLA would replicate them.
  opt_state = optimizer(config).init(params)
  return TrainState(step, params, opt_state, skipped, in_a_row)


def response_logprobs(
  model: ModelConfig,
  params: PyTree[Array],
  batch: Batch,
  micro: MicroBatch,
  config: UpdateConfig,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Log-probs and entropies of the responses' tokens under `params`, in nats.

  0 for the sequences of other micro-batches; entries outside of the mask are meaningless.

  Args:
    model: the decoder's shape.
    params: parameters in the training layout.
    batch: a mini-batch; only its tokens are read.
    micro: the sequences to compute.
    config: dtype, remat, attention, temperature and logprob_chunk.
  """
  rows = batch.rows(micro)
  states, _ = hidden_states(
    model, params, rows, jnp.dtype(config.dtype), config.remat, attention=config.attention
  )
  unembed = unembedding(model, params)
  with jax.named_scope("token_logprobs"):
    values = token_logprobs(
      micro.before_tokens(states),
      unembed,
      micro.targets(rows),
      config.temperature,
      config.logprob_chunk,
    )
  return tuple(micro.read(x, batch.tokens.shape[1]) for x in values)


@functools.partial(jax.jit, static_argnums=(0, 1))
def microbatch_logprobs(
  model: ModelConfig,
  config: UpdateConfig,
  params: PyTree[Array],
  batch: Batch,
  micro: MicroBatch,
) -> Float[Array, "B T"]:
  """The log-probs of `response_logprobs`, as a program."""
  return response_logprobs(model, params, batch, micro, config)[0]


def sequence_logprobs(
  model: ModelConfig, params: PyTree[Array], rollouts: Rollouts, config: UpdateConfig
) -> Float[Array, "P n T"]:
  """Log-probs of sampled responses under `params`, in nats, a micro-batch at a time.

  Entries outside of the mask are meaningless.
  """
  parts = minibatches(form(rollouts, {}), config.minibatch_size, config.microbatch_size)
  logprobs = map_microbatches(functools.partial(microbatch_logprobs, model, config, params), parts)
  return _joined(logprobs, rollouts.tokens.shape)


@functools.partial(jax.jit, static_argnums=1)
def _joined(parts, shape):
  return jnp.concatenate(parts).reshape(shape)


def apply_gradients(
  config: UpdateConfig,
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
  """Updates the policy over all P n sequences, in order, an optimizer step a mini-batch, in
  config.epochs passes. The old policy is that before the first pass.

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
    UserError: P n is not a multiple of config.minibatch_size, advantages have another shape, or a
      KL has no reference.
  """
  parts = policy_minibatches(model, config, state.params, experience, advantages, reference, groups)
  optimizer_step = functools.partial(minibatch_step, model, config)
  state, history = over_minibatches(optimizer_step, state, parts, config.epochs)
  metrics = _over_history(history, state.skipped)
  return state, {**metrics, "update/useful_positions": np.float32(useful_positions(parts))}


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


def policy_minibatches(
  model: ModelConfig,
  config: UpdateConfig,
  params: PyTree[Array],
  experience: Experience,
  advantages: Float[Array, "P n"] | Float[Array, "P n T"],
  reference: PyTree[Array] = (),
  groups: int | None = None,
) -> list[Minibatch]:
  """The mini-batches of `step`, with their passes.

  Args:
    params: the policy's parameters before the update. Other arguments as for `step`.
  """
  p, n, _ = experience.rollouts.tokens.shape
  if (p * n) % config.minibatch_size:
    raise UserError(
      f"{p} prompts x {n} samples are {p * n} sequences, "
      f"not a multiple of train.minibatch_size={config.minibatch_size}"
    )
  shapes = (p, n), experience.rollouts.tokens.shape
  if advantages.shape not in shapes:
    raise UserError(
      f"advantages must have the shape {shapes[0]}, one a response, or {shapes[1]}, one a token, "
      f"got {advantages.shape}"
    )
  if config.loss.kl_coef and not jax.tree.leaves(reference):
    raise UserError(
      f"train.loss.kl_coef={config.loss.kl_coef} needs `reference`, the reference policy's "
      "parameters; pass them, or set kl_coef to 0"
    )
  count = -(-(p if groups is None else groups) * n // config.minibatch_size)
  batch = _form(experience, advantages)
  parts = minibatches(batch, config.minibatch_size, config.microbatch_size, count)
  logprobs = functools.partial(microbatch_logprobs, model, config)
  if config.old_logprobs == "sampler":
    parts = [part.with_fields(old_logprobs=part.batch.fields["sampler_logprobs"]) for part in parts]
  elif max(count, config.epochs) > 1 or "stale" in batch.fields or config.loss.rejection != "none":
    # With a single optimizer step over new rollouts, the loss's own log-probs are the old ones.
    old = map_microbatches(functools.partial(logprobs, params), parts)
    if "stale" in batch.fields:
      fields = [part.batch.fields for part in parts]
      old = [_where(f["stale"], f["sampler_logprobs"], x) for f, x in zip(fields, old, strict=True)]
    parts = [part.with_fields(old_logprobs=x) for part, x in zip(parts, old, strict=True)]
  if config.loss.rejection != "none":
    parts = [part.with_fields(accepted=_accepted(part.batch, config.loss)) for part in parts]
  if config.loss.kl_coef:
    policy = map_microbatches(functools.partial(logprobs, reference), parts)
    parts = [part.with_fields(reference_logprobs=x) for part, x in zip(parts, policy, strict=True)]
  return parts


@jax.jit
def _form(experience, advantages):
  """Sequences with advantages, the sampler's log-probs and, where groups have an age, which
  responses are from an earlier step."""
  p, n, _ = experience.rollouts.tokens.shape
  fields = {
    "sampler_logprobs": experience.rollouts.logprobs,
    "advantages": advantages.reshape(p, n, -1),
  }
  if not isinstance(experience.age, tuple):
    fields["stale"] = jnp.broadcast_to((experience.age > 0)[:, None, None], (p, n, 1))
  return form(experience.rollouts, fields)


_where = jax.jit(jnp.where)


@functools.partial(jax.jit, static_argnums=1)
def _accepted(batch, config):
  fields = batch.fields
  return accepted(fields["old_logprobs"], fields["sampler_logprobs"], batch.mask, config)


def _counted(batch):
  """The tokens that count in the loss."""
  return batch.fields.get("accepted", batch.mask)


def minibatch_step(
  model: ModelConfig, config: UpdateConfig, state: TrainState, part: Minibatch
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
  """One optimizer step on a mini-batch of `policy_minibatches`; `state` is donated.

  Returns:
    The new state, and metrics: means over the mini-batch's tokens, or NaN where there are none or
    where loss or gradient are not finite.
  """
  weighted = part.with_fields(weights=token_weights(_counted(part.batch), config.loss.aggregation))
  gradient = functools.partial(microbatch_gradient, model, config)
  grads, sums = accumulate(gradient, state.params, weighted)
  return optimizer_step(config, state, grads, sums, part.batch)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def microbatch_gradient(
  model: ModelConfig,
  config: UpdateConfig,
  total: PyTree[Array],
  params: PyTree[Array],
  batch: Batch,
  micro: MicroBatch,
) -> tuple[PyTree[Array], dict[str, Float[Array, ""]]]:
  """Adds the gradient of a micro-batch's part of the loss to `total`, which is donated.

  Returns:
    The total, and the sums over the micro-batch's tokens of the metrics of `minibatch_step`.
  """

  def loss_fn(params):
    logprobs, entropies = response_logprobs(model, params, batch, micro, config)
    with jax.named_scope("policy_loss"):
      mask = _counted(batch) & micro.inside
      return _policy_loss(config, logprobs, entropies, mask, batch.fields)

  gradient, sums = jax.grad(loss_fn, has_aux=True)(params)
  return jax.tree.map(jnp.add, total, gradient), sums


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def optimizer_step(
  config: UpdateConfig,
  state: TrainState,
  grads: PyTree[Array],
  sums: dict[str, Float[Array, ""]],
  batch: Batch,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
  """The end of `minibatch_step`: the optimizer, and means from sums; `state` is donated."""
  sums, mask = dict(sums), _counted(batch)
  loss, norm = sums.pop("policy/loss"), optax.tree.norm(grads)
  mismatch = sums.pop("rollout/mismatch_kl") / _fresh(mask, batch.fields).sum()
  metrics = {
    **jax.tree.map(lambda x: x / mask.sum(), sums),
    "policy/loss": loss,
    "policy/grad_norm": norm,
    "policy/grad_clipped": (norm > (config.max_grad_norm or jnp.inf)).astype(jnp.float32),
    "rollout/mismatch_kl": mismatch,
  }
  rate = learning_rate(config)
  metrics["policy/learning_rate"] = jnp.float32(rate(state.step) if callable(rate) else rate)
  if "accepted" in batch.fields:
    metrics["rollout/rejected_fraction"] = 1 - mask.sum() / batch.mask.sum()
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
