"""TrainState -> TrainState: one pass over a batch of rollouts, a mini-batch an optimizer step."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from poise_jax.distributed.sharding import batch_shards, constrain
from poise_jax.errors import UserError
from poise_jax.learner.losses import PolicyLossConfig, policy_loss, token_logprobs, token_weights
from poise_jax.models import ModelConfig, Rows, hidden_states, unembedding
from poise_jax.models.transformer import REMAT_POLICIES
from poise_jax.types import Rollouts, TrainState

DTYPES = ("float32", "bfloat16", "float16")
OLD_LOGPROBS = ("sampler", "recompute")


def check_dtype(field: str, dtype: str):
  """Raises UserError if `dtype` is not one that a policy computes in."""
  if dtype not in DTYPES:
    raise UserError(f"{field}={dtype!r} is unknown; known are {', '.join(DTYPES)}")


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
  """Options of `step`; raises UserError on construction for values that cannot work."""

  loss: PolicyLossConfig = PolicyLossConfig()  # what is minimised
  minibatch_size: int = 64  # sequences an optimizer step, whatever n is
  microbatch_size: int = 64  # sequences in memory at once; never changes the result
  old_logprobs: str = "recompute"  # by the trainer, or "sampler": trust what it reported
  temperature: float = 1.0  # of the policy that is trained: the sampling temperature
  learning_rate: float = 1e-6  # AdamW's, after the warm-up
  warmup_steps: int = 0  # optimizer steps of linear warm-up; constant afterwards
  weight_decay: float = 0.0  # decoupled (AdamW), on every parameter
  max_grad_norm: float = 1.0  # global norm; 0 is off
  adam_b1: float = 0.9  # decay of the mean of the gradients
  adam_b2: float = 0.999  # decay of the mean of their squares
  dtype: str = "float32"  # of the computation; master weights stay float32
  remat: str = "none"  # computed again going back: "none", "full" or "dots" (all but products)
  # "xla", "splash" (TPU), "cudnn" (GPU, but in float32), or "auto": the last that runs here
  attention: str = "auto"
  logprob_chunk: int = 0  # tokens whose logits exist at once on a device; 0: those of 256 MiB

  def __post_init__(self):
    if self.old_logprobs not in OLD_LOGPROBS:
      raise UserError(
        f"train.old_logprobs={self.old_logprobs!r} is unknown; known are {', '.join(OLD_LOGPROBS)}"
      )
    if self.loss.importance_cap and self.old_logprobs == "sampler":
      raise UserError(
        f"train.loss.importance_cap={self.loss.importance_cap} corrects recomputed log-probs for "
        "the sampler's; it needs train.old_logprobs='recompute'"
      )
    for name in ("minibatch_size", "microbatch_size"):
      if getattr(self, name) < 1:
        raise UserError(f"train.{name}={getattr(self, name)} must be at least 1")
    for name in (
      "learning_rate",
      "warmup_steps",
      "weight_decay",
      "max_grad_norm",
      "logprob_chunk",
    ):
      if not 0 <= getattr(self, name) < math.inf:
        raise UserError(f"train.{name}={getattr(self, name)} must not be negative")
    for name in ("adam_b1", "adam_b2"):
      if not 0 <= getattr(self, name) < 1:
        raise UserError(f"train.{name}={getattr(self, name)} must be in [0, 1)")
    if self.remat not in REMAT_POLICIES:
      raise UserError(
        f"train.remat={self.remat!r} is unknown; known are {', '.join(REMAT_POLICIES)}"
      )
    check_dtype("train.dtype", self.dtype)
    if self.minibatch_size % self.microbatch_size:
      raise UserError(
        f"train.minibatch_size={self.minibatch_size} is not a multiple of "
        f"train.microbatch_size={self.microbatch_size}"
      )


@functools.cache
def optimizer(config: UpdateConfig) -> optax.GradientTransformation:
  """Global-norm clipping, then AdamW with linear warm-up."""
  rate = config.learning_rate
  if config.warmup_steps:
    rate = optax.linear_schedule(rate / config.warmup_steps, rate, config.warmup_steps - 1)
  adamw = optax.adamw(rate, config.adam_b1, config.adam_b2, weight_decay=config.weight_decay)
  if not config.max_grad_norm:
    return adamw
  return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adamw)


def init(params, config: UpdateConfig) -> TrainState:
  """The state before the first optimizer step; its optimizer moments are sharded like `params`."""
  step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # each is donated
  # Not under jit: zeros do not depend on params there, and XLA would replicate them.
  opt_state = optimizer(config).init(params)
  return TrainState(step, params, opt_state, skipped, in_a_row)


def response_logprobs(
  model: ModelConfig, params, batch: dict[str, jax.Array], config: UpdateConfig, samples: int = 1
) -> tuple[jax.Array, jax.Array]:
  """Log-probs and entropies [B, T] of the response under `params`; logits of prompts are not made.

  Args:
    model: the decoder's shape.
    params: training layout.
    batch: tokens and mask [B, Tp + T], and targets [B, T].
    config: dtype, remat, attention, temperature and logprob_chunk.
    samples: how many rows, one after another, have the same prompt, whose pass they share.
  """
  dtype = jnp.dtype(config.dtype)
  length = batch["targets"].shape[1]
  prompt = batch["tokens"].shape[1] - length
  like = Rows(batch["tokens"], batch["mask"], prompt, samples)
  rows = like.replace(tokens=like.merge(like.tokens), mask=like.merge(like.mask))
  hidden, _ = hidden_states(model, params, rows, dtype, config.remat, attention=config.attention)
  hidden = hidden[:, -length - 1 : -1]  # the state before a token predicts it
  unembed = unembedding(model, params).astype(dtype)
  return token_logprobs(hidden, unembed, batch["targets"], config.temperature, config.logprob_chunk)


@jax.jit
def response_batch(rollouts: Rollouts) -> dict[str, jax.Array]:
  """[P, n, ...] -> [P * n, ...]: one row a sequence, prompt and response side by side."""
  n = rollouts.tokens.shape[1]
  rows = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
  prompts = jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), rollouts.prompts)
  return {
    "tokens": jnp.concatenate([prompts.tokens, rows(rollouts.tokens)], axis=1),
    "mask": jnp.concatenate([prompts.mask, rows(rollouts.mask)], axis=1),
    "targets": rows(rollouts.tokens),
    "response_mask": rows(rollouts.mask),
    "sampler_logprobs": rows(rollouts.logprobs),
  }


def samples_together(n: int, config: UpdateConfig, mesh: Any = None) -> int:
  """How many of a prompt's n samples lie side by side in each micro-batch, on each device of the
  mesh (None: the one in use). They share the prompt's pass."""
  mesh = mesh or jax.sharding.get_abstract_mesh()
  return math.gcd(n, config.microbatch_size // (1 if mesh.empty else batch_shards(mesh)))


def microbatches(batch: Any, size: int) -> Any:
  """[B, ...] -> [B / size, size, ...]; `size` divides B."""
  split = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), batch)
  return jax.tree.map(lambda x: constrain(x, None, "batch", *[None] * (x.ndim - 2)), split)


def accumulate(loss_fn, params, batch: Any, size: int) -> tuple[Any, Any]:
  """Gradients and metrics of loss_fn(params, micro-batch) -> (loss, metrics), summed over all
  micro-batches of `size` rows."""
  parts = microbatches(batch, size)
  gradient = jax.grad(loss_fn, has_aux=True)
  first = jax.tree.map(lambda x: x[0], parts)
  if len(jax.tree.leaves(batch)[0]) == size:
    return gradient(params, first)

  def add(total, micro):
    return jax.tree.map(jnp.add, total, gradient(params, micro)), None

  # From zero, not from the first micro-batch: its gradient would be compiled a second time.
  shapes = jax.eval_shape(gradient, params, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(add, zeros, parts)[0]


def apply_gradients(
  config: UpdateConfig, state: TrainState, grads: Any, loss: jax.Array | float = 0.0
) -> TrainState:
  """One optimizer step; none, but for the count of those, if loss or gradient are not finite."""
  updates, opt_state = optimizer(config).update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  finite = jnp.isfinite(optax.tree.norm(grads)) & jnp.isfinite(loss)
  params, opt_state = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (params, opt_state),
    (state.params, state.opt_state),
  )
  return TrainState(
    step=state.step + finite,
    params=params,
    opt_state=opt_state,
    skipped=state.skipped + ~finite,
    skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
  )


def sequence_logprobs(
  model: ModelConfig, params: Any, rollouts: Rollouts, config: UpdateConfig
) -> jax.Array:
  """Log-probs [P, n, T] of sampled responses under `params`, a micro-batch at a time; what stands
  outside of the mask may be anything."""
  shape = rollouts.tokens.shape
  return recompute(model, params, response_batch(rollouts), config, shape[1]).reshape(shape)


def step(
  model: ModelConfig,
  state: TrainState,
  rollouts: Rollouts,
  advantages: jax.Array,
  config: UpdateConfig,
  reference: Any = None,
  age: jax.Array | None = None,
  groups: int | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Updates the policy once over all P * n sequences, in order, a mini-batch an optimizer step.

  Args:
    model: the decoder's shape.
    state: is donated: use only what is returned.
    rollouts: P * n sequences; their number is a multiple of config.minibatch_size.
    advantages: [P, n], or a token [P, n, T].
    config: static; compiles once.
    reference: parameters of the policy that config.loss.kl_coef keeps this one near; not donated.
    age: [P], steps since a group was sampled. The old log-probs of an older group are what its
      sampler reported, since the policy that said it is gone. None: all are new.
    groups: how many of the P groups are real; mini-batches of padding alone are left out. None: P.

  Returns:
    The new state, and metrics averaged over the mini-batches whose loss and gradient were finite;
    the others changed nothing, and policy/skipped_updates counts them, since training began.
    rollout/mismatch_kl is the k3 estimate of KL(sampler || trainer) in nats a token, of the tokens
    that are seen before the first optimizer step.

  Raises:
    UserError: the sequences do not divide into mini-batches.
  """
  size, n = config.minibatch_size, rollouts.tokens.shape[1]
  batch, count = learning_batch(
    model, state.params, rollouts, advantages, config, reference, age, groups
  )
  all_metrics = []
  for i in range(count):
    minibatch = jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], batch)
    state, metrics = minibatch_step(model, config, state, minibatch, n)
    all_metrics.append(metrics)
  mismatch = all_metrics[0]["rollout/mismatch_kl"]
  mean = jax.tree.map(lambda *x: jnp.nanmean(jnp.stack(x)), *all_metrics)
  counted = {"rollout/mismatch_kl": mismatch, "policy/skipped_updates": jnp.copy(state.skipped)}
  return state, {**mean, **counted}


def learning_batch(
  model, params, rollouts, advantages, config, reference=None, age=None, groups=None
) -> tuple[dict[str, jax.Array], int]:
  """What the mini-batches of `step` are cut from [P * n, ...], and how many they are."""
  p, n, _ = rollouts.tokens.shape
  size = config.minibatch_size
  if (p * n) % size:
    raise UserError(
      f"{p} prompts x {n} samples are {p * n} sequences, "
      f"not a multiple of train.minibatch_size={size}"
    )
  batch = response_batch(rollouts)
  batch["advantages"] = advantages.reshape(p * n, -1)
  count = -(-(p if groups is None else groups) * n // size)
  if config.old_logprobs == "sampler":
    batch["old_logprobs"] = batch["sampler_logprobs"]
  elif count > 1 or age is not None:
    # With a single optimizer step over new rollouts they are those of the loss itself.
    batch["old_logprobs"] = recompute(model, params, batch, config, n)
    if age is not None:
      stale = jnp.repeat(age > 0, n)[:, None]
      batch["old_logprobs"] = jnp.where(stale, batch["sampler_logprobs"], batch["old_logprobs"])
  if config.loss.kl_coef:
    batch["reference_logprobs"] = recompute(model, reference, batch, config, n)
  return batch, count


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def recompute(model, params, batch, config, n):
  """Log-probs [B, T] of a whole batch's responses, n a prompt, a micro-batch at a time."""
  samples = samples_together(n, config)
  logprobs = jax.lax.map(
    lambda micro: response_logprobs(model, params, micro, config, samples)[0],
    microbatches(batch, config.microbatch_size),
  )
  return logprobs.reshape(batch["targets"].shape)


@functools.partial(jax.jit, static_argnums=(0, 1, 4), donate_argnums=2)
def minibatch_step(model, config, state, batch, n):
  """One optimizer step on a mini-batch of `learning_batch`, n sequences a prompt; `state` is
  donated."""
  samples = samples_together(n, config)
  mask = batch["response_mask"]
  batch["weights"] = token_weights(mask, config.loss.aggregation)

  def loss_fn(params, micro):
    logprobs, entropies = response_logprobs(model, params, micro, config, samples)
    old = micro.get("old_logprobs", jax.lax.stop_gradient(logprobs))
    mask = micro["response_mask"]
    loss, metrics = policy_loss(
      logprobs,
      old,
      micro["advantages"],
      mask,
      config.loss,
      micro["weights"],
      entropies,
      micro.get("reference_logprobs"),
      micro["sampler_logprobs"],
    )
    tokens = mask.sum()
    difference = jnp.where(mask, logprobs - micro["sampler_logprobs"], 0.0)
    means = {
      "policy/entropy": jnp.where(mask, entropies, 0.0).sum() / jnp.maximum(tokens, 1),
      "rollout/mismatch_kl": jnp.expm1(difference).sum() / jnp.maximum(tokens, 1)
      - difference.sum() / jnp.maximum(tokens, 1),
      **metrics,
    }
    sums = jax.tree.map(lambda x: x * tokens, means)
    return loss, jax.lax.stop_gradient({"policy/loss": loss, **sums})

  grads, sums = accumulate(loss_fn, state.params, batch, config.microbatch_size)
  loss = sums.pop("policy/loss")
  metrics = jax.tree.map(lambda x: x / jnp.maximum(mask.sum(), 1), sums)
  metrics |= {"policy/loss": loss, "policy/grad_norm": optax.tree.norm(grads)}
  new = apply_gradients(config, state, grads, loss)
  taken = new.step > state.step
  return new, jax.tree.map(lambda x: jnp.where(taken, x, jnp.nan), metrics)
