"""The run-time check of jaxtyping annotations that tests/conftest.py installs."""

import beartype


def check(function):
  """Checks calls of functions, but not the construction of dataclasses: JAX rebuilds pytrees with
  shapes, None or placeholders as leaves."""
  return function if function.__name__ == "__init__" else beartype.beartype(function)
