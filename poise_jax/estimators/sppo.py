"""SPPO (arXiv 2604.08865): a critic that reads the prompt alone.

V(x) = sigmoid(z) at the prompt's last token is trained by cross-entropy with the rewards, which
must be in [0, 1]. A = r - V(x), the same for each token and not normalised. One response a prompt
is enough.
"""

import functools
import math

import jax
import jax.numpy as jnp
import optax

from poise_jax.estimators import critic
from poise_jax.estimators.base import Estimator, EstimatorContext
from poise_jax.estimators.statistics import explained_variance
from poise_jax.learner.batching import accumulate, minibatches, over_minibatches
from poise_jax.learner.update import apply_gradients
from poise_jax.types import Estimate


def make(context: EstimatorContext) -> Estimator:
  """The estimator. Its state is the critic's TrainState."""
  model, config = context.model, context.critic.update(context.update)

  def logits(state, experience):  # z(x) [P]
    return critic.predict(model, state.params, experience.rollouts.prompts, config)

  def estimate(state, experience):
    return _estimate(experience, logits(state, experience), state.skipped)

  def predict(state, experience):
    predicted = jax.nn.sigmoid(logits(state, experience))
    return jnp.broadcast_to(predicted[:, None], experience.scores.shape)

  def update(state, experience, params, aux):
    p, n = experience.scores.shape
    # As many optimizer steps as the policy takes. Sequences are prompts, whatever n is.
    size = p // math.gcd(p, max(p * n // config.minibatch_size, 1))
    batch = critic.prompt_batch(experience.rollouts.prompts, _targets(experience))
    step = functools.partial(_critic_step, model, config)
    parts = minibatches(batch, size, config.microbatch_size)
    return over_minibatches(step, state, parts, config.epochs)[0]

  return Estimator(
    init=lambda params: critic.init(model, params, config),
    estimate=estimate,
    update=update,
    predict=predict,
    pretrain_steps=context.critic.pretrain_steps,
    needs_probabilities=True,
  )


@jax.jit
def _estimate(experience, logits, skipped) -> Estimate:
  rewards = experience.rewards
  baselines = jnp.broadcast_to(jax.nn.sigmoid(logits)[:, None], rewards.shape)
  real = jnp.broadcast_to(experience.real_groups[:, None], rewards.shape)
  explained = explained_variance(baselines, rewards, real)
  metrics = {"critic/explained_variance": explained, "critic/skipped_updates": jnp.copy(skipped)}
  return Estimate(rewards - baselines, baselines, metrics)


@jax.jit
def _targets(experience):
  """Mean reward of each prompt, and its weight in the loss before division: 0 for padding."""
  real = experience.real_groups.astype(jnp.float32)
  return {"targets": experience.rewards.mean(1)[:, None], "real": real[:, None]}


def _critic_step(model, config, state, part):
  """One optimizer step of the critic on a mini-batch of prompts; `state` is donated."""
  gradient = functools.partial(_gradient, model, config)
  grads, _ = accumulate(gradient, state.params, part)
  return _optimizer_step(config, state, grads, part.batch), {}


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _gradient(model, config, total, params, batch, micro):
  """Adds the gradient of a micro-batch's part of the loss to `total`."""
  real = batch.fields["real"]

  def loss_fn(params):
    logits = critic.token_values(model, params, batch, micro, config)
    losses = optax.sigmoid_binary_cross_entropy(logits, batch.fields["targets"])
    return jnp.where(micro.inside & (real > 0), losses, 0.0).sum() / jnp.maximum(real.sum(), 1)

  return jax.tree.map(jnp.add, total, jax.grad(loss_fn)(params)), ()


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _optimizer_step(config, state, grads, batch):
  return apply_gradients(config, state, grads, has_tokens=(batch.fields["real"] > 0).any())
