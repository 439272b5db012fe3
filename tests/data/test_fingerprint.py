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


@pytest.mark.parametrize("by", ["the task", "verifier.function"])
def test_another_reward_function_or_another_column_is_an_error(tmp_path, by):
  source = tmp_path / "rewards.py"
  source.write_text("def score(reference, response):\n  return 0.5\n")
  name = f"{source}:score"

  def task(level):
    check = Check(name if by == "the task" else "exact", "0", row={"level": level})
    examples = [Example(q, "0", "0", "math", "easy", check) for q in "ab"]
    return Task(examples[:1], examples[1:])

  function = "" if by == "the task" else name
  first = check_fingerprint(task("hard"), tmp_path, function)
  assert list(first["reward_functions"]) == [name] and len(first["reward_functions"][name]) == 64
  with pytest.raises(ValueError, match="the data differs"):
    check_fingerprint(task("easy"), tmp_path, function)
  source.write_text(source.read_text() + "# a remark\n")
  with pytest.raises(
    ValueError, match="the file of the reward function .*rewards.py:score differs"
  ):
    check_fingerprint(task("hard"), tmp_path, function)
  with pytest.raises(ValueError, match="differs .*; restore it$"):
    compare_fingerprint(task("hard"), tmp_path, function)
