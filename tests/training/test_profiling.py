"""Traces of chosen steps: which steps are in them, and when there is no trace."""

import gzip
import json

import jax
import pytest

from poise_jax.training.profiling import Profiler, check_profile_steps


def steps_traced(folder):
  """The steps in each trace of a folder."""
  traces = []
  for path in sorted(folder.rglob("*.trace.json.gz")):
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = {int(e["args"]["step_num"]) for e in events if "step_num" in e.get("args", {})}
    traces.append(sorted(steps))
    assert path.with_name(path.name.replace("trace.json.gz", "xplane.pb")).exists()
  return traces


def run(profiler, steps):
  with profiler:
    for step in steps:
      profiler.at(step)
      jax.block_until_ready(jax.numpy.ones(3) + step)


def test_the_chosen_steps_are_traced_even_if_a_run_is_resumed_between_them(tmp_path):
  run(Profiler(tmp_path / "profile", (2, 3)), range(1, 6))
  assert steps_traced(tmp_path / "profile") == [[2, 3]]
  run(Profiler(tmp_path / "resumed", (2, 3)), range(3, 6))
  assert steps_traced(tmp_path / "resumed") == [[3]]


def test_a_run_that_stops_while_it_is_traced_writes_the_trace(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    with Profiler(tmp_path / "profile", (1, 9)) as profiler:
      profiler.at(1)
      raise KeyboardInterrupt
  assert steps_traced(tmp_path / "profile") == [[1]]


def test_without_profile_steps_there_is_no_trace(tmp_path):
  run(Profiler(tmp_path / "profile", ()), range(1, 4))
  assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("steps", [(0, 3), (3, 2), (2,), (5, 11)])
def test_invalid_profile_steps_are_an_error(steps):
  check_profile_steps((), 10)
  check_profile_steps((2, 10), 10)
  with pytest.raises(ValueError, match="profile_steps must be empty, or .*, got"):
    check_profile_steps(steps, 10)
