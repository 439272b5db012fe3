"""Set-up of all tests: how programs are compiled, checks of shapes, and a finished run."""

import os
import pathlib
import shutil
import tempfile

import pytest
import shape_checks

# Tests compile far more than they compute: XLA leaves out most optimizations, and one cache on disk
# serves all processes, also those of resumed runs and sweeps. Set before jax is imported.
_CACHE = tempfile.TemporaryDirectory(prefix="poise_jax_compiled_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

shape_checks.install()


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_programs():
  """Frees memory maps, which compiled programs hold and of which Linux allows a process 65,530."""
  yield
  import jax

  jax.clear_caches()


@pytest.fixture
def optimized(monkeypatch):
  """All of XLA's optimizations, also in subprocesses: for tests of the text, the memory or the
  FLOPs of compiled programs."""
  import jax

  default = jax.config.values["jax_disable_most_optimizations"]

  def disable_most_optimizations(value):
    jax.config.update("jax_disable_most_optimizations", value)
    jax.clear_caches()  # the cache in memory does not tell the two apart; the one on disk does

  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
  disable_most_optimizations(False)
  yield
  disable_most_optimizations(default)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
  """Workdir of a run of tiny_run.tiny() that nothing interrupted; read-only."""
  from tiny_run import tiny

  from poise_jax.training import loop

  workdir = tmp_path_factory.mktemp("run") / "deep" / "finished"
  loop.train(tiny(), str(workdir))
  return workdir


@pytest.fixture
def run_copy(finished_run, tmp_path):
  """A copy of the same workdir, to be written to."""
  return pathlib.Path(shutil.copytree(finished_run, tmp_path / "copy"))
