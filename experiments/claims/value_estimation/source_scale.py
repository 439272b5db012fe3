"""Memory of the probe and of critics at the source's sizes, from the shapes of arrays alone."""

import functools

import jax
import jax.numpy as jnp

from configs import qwen3_4b_dapo_math
from experiments import critics
from poise_jax import estimators, models
from poise_jax.distributed import sharding
from poise_jax.estimators import CriticConfig, EstimatorContext, ProbeConfig, probe
from poise_jax.planning.step import abstract_step
from poise_jax.rollout.features import feature_size

DEVICES = 4  # any number that the config's mesh divides: bytes are those of all devices together


@functools.cache
def source_bytes() -> dict[str, float]:
  """Bytes by predictor, counted as experiments/critics.py counts those of a run's: the probe with
  the rows that it is fitted on, and each critic with its optimizer and gradients."""
  config = qwen3_4b_dapo_math.get_config("poise")
  step = abstract_step(config, sharding.make_mesh(**config.mesh, devices=DEVICES))
  probe_config = ProbeConfig(**config.probe)
  size = probe_config.buffer_rows, feature_size(step.model, step.rollout)
  rows, targets = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (size, size[:1]))
  fitted = jax.eval_shape(functools.partial(probe.fit, config=probe_config), rows, targets)
  found = {"probe": float(critics.size_of((fitted, rows)))}
  context = EstimatorContext(
    step.rollout, step.model, step.update, critic=CriticConfig(**config.critic)
  )
  for name in ("sppo", "ppo"):
    estimator = estimators.make(name, context)
    state = jax.eval_shape(estimator.init, models.abstract_params(step.model))
    found[name] = critics.critic_bytes(state)
  return found
