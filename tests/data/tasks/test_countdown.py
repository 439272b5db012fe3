"""Countdown problems, solved again by the interpreter."""

import re

import pytest

from poise_jax.data.tasks import countdown


@pytest.fixture(scope="module")
def task():
  return countdown.make(300, 60, seed=1, counts=(3, 4), largest=20)


def test_every_problem_has_the_solution_it_names(task):
  for example in (*task.train, *task.test):
    numbers, target = (example.check.reference[name] for name in ("numbers", "target"))
    assert example.check.verifier == "countdown"
    assert sorted(map(int, re.findall(r"\d+", example.answer))) == sorted(numbers)
    assert eval(example.answer) == target  # digits, signs and parentheses, by the line above
    assert re.fullmatch(r"[\d +*/()-]+", example.answer)
    asked = [int(x) for x in re.findall(r"\d+", example.question)]
    assert asked == [*numbers, target]
    assert 1 <= target <= 200 and target not in numbers and max(numbers) <= 20
    assert example.difficulty == f"{len(numbers)} numbers" and example.domain == "countdown"


def test_sizes_have_equal_shares_and_all_signs_occur(task):
  for split in (task.train, task.test):
    sizes = [len(example.check.reference["numbers"]) for example in split]
    assert abs(sizes.count(3) - sizes.count(4)) <= len(sizes) // 10
  signs = "".join(example.answer for example in task.train)
  assert all(sign in signs for sign in "+-*/")


def test_splits_are_disjoint_and_only_the_seed_decides(task):
  held_out = {example.question for example in task.test}
  assert len(held_out) == 60 and not held_out & {example.question for example in task.train}
  again = countdown.make(400, 60, seed=1, counts=(3, 4), largest=20)
  assert again.test == task.test and again.train[:300] == task.train


@pytest.mark.parametrize(
  "counts,largest,test,message",
  [
    ((1,), 20, 5, r"counts=\(1,\) must be sizes of 2 to 6"),
    ((), 20, 5, r"counts=\(\)"),
    ((3,), 3, 5, "largest=3 at least 4"),
    ((2,), 5, 10, "task.test=10 would hold out too much"),
  ],
)
def test_impossible_settings_are_refused(counts, largest, test, message):
  with pytest.raises(ValueError, match=message):
    countdown.make(10, test, 0, counts, largest)
