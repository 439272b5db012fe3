"""POISE: the baseline is read from what the policy computed while it sampled (probe.py).

poise_sibling goes a step past the paper: its probe also reads the reward of the rollout whose
states it reads. The baseline of y_i comes from its siblings' states and rewards, which are all as
independent of y_i as the states alone, so it stays unbiased, and RLOO is a special case.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from poise_jax.errors import UserError
from poise_jax.estimators import probe
from poise_jax.estimators.base import Estimator, EstimatorContext
from poise_jax.rollout.features import ENTROPIES, feature_size
from poise_jax.types import Estimate, Experience


def make(context: EstimatorContext, reads_reward: bool = False) -> Estimator:
  """The estimator poise or, with `reads_reward`, poise_sibling.

  Raises:
    UserError: rollout.n is 1, or no hidden states are sampled.
  """
  name = "poise_sibling" if reads_reward else "poise"
  if context.rollout.n < 2:
    raise UserError(
      f"{name} needs sibling rollouts: rollout.n={context.rollout.n} must be at least 2"
    )
  features = feature_size(context.model, context.rollout)
  if not features:
    raise UserError(f"{name} reads hidden states: rollout.feature_layers must not be empty")
  config = context.probe
  config = dataclasses.replace(config, scalars=config.scalars + reads_reward)
  width, domains = features + reads_reward, context.domains
  inputs = functools.partial(_inputs, config.reads, reads_reward)
  return Estimator(
    init=lambda params: probe.init(config, context.rollout.n, width, len(domains)),
    estimate=functools.partial(_estimate, config, domains, inputs),
    update=functools.partial(_update, config, inputs),
    needs_probabilities=config.model == "logistic",
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _inputs(reads, reads_reward, experience: Experience):
  """What the probe reads: rewards [P, n], features [P, n, F], 0 where `reads` leaves out a part,
  and domains [P]."""
  rewards, features = experience.rewards, experience.rollouts.features
  width = (features.shape[-1] - ENTROPIES) // 2
  sizes = (width, width, ENTROPIES)
  features = features * np.repeat([part in reads for part in probe.PARTS], sizes).astype(np.float32)
  if reads_reward:
    features = jnp.concatenate([features, rewards[..., None]], -1)
  return rewards, features, experience.domains


def _estimate(config, domains, inputs, state, experience) -> Estimate:
  advantages, baselines, _, metrics = probe.estimate(state, *inputs(experience), config)
  return Estimate(advantages, baselines, _named_by_domain(metrics, domains))


@functools.partial(jax.jit, static_argnums=1)
def _named_by_domain(metrics, domains):
  """Metrics with a value a domain [K] become one metric a domain, if there are several."""
  metrics = dict(metrics)
  for name in ("probe/mae", "probe/pearson"):
    values = metrics.pop(f"{name}_of_domain")
    if len(domains) > 1:
      metrics |= {f"{name}/{domain}": values[k] for k, domain in enumerate(domains)}
  return metrics


def _update(config, inputs, state, experience, params, aux):
  del params, aux
  return probe.update(state, *inputs(experience), config)
