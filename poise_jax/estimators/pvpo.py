"""PVPO (arXiv 2508.21104): the baseline is the reference policy's mean reward on the prompt."""

import jax
import jax.numpy as jnp

from poise_jax.estimators.base import Estimator, EstimatorContext, stateless
from poise_jax.types import Estimate, Experience


def make(context: EstimatorContext) -> Estimator:
  """The estimator; needs context.reference_n responses of the reference policy a prompt."""
  return stateless(_estimate, reference_n=context.reference_n)


@jax.jit
def _estimate(experience: Experience) -> Estimate:
  baselines = jnp.broadcast_to(
    experience.reference_scores.mean(1, keepdims=True), experience.scores.shape
  )
  score = baselines.mean(where=experience.real_groups[:, None])
  return Estimate(experience.rewards - baselines, baselines, {"reference/score": score})
