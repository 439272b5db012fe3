"""What every test file shares: compiled programs, and room for them."""

import os
import pathlib
import shutil
import tempfile

import pytest
import shape_checks

# Tests compile far more than they compute, and runs in processes of their own (resume, sweeps)
# compile what was compiled before: one cache on disk serves them all. Set before jax is imported.
_CACHE = tempfile.TemporaryDirectory(prefix="poise_jax_compiled_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

shape_checks.install()


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_programs():
  """Every compiled program holds memory maps, of which a process has 65,530 on Linux."""
  yield
  import jax

  jax.clear_caches()


@pytest.fixture
def compiled_quickly():
  """For programs that run once or never: optimising them would be half of the test's time."""
  import jax

  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
  """A run of tiny_run.tiny() that nothing interrupted; not to be written to."""
  from tiny_run import tiny

  from poise_jax.training import loop

  workdir = tmp_path_factory.mktemp("run") / "deep" / "straight"
  loop.train(tiny(), str(workdir))
  return workdir


@pytest.fixture
def copy(straight, tmp_path):
  """The same, to be written to."""
  return pathlib.Path(shutil.copytree(straight, tmp_path / "copy"))
