"""data.json: a run resumes on the same data only."""

import json

import pytest

from poise_jax.data.fingerprint import check_fingerprint, compare_fingerprint
from poise_jax.data.tasks import Example, Task
from poise_jax.verifiers import Check


def example(question):
  return Example(question, "0", "0", "math", "easy", Check("last_integer", "0"))


def test_other_data_or_another_order_is_an_error(tmp_path):
  task = Task([example("a"), example("b")], [example("c")], {"repeated": 3})
  for _ in range(2):
    check_fingerprint(task, tmp_path)
  stored = json.loads((tmp_path / "data.json").read_text())
  assert (stored["train"], stored["test"], stored["left_out"]) == (2, 1, {"repeated": 3})
  for other in (Task(task.train[::-1], task.test), Task(task.train, [example("d")])):
    with pytest.raises(ValueError, match="2 training and 1 held-out examples; now 2 and 1"):
      check_fingerprint(other, tmp_path)


def test_a_comparison_writes_nothing(tmp_path):
  task = Task([example("a")], [example("b")])
  compare_fingerprint(task, tmp_path)
  assert not list(tmp_path.iterdir())  # a run of an old version is not made to look like a new one
  check_fingerprint(task, tmp_path)
  stored = (tmp_path / "data.json").read_bytes()
  compare_fingerprint(task, tmp_path)
  for other in (Task([example("c")], task.test), Task(task.train, [example("c")])):
    with pytest.raises(ValueError, match="the data differs .*; restore it$"):
      compare_fingerprint(other, tmp_path)
  assert (tmp_path / "data.json").read_bytes() == stored


def test_the_checksum_is_that_of_earlier_versions(tmp_path):
  """A run that an earlier version started resumes."""
  check_fingerprint(Task([example("a")], [example("b")]), tmp_path)
  stored = json.loads((tmp_path / "data.json").read_text())
  assert stored["sha256"] == "681df56b729098a0d5d0512a09836373f96dff0ad6b27e61f4077ace139117ed"
