"""POISE with shadows: other probes and critics that see the same rollouts and change nothing.

So all of them are compared on one moving policy. `make` is a value of config.estimator.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from poise_jax.estimators import Estimator, EstimatorContext, poise, sppo
from poise_jax.estimators.probe import leave_one_out_targets
from poise_jax.estimators.statistics import explained_variance, pearson

CRITICS = {"critic": 1.0, "critic at a tenth of the rate": 0.1}  # name -> factor of the rate
# name -> changes of the run's probe, and steps between its fits
VARIANTS = {
  "probe": ({}, 1),
  "a quarter of the buffer": ({"buffer_rows": 0.25}, 1),
  "half of the buffer": ({"buffer_rows": 0.5}, 1),
  "four times the buffer": ({"buffer_rows": 4.0}, 1),
  "refitted every 4 steps": ({}, 4),
  "refitted every 16 steps": ({}, 16),
}


def slug(name: str) -> str:
  """The name in metrics."""
  return name.replace(" ", "_")


def make(context: EstimatorContext) -> Estimator:
  """The estimator poise; its metrics shadow/NAME/{mae,pearson,variance_reduction} are about the
  predictions of every shadow for the rewards of the siblings."""
  main = poise.make(context)
  probes = {name: _variant(context, *variant) for name, variant in VARIANTS.items()}
  shadows = probes | {name: _critic(context, factor) for name, factor in CRITICS.items()}

  def init(params):
    return {
      "main": main.init(params),
      "shadows": {name: shadow.init(params) for name, shadow in shadows.items()},
    }

  def estimate(state, experience):
    estimate = main.estimate(state["main"], experience)
    predicted = {
      name: shadow.predict(state["shadows"][name], experience) for name, shadow in shadows.items()
    }
    metrics = {**estimate.metrics, **_quality(predicted, experience.rewards)}
    return estimate.replace(metrics=metrics)

  def update(state, experience, params, aux):
    return {
      "main": main.update(state["main"], experience, params, ()),
      "shadows": {
        name: shadow.update(state["shadows"][name], experience, params, ())
        for name, shadow in shadows.items()
      },
    }

  def predict(state, experience):
    return main.predict(state["main"], experience)

  return Estimator(init, estimate, update, predict, needs_probabilities=True)


def _critic(context, factor) -> Estimator:
  """SPPO's critic with a factor of the learning rate."""
  rate = context.critic.learning_rate * factor
  critic = dataclasses.replace(context.critic, learning_rate=rate)
  return sppo.make(dataclasses.replace(context, critic=critic))


def _variant(context, changes, interval) -> Estimator:
  """POISE with factors of the probe's options that is refitted every `interval` steps."""
  options = {
    name: max(round(getattr(context.probe, name) * factor), context.rollout.n)
    for name, factor in changes.items()
  }
  context = dataclasses.replace(context, probe=dataclasses.replace(context.probe, **options))
  estimator = poise.make(context)
  first = context.probe.bootstrap_steps

  def update(state, experience, params, aux):
    before = jax.tree.map(jnp.copy, (state.probes, state.fitted))  # the update may donate them
    return _refitted(before, estimator.update(state, experience, params, aux), first, interval)

  return estimator._replace(update=update)


@jax.jit
def _refitted(before, state, first, interval):
  """The state with its new probes if a fit is due, or else those before."""
  due = (state.step - first) % interval == 0
  probes, fitted = jax.tree.map(
    lambda new, old: jnp.where(due, new, old), (state.probes, state.fitted), before
  )
  return state.replace(probes=probes, fitted=fitted)


@jax.jit
def _quality(predicted, rewards: Float[Array, "P n"]):
  """Metrics of predictions [P, n] by name, over the prompts that have one."""
  metrics, targets = {}, leave_one_out_targets(rewards)
  for name, values in predicted.items():
    known = jnp.isfinite(values)
    values = jnp.where(known, values, 0.0)
    baselines = leave_one_out_targets(values)
    metrics |= {
      f"shadow/{slug(name)}/mae": jnp.mean(jnp.abs(values - targets), where=known),
      f"shadow/{slug(name)}/pearson": pearson(values, targets, known),
      f"shadow/{slug(name)}/variance_reduction": jnp.where(
        known.any(), explained_variance(baselines, rewards, known), jnp.nan
      ),
    }
  return metrics
