"""Checks the jaxtyping annotations of poise_jax while tests run; see conftest.py."""

import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype

# Modules that compute with arrays.
CHECKED = (
  "poise_jax.estimators",
  "poise_jax.learner",
  "poise_jax.models",
  "poise_jax.rollout",
  "poise_jax.training.rewards",
  "poise_jax.training.step",
)
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def install():
  """Checks shapes and dtypes of arguments and results of every function in CHECKED.

  Checks run while a function is traced, so compiled programs stay the same. Call it before
  poise_jax is imported. Processes that a test starts go without.
  """
  jaxtyping.Array = jaxtyping.Array | np.ndarray  # functions take either
  jaxtyping.install_import_hook(CHECKED, f"{__name__}.checked")


def checked(function):
  """The type checker of jaxtyping's import hook."""
  # JAX rebuilds a dataclass from placeholders and from arrays with further axes.
  return function if function.__name__ == "__init__" else _check(function)
