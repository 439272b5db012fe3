"""Set-up of all tests: how programs are compiled, checks of shapes, and a finished run."""

import os
import pathlib
import shutil

import pytest
import shape_checks

# Tests compile far more than they compute: XLA leaves out most optimizations, and one cache on disk
# serves all processes, also those of resumed runs and sweeps, and the next test run. Set before jax
# is imported.
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled"
CACHE_LIMIT = 4 << 30  # bytes from which the next test run starts with an empty cache
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The older code generator compiles in two thirds of the time.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"

shape_checks.install()


def pytest_configure(config):
  """Keeps the cache from growing for ever: programs of old code stay in it."""
  if hasattr(config, "workerinput") or not CACHE.is_dir():  # a worker of pytest-xdist
    return
  if sum(file.stat().st_size for file in CACHE.iterdir()) > CACHE_LIMIT:
    shutil.rmtree(CACHE)


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
