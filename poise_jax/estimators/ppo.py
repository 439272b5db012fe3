"""PPO with a critic that predicts a value for each token (arXiv 1707.06347).

VC-PPO's separate lambdas and VAPO's length-adaptive lambda are options. Letters: P prompts, n
samples a prompt, B sequences, T response positions.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from poise_jax.estimators import critic
from poise_jax.estimators.base import Estimator, EstimatorContext
from poise_jax.estimators.critic import CriticConfig
from poise_jax.estimators.statistics import explained_variance, whiten
from poise_jax.learner.batching import (
  accumulate,
  flat,
  form,
  map_microbatches,
  minibatches,
  over_minibatches,
)
from poise_jax.learner.losses import token_weights
from poise_jax.learner.update import apply_gradients
from poise_jax.types import Estimate


def gae(
  rewards: Float[Array, "B T"],
  values: Float[Array, "B T"],
  mask: Bool[Array, "B T"],
  gamma: float = 1.0,
  lam: float | Float[Array, "B 1"] = 0.95,
) -> Float[Array, "B T"]:
  """Generalised advantage estimation (arXiv 1506.02438 eq. 16) within a response.

  A_t = sum_l (gamma lam)^l delta_{t+l} with delta_t = r_t + gamma V_{t+1} - V_t. The value after
  the last token is 0, also where the response is truncated (as in verl). The critic's targets are
  the advantages with lam = value_lam plus the values; VC-PPO (arXiv 2503.01491) sets value_lam to
  1, where the target is the reward to go.

  Args:
    rewards: reward of each token, usually zero except on the last one.
    values: V_t, the critic's prediction before token t.
    mask: the responses' tokens, which come before all padding; entries outside of it are never
      read, and may be NaN.
    gamma: discount a token.
    lam: one for all, or one a sequence.

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
  arXiv 2504.05118 section 4.2); 0 for responses that are too short for a positive lam."""
  lengths = jnp.maximum(mask.sum(-1, keepdims=True), 1)
  return jnp.maximum(1.0 - 1.0 / (alpha * lengths), 0.0)


def value_loss(
  values: Float[Array, "B T"],
  old_values: Float[Array, "B T"],
  targets: Float[Array, "B T"],
  weights: Float[Array, "B T"],
  clip: float = 0.0,
) -> Float[Array, ""]:
  """Half of the weighted squared error, clipped as in PPO2 and verl.

  Args:
    values: the critic's predictions.
    old_values: its predictions before this step's updates.
    targets: returns.
    weights: losses.token_weights, 0 outside of the responses, where the other arrays are never read
      and may be NaN.
    clip: range around the old value to which the value is clipped; the larger of the two errors
      counts. 0: no clipping.
  """
  # Masked before the arithmetic: the gradient of a product would carry a NaN on.
  values, old_values, targets = (
    jnp.where(weights > 0, x, 0.0) for x in (values, old_values, targets)
  )
  error = jnp.square(values - targets)
  if clip:
    clipped = jnp.clip(values, old_values - clip, old_values + clip)
    error = jnp.maximum(error, jnp.square(clipped - targets))
  return 0.5 * (weights * error).sum()


def make(context: EstimatorContext) -> Estimator:
  """The estimator. Its state is the critic's TrainState, and `aux` the critic's values [P, n, T],
  so that the critic runs once a step over the batch."""
  model, config = context.model, context.critic
  update_config = config.update(context.update)

  def parts_of(batch):
    return minibatches(batch, update_config.minibatch_size, update_config.microbatch_size)

  def estimate(state, experience):
    parts = parts_of(form(experience.rollouts, {}))
    predicted = _predict(model, state.params, parts, update_config)
    return _estimate(experience, predicted, state.skipped, config)

  def predict(state, experience):
    prompts = experience.rollouts.prompts
    predicted = critic.predict(model, state.params, prompts, update_config)
    return jnp.broadcast_to(predicted[:, None], experience.scores.shape)

  def update(state, experience, params, predicted):
    parts = parts_of(_targets(experience, predicted, config))
    step = functools.partial(_critic_step, model, config, update_config)
    return over_minibatches(step, state, parts, update_config.epochs)[0]

  return Estimator(
    init=lambda params: critic.init(model, params, update_config),
    estimate=estimate,
    update=update,
    predict=predict,
    pretrain_steps=config.pretrain_steps,
  )


def _predict(model, params, parts, config):
  """V_t of each mini-batch [B, T], a micro-batch at a time."""
  return map_microbatches(functools.partial(critic.microbatch_values, model, config, params), parts)


@functools.partial(jax.jit, static_argnums=3)
def _estimate(experience, predicted, skipped, config: CriticConfig) -> Estimate:
  predicted = jnp.concatenate(predicted)
  mask, rewards = flat(experience.rollouts.mask), flat(experience.token_rewards)
  lam = length_adaptive_lam(mask, config.length_alpha) if config.length_alpha else config.lam
  advantages = gae(rewards, predicted, mask, config.gamma, lam)
  if config.whiten:
    terms = jnp.where(mask, jnp.maximum(jnp.abs(rewards), jnp.abs(predicted)), 0.0)
    advantages = whiten(advantages, mask, terms.max())
  explained = explained_variance(predicted, _returns(rewards, predicted, mask, config), mask)
  predicted = predicted.reshape(experience.token_rewards.shape)
  return Estimate(
    advantages=advantages.reshape(predicted.shape),
    baselines=predicted[:, :, 0],
    metrics={"critic/explained_variance": explained, "critic/skipped_updates": jnp.copy(skipped)},
    aux=predicted,
  )


def _returns(rewards, predicted, mask, config):
  """The critic's targets [B, T]."""
  advantages = gae(rewards, predicted, mask, config.gamma, config.value_lam)
  return advantages + jnp.where(mask, predicted, 0.0)


@functools.partial(jax.jit, static_argnums=2)
def _targets(experience, predicted, config):
  """Sequences with the old values and the critic's targets."""
  rewards, mask = flat(experience.token_rewards), flat(experience.rollouts.mask)
  returns = _returns(rewards, flat(predicted), mask, config).reshape(predicted.shape)
  return form(experience.rollouts, {"old_values": predicted, "returns": returns})


def _critic_step(model, config, update, state, part):
  """One optimizer step of the critic on a mini-batch; `state` is donated."""
  weighted = part.with_fields(weights=token_weights(part.batch.mask, "token-mean"))
  gradient = functools.partial(_gradient, model, config, update)
  grads, _ = accumulate(gradient, state.params, weighted)
  return _optimizer_step(update, state, grads, part.batch.mask), {}


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _gradient(model, config, update, total, params, batch, micro):
  """Adds the gradient of a micro-batch's part of the loss to `total`."""

  def loss_fn(params):
    predicted = critic.token_values(model, params, batch, micro, update)
    weights = jnp.where(micro.inside, batch.fields["weights"], 0.0)
    old, returns = batch.fields["old_values"], batch.fields["returns"]
    return value_loss(predicted, old, returns, weights, config.value_clip)

  return jax.tree.map(jnp.add, total, jax.grad(loss_fn)(params)), ()


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _optimizer_step(update, state, grads, mask):
  return apply_gradients(update, state, grads, has_tokens=mask.any())
