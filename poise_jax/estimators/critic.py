"""Baselines from a second language model: PPO's critic a token (GAE and what was built on it), and
SPPO's a prompt.

The critic starts as a copy of the policy with a value head of zeros, is laid out over the mesh as
the policy is, and is trained with the policy's mini-batches, micro-batches and precision. Letters:
P prompts, n samples, B = P n sequences, T response positions, D model width; a response's tokens
come first, then padding.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from poise_jax.errors import UserError
from poise_jax.estimators.group import whiten
from poise_jax.learner import update as policy_update
from poise_jax.learner.losses import token_weights
from poise_jax.learner.update import UpdateConfig
from poise_jax.models import ModelConfig, Rows, hidden_states
from poise_jax.types import Experience, TrainState


@dataclasses.dataclass(frozen=True)
class CriticConfig:
  """Options of the critics; raises UserError on construction for values without a meaning."""

  learning_rate: float = 1e-5  # AdamW's, with the policy's other options
  warmup_steps: int = 0  # optimizer steps of linear warm-up
  pretrain_steps: int = 0  # first steps that train the critic alone (VC-PPO's value pre-training)
  gamma: float = 1.0  # discount a token
  lam: float = 0.95  # of the policy's advantages
  length_alpha: float = 0.0  # VAPO: lam is 1 - 1 / (alpha length) instead; 0 is off
  value_lam: float = 0.95  # of the critic's targets; 1 is the reward that is still to come
  value_clip: float = 0.5  # how far a value may move from the old one before it stops counting
  whiten: bool = True  # advantages get mean 0 and deviation 1 over the batch's tokens

  def __post_init__(self):
    for name in ("gamma", "lam", "value_lam"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f"critic.{name}={getattr(self, name)} must be in [0, 1]")
    for name in ("learning_rate", "warmup_steps", "pretrain_steps", "length_alpha", "value_clip"):
      if getattr(self, name) < 0:
        raise UserError(f"critic.{name}={getattr(self, name)} must not be negative")


def gae(
  rewards: Float[Array, "B T"],
  values: Float[Array, "B T"],
  mask: Bool[Array, "B T"],
  gamma: float = 1.0,
  lam: float | Float[Array, "B 1"] = 0.95,
) -> Float[Array, "B T"]:
  """Generalised advantage estimation (arXiv 1506.02438 eq. 16) within a response.

  A_t = sum_l (gamma lam)^l delta_{t+l} with delta_t = r_t + gamma V_{t+1} - V_t; behind the last
  token the value is 0, whether it is an EOS or the response was cut off there (as in verl).
  The critic's targets are the advantages at its own lam plus the values: VC-PPO (arXiv 2503.01491)
  takes lam = 1 for them, where the target is the reward that is still to come.

  Args:
    rewards: what each token earned; usually zero but for the last one.
    values: V_t, the critic's prediction before token t was written.
    mask: the response's tokens; what stands elsewhere may be anything.
    gamma: discount a token.
    lam: one number, or one a sequence.

  Returns:
    Advantages, 0 outside of the mask.
  """
  values, rewards = jnp.where(mask, values, 0.0), jnp.where(mask, rewards, 0.0)
  after = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
  deltas = rewards + gamma * after - values
  decay = jnp.broadcast_to(gamma * lam, (len(mask), 1))[:, 0]

  def step(later, delta):
    advantage = delta + decay * later
    return advantage, advantage

  _, advantages = jax.lax.scan(step, jnp.zeros(len(mask)), deltas.T, reverse=True)
  return jnp.where(mask, advantages.T, 0.0)


def length_adaptive_lam(mask: Bool[Array, "B T"], alpha: float = 0.05) -> Float[Array, "B 1"]:
  """lam = 1 - 1 / (alpha length), so that the sum of GAE's weights grows with the response (VAPO,
  arXiv 2504.05118 section 4.2); 0 where a response is too short for it to be positive."""
  lengths = jnp.maximum(mask.sum(-1, keepdims=True), 1)
  return jnp.maximum(1.0 - 1.0 / (alpha * lengths), 0.0)


def value_loss(
  values: Float[Array, "B T"],
  old_values: Float[Array, "B T"],
  targets: Float[Array, "B T"],
  weights: Float[Array, "B T"],
  clip: float = 0.0,
) -> Float[Array, ""]:
  """Half the squared error, or that of the value kept within `clip` of its old one if that is
  larger (PPO2, and verl); 0 is off.

  weights: losses.token_weights, 0 outside of the responses; there the rest may be anything.
  """
  # Masked before the arithmetic: a NaN outside would come back through the gradient of a product.
  values, old_values, targets = (
    jnp.where(weights > 0, x, 0.0) for x in (values, old_values, targets)
  )
  error = jnp.square(values - targets)
  if clip:
    kept = jnp.clip(values, old_values - clip, old_values + clip)
    error = jnp.maximum(error, jnp.square(kept - targets))
  return 0.5 * (weights * error).sum()


def init(model: ModelConfig, params: Any, config: UpdateConfig) -> TrainState:
  """A critic that starts from the policy's parameters (copied) and predicts 0 for everything."""

  @jax.jit
  def start(params):
    decoder = {name: x for name, x in params.items() if name != "lm_head"}
    head = {"kernel": jnp.zeros(model.hidden_size), "bias": jnp.zeros(())}
    return {"decoder": jax.tree.map(jnp.copy, decoder), "value_head": head}

  return policy_update.init(start(params), config)


def _values(model, params, tokens, mask, config, **shared):
  """[B, S, D] states -> one number a position [B, S], float32."""
  body = dataclasses.replace(model, tie_word_embeddings=True)  # a critic has no unembedding
  dtype = jnp.dtype(config.dtype)
  like = Rows(tokens, mask, **shared)
  rows = like.replace(tokens=like.merge(tokens), mask=like.merge(mask))
  hidden, _ = hidden_states(
    body, params["decoder"], rows, dtype, config.remat, attention=config.attention
  )
  head = params["value_head"]
  return hidden.astype(jnp.float32) @ head["kernel"] + head["bias"]


def token_values(
  model, params, batch, config: UpdateConfig, samples: int = 1
) -> Float[Array, "B T"]:
  """V_t, what the critic expects before token t is written; see `update.response_logprobs`."""
  length = batch["targets"].shape[1]
  shared = dict(prompt=batch["tokens"].shape[1] - length, responses=samples)
  values = _values(model, params, batch["tokens"], batch["mask"], config, **shared)
  return values[:, -length - 1 : -1]


def prompt_logits(model, params, prompts, config: UpdateConfig) -> Float[Array, " P"]:
  """z(x) at a prompt's last token; sigmoid(z) is the expected reward."""
  return _values(model, params, prompts.tokens, prompts.mask, config)[:, -1]


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _all_token_values(model, params, batch, config, n):
  samples = policy_update.samples_together(n, config)
  values = jax.lax.map(
    lambda micro: token_values(model, params, micro, config, samples),
    policy_update.microbatches(batch, config.microbatch_size),
  )
  return values.reshape(batch["targets"].shape)


def ppo(model: ModelConfig, config: CriticConfig, update: UpdateConfig):
  """(init, estimate, update) of PPO with a critic a token (arXiv 1707.06347), with VC-PPO's
  decoupled lambdas and VAPO's length-adaptive one as options."""
  update = _optimizer_of(config, update)

  def estimate(state, experience: Experience):
    batch = policy_update.response_batch(experience.rollouts)
    shape = experience.rollouts.tokens.shape
    values = _all_token_values(model, state.params, batch, update, shape[1])
    mask = batch["response_mask"]
    advantages = _advantages(experience.token_rewards.reshape(mask.shape), values, mask, config)
    returns = _targets(experience.token_rewards.reshape(mask.shape), values, mask, config)
    baselines = jnp.broadcast_to(values[:, :1], mask.shape).reshape(shape)[:, :, 0]
    explained = explained_variance(values, returns, mask)
    metrics = {"critic/explained_variance": explained, "critic/skipped_updates": state.skipped}
    return advantages.reshape(shape), baselines, metrics

  def learn(state, experience: Experience, _):
    batch = policy_update.response_batch(experience.rollouts)
    n = experience.rollouts.tokens.shape[1]
    old = _all_token_values(model, state.params, batch, update, n)
    mask = batch["response_mask"]
    batch["rewards"] = experience.token_rewards.reshape(mask.shape)
    batch["old_values"], batch["returns"] = old, _targets(batch["rewards"], old, mask, config)
    for i in range(len(mask) // update.minibatch_size):
      rows = slice(i * update.minibatch_size, (i + 1) * update.minibatch_size)
      part = jax.tree.map(lambda x, rows=rows: x[rows], batch)
      state = _token_step(model, config, update, state, part, n)
    return state

  return lambda params: init(model, params, update), estimate, learn


@functools.partial(jax.jit, static_argnums=3)
def _advantages(rewards, values, mask, config):
  lam = length_adaptive_lam(mask, config.length_alpha) if config.length_alpha else config.lam
  advantages = gae(rewards, values, mask, config.gamma, lam)
  return whiten(advantages, mask) if config.whiten else advantages


@functools.partial(jax.jit, static_argnums=3)
def _targets(rewards, values, mask, config):
  return gae(rewards, values, mask, config.gamma, config.value_lam) + jnp.where(mask, values, 0.0)


def explained_variance(
  values: Float[Array, "B T"], targets: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, ""]:
  """1 - Var(target - value) / Var(target) over masked tokens; 0 if the targets are all equal."""
  variance = jnp.var(targets, where=mask)
  left = jnp.var(targets - values, where=mask)
  return jnp.where(variance > 0, 1 - left / jnp.where(variance > 0, variance, 1.0), 0.0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 5), donate_argnums=3)
def _token_step(model, config, update, state, batch, n):
  samples = policy_update.samples_together(n, update)
  batch["weights"] = token_weights(batch["response_mask"], "token-mean")

  def loss_fn(params, micro):
    values = token_values(model, params, micro, update, samples)
    old, returns = micro["old_values"], micro["returns"]
    return value_loss(values, old, returns, micro["weights"], config.value_clip), ()

  grads, _ = policy_update.accumulate(loss_fn, state.params, batch, update.microbatch_size)
  return policy_update.apply_gradients(update, state, grads)


def sppo(model: ModelConfig, config: CriticConfig, update: UpdateConfig):
  """(init, estimate, update) of SPPO (arXiv 2604.08865): V(x) = sigmoid(z) at the prompt's last
  token, learned by cross-entropy with the rewards, which must be in [0, 1]; A = r - V(x), the same
  for every token and not normalised. One response a prompt is enough."""
  update = _optimizer_of(config, update)

  def estimate(state, experience: Experience):
    rewards = experience.rewards
    prompts = experience.rollouts.prompts
    size = math.gcd(len(rewards), max(update.microbatch_size // rewards.shape[1], 1))
    logits = _all_prompt_logits(model, state.params, prompts, update, size)
    baselines = jnp.broadcast_to(jax.nn.sigmoid(logits)[:, None], rewards.shape)
    everything = jnp.ones(rewards.shape, bool)
    explained = explained_variance(baselines, rewards, everything)
    metrics = {"critic/explained_variance": explained, "critic/skipped_updates": state.skipped}
    return rewards - baselines, baselines, metrics

  def learn(state, experience: Experience, _):
    p, n = experience.scores.shape
    # As many optimizer steps as the policy takes; a prompt's samples are one row here.
    size = p // math.gcd(p, max(p * n // update.minibatch_size, 1))
    micro = math.gcd(size, max(update.microbatch_size // n, 1))
    batch = {"prompts": experience.rollouts.prompts, "targets": experience.rewards.mean(1)}
    for i in range(p // size):
      part = jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], batch)
      state = _prompt_step(model, update, micro, state, part)
    return state

  return lambda params: init(model, params, update), estimate, learn


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _all_prompt_logits(model, params, prompts, config, size):
  parts = policy_update.microbatches(prompts, size)
  return jax.lax.map(lambda x: prompt_logits(model, params, x, config), parts).reshape(-1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _prompt_step(model, config, size, state, batch):
  count = len(batch["targets"])

  def loss_fn(params, micro):
    logits = prompt_logits(model, params, micro["prompts"], config)
    return optax.sigmoid_binary_cross_entropy(logits, micro["targets"]).sum() / count, ()

  grads, _ = policy_update.accumulate(loss_fn, state.params, batch, size)
  return policy_update.apply_gradients(config, state, grads)


def _optimizer_of(config, update):
  """The policy's update, with the critic's learning rate and warm-up."""
  return dataclasses.replace(
    update, learning_rate=config.learning_rate, warmup_steps=config.warmup_steps
  )
