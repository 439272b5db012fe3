"""The two ways in which tests compile programs; see conftest.py."""

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture
def every_program_is_cached():
  """Small programs are stored on disk too."""
  name = "jax_persistent_cache_min_compile_time_secs"
  default = jax.config.values[name]
  jax.config.update(name, 0)
  yield
  jax.config.update(name, default)


@jax.jit
def program(x):
  return jnp.tanh(jnp.sin(x) @ jnp.cos(x) * 3 + x).sum()


def test_optimized_programs_come_from_no_cache_of_the_others(request, every_program_is_cached):
  if not jax.config.values["jax_disable_most_optimizations"]:
    pytest.skip("JAX_DISABLE_MOST_OPTIMIZATIONS=0: there is one way only")
  x = jnp.ones((64, 64))
  default = program.lower(x).compile().as_text()
  request.getfixturevalue("optimized")
  assert program.lower(x).compile().as_text() != default
