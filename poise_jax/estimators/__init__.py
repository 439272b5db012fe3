"""Estimators of advantages: one file each, and the table of their names.

An estimator is made by a function of an EstimatorContext; see base.Estimator. A user's own function
is named as "package.module:function" (docs/development.md).
"""

import functools
import importlib

from poise_jax.errors import UserError, unknown_name
from poise_jax.estimators import group, poise, ppo, pvpo, spo, sppo
from poise_jax.estimators.base import Estimator, EstimatorContext, stateless
from poise_jax.estimators.critic import CriticConfig
from poise_jax.estimators.group import (
  dr_grpo,
  grpo,
  reinforce_pp,
  reinforce_pp_baseline,
  rloo,
  whiten,
)
from poise_jax.estimators.poise import cross_rollout_advantages
from poise_jax.estimators.ppo import gae
from poise_jax.estimators.probe import ProbeConfig, ProbeOptions

ESTIMATORS = {
  "poise": poise.make,
  "poise_sibling": functools.partial(poise.make, reads_reward=True),
  "rloo": functools.partial(group.make, "rloo"),
  "grpo": functools.partial(group.make, "grpo"),
  "dr_grpo": functools.partial(group.make, "dr_grpo"),
  "reinforce_pp_baseline": functools.partial(group.make, "reinforce_pp_baseline"),
  "reinforce_pp": group.make_reinforce_pp,
  "ppo": ppo.make,
  "sppo": sppo.make,
  "spo": spo.make,
  "pvpo": pvpo.make,
}


def make(name: str, context: EstimatorContext) -> Estimator:
  """The estimator of a name in ESTIMATORS, or of a user's "package.module:function".

  Raises:
    UserError: there is no such estimator, or the context does not suit it.
  """
  if name in ESTIMATORS:
    return ESTIMATORS[name](context)
  module, colon, function = name.partition(":")
  if not colon:
    raise unknown_name("estimator", name, ESTIMATORS)
  try:
    make_own = getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError) as error:
    raise UserError(
      f"estimator {name!r} does not load: {error}; it must be the 'package.module:function' of a "
      "module that Python finds, for example through PYTHONPATH"
    ) from error
  estimator = make_own(context)
  if not isinstance(estimator, Estimator):
    raise UserError(
      f"estimator {name!r} returned {type(estimator).__name__} instead of an estimators.Estimator"
    )
  return estimator


__all__ = [
  "ESTIMATORS",
  "CriticConfig",
  "Estimator",
  "EstimatorContext",
  "ProbeConfig",
  "ProbeOptions",
  "cross_rollout_advantages",
  "dr_grpo",
  "gae",
  "grpo",
  "make",
  "reinforce_pp",
  "reinforce_pp_baseline",
  "rloo",
  "stateless",
  "whiten",
]
