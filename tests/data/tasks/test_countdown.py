"""Countdown problems, whose solutions Python evaluates again."""

import re

import pytest

from poise_jax.data.tasks import countdown
from poise_jax.data.tasks.config import CountdownConfig


@pytest.fixture(scope="module")
def task():
  return countdown.make(CountdownConfig(), 300, 60, seed=1)


def test_every_solution_reaches_its_target(task):
  for example in (*task.train, *task.test):
    numbers, target = (example.check.reference[name] for name in ("numbers", "target"))
    assert example.check.verifier == "countdown"
    assert sorted(map(int, re.findall(r"\d+", example.answer))) == sorted(numbers)
    assert re.fullmatch(r"[\d +*/()-]+", example.answer)
    assert eval(example.answer) == target  # safe: digits, operators and parentheses only
    assert [int(x) for x in re.findall(r"\d+", example.question)] == [*numbers, target]
    assert 1 <= target <= 200 and target not in numbers and max(numbers) <= 20
    assert example.difficulty == f"{len(numbers)} numbers" and example.domain == "countdown"


def test_counts_have_equal_shares_and_all_operators_occur(task):
  for split in (task.train, task.test):
    counts = [len(example.check.reference["numbers"]) for example in split]
    assert abs(counts.count(3) - counts.count(4)) <= len(counts) // 10
  expressions = "".join(example.answer for example in task.train)
  assert all(operator in expressions for operator in "+-*/")


def test_splits_are_disjoint_and_depend_on_the_seed_alone(task):
  held_out = {example.question for example in task.test}
  assert len(held_out) == 60 and not held_out & {example.question for example in task.train}
  again = countdown.make(CountdownConfig(), 400, 60, seed=1)
  assert again.test == task.test and again.train[:300] == task.train


def test_too_many_held_out_problems_are_an_error():
  with pytest.raises(ValueError, match="task.test=10 would hold out too many"):
    countdown.make(CountdownConfig(counts=(2,), largest=5), 10, 10, 0)
