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
from poise_jax.learner.batching import accumulate, over_minibatches
from poise_jax.learner.update import apply_gradients
from poise_jax.types import Estimate


def make(context: EstimatorContext) -> Estimator:
  """The estimator. Its state is the critic's TrainState."""
  model, config = context.model, context.critic.update(context.update)

  def logits(state, experience):  # z(x) [P]
    prompts, n = experience.rollouts.prompts, experience.scores.shape[1]
    return critic.predict(model, state.params, prompts, config, n)

  def estimate(state, experience):
    return _estimate(experience, logits(state, experience), state.skipped)

  def predict(state, experience):
    predicted = jax.nn.sigmoid(logits(state, experience))
    return jnp.broadcast_to(predicted[:, None], experience.scores.shape)

  def update(state, experience, params, aux):
    p, n = experience.scores.shape
    # As many optimizer steps as the policy takes. Rows are prompts, whatever n is.
    size = p // math.gcd(p, max(p * n // config.minibatch_size, 1))
    micro = math.gcd(size, max(config.microbatch_size // n, 1))
    step = functools.partial(_critic_step, model, config, micro)
    batch = {"prompts": experience.rollouts.prompts, **_targets(experience)}
    return over_minibatches(step, state, batch, size, p // size)[0]

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
  """Mean reward of each prompt [P], and which prompts are not padding [P]."""
  return {"targets": experience.rewards.mean(1), "real": experience.real_groups}


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _critic_step(model, config, size, state, batch):
  """One optimizer step of the critic on a mini-batch of prompts; `state` is donated."""
  count = jnp.maximum(batch["real"].sum(), 1)

  def loss_fn(params, micro):
    logits = critic.prompt_values(model, params, micro["prompts"], config)
    losses = optax.sigmoid_binary_cross_entropy(logits, micro["targets"])
    return jnp.where(micro["real"], losses, 0.0).sum() / count, ()

  grads, _ = accumulate(loss_fn, state.params, batch, size)
  return apply_gradients(config, state, grads, has_tokens=batch["real"].any()), {}
