"""Estimators of advantages: one file each, and the table of their names.

A function of an EstimatorContext makes an estimator, see base.Estimator. A user's own function is
named as "path/to/file.py:function" or "package.module:function" (docs/development.md).
"""

import functools

from poise_jax import own_functions
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
READERS = ("poise", "poise_sibling")  # those that read hidden states


def make(name: str, context: EstimatorContext) -> Estimator:
  """The estimator with a name in ESTIMATORS, or a user's own, as "package.module:function" or
  "path/to/file.py:function".

  Raises:
    UserError: the estimator does not exist, or the context does not suit it.
  """
  if name in ESTIMATORS:
    return ESTIMATORS[name](context)._replace(reads_features=name in READERS)
  if not own_functions.is_own(name):
    raise UserError(
      f"{unknown_name('estimator', name, ESTIMATORS)}, or name a function of your own as "
      f"{own_functions.FORMS}"
    )
  try:
    factory = own_functions.load(name)
  except UserError as error:
    raise UserError(f"estimator {name!r}: {error}") from error
  estimator = factory(context)
  if not isinstance(estimator, Estimator):
    raise UserError(
      f"{name} must return a poise_jax.estimators.Estimator, got {type(estimator).__name__}"
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
