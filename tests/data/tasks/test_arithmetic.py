"""Arithmetic problems, their worked answers and their checks against Python's own arithmetic."""

import collections
import re

import pytest

from poise_jax.data.tasks import Example, Task, arithmetic
from poise_jax.data.tasks.config import ArithmeticConfig
from poise_jax.verifiers import Check, verify

KINDS = tuple(f"{digits}{operator}" for digits in range(1, 5) for operator in "+-x")


def make(kinds, train, test, seed=0, **options):
  return arithmetic.make(ArithmeticConfig(kinds, **options), train, test, seed)


@pytest.fixture(scope="module")
def task():
  return make(KINDS, 1200, 120, seed=3)


def operands(example):
  a, operator, b = re.fullmatch(r"(\d+) ([+x-]) (\d+)", example.question).groups()
  return a, operator, b


def test_answers_and_kinds_are_right(task):
  for example in (*task.train, *task.test):
    a, operator, b = operands(example)
    assert len(a) == len(b) == int(example.difficulty[0])
    assert operator == example.difficulty[1]
    python = example.question.replace("x", "*")
    assert int(example.answer) == eval(
      python
    )  # safe: the match above allows digits and one operator
    assert example.domain == "arithmetic"


def test_every_kind_has_its_share_of_both_splits(task):
  for split, share in ((task.train, 100), (task.test, 10)):
    counts = collections.Counter(example.difficulty for example in split)
    assert set(counts) == set(KINDS)
    assert max(abs(count - share) for count in counts.values()) <= share * 0.1


def test_a_repeated_kind_has_twice_the_share():
  task = make(("2+", "3-", "3-"), 300, 30)
  for split in (task.train, task.test):
    counts = collections.Counter(example.difficulty for example in split)
    assert abs(counts["3-"] - 2 * counts["2+"]) <= 2
  with pytest.raises(
    ValueError, match="task.test=70"
  ):  # 70 of 100 problems, half of them for each repetition
    make(("1+", "1+"), 10, 70)


def test_answers_are_not_negative_and_borrows_occur(task):
  assert not any(example.answer.startswith("-") for example in task.train)
  assert any("-" in e.worked for e in task.train if e.difficulty == "2-")


def test_a_careless_teacher_guesses_more_often_at_longer_problems():
  task = make(("1+", "3+"), 2000, 10, careless=0.3)
  guesses = [e for e in task.train if e.worked.startswith("=")]
  assert not any(verify(e.check, e.worked).score for e in guesses)
  for kind, share in (("1+", 0.3), ("3+", 0.3 ** (1 / 3))):
    count = sum(e.difficulty == kind for e in guesses)
    assert abs(count - 1000 * share) < 75  # five standard deviations
  assert not any(e.worked.startswith("=") for e in task.test)


def test_worked_answers_are_right_step_by_step(task):
  """Sums and differences: the last digits of the steps and the last step form the answer.
  Products: the partial products add up to it."""
  for example in (*task.train, *task.test):
    steps, _, result = example.worked.partition(" = ")
    steps = [int(step) for step in steps.split(" ")]
    assert result == example.answer
    a, operator, b = operands(example)
    assert len(steps) == len(a)
    if operator == "x":
      assert sum(steps) == int(example.answer)
      assert all(step % (int(a) * 10**i) == 0 for i, step in enumerate(steps) if int(a))
    else:
      places = [step % 10 for step in steps[:-1]] + [steps[-1]]
      assert sum(digit * 10**i for i, digit in enumerate(places)) == int(example.answer)


def test_worked_examples_by_hand():
  assert arithmetic.worked(47, "+", 85) == "12 13 = 132"
  assert arithmetic.worked(23, "-", 57) == "-4 -4 = -34"
  assert arithmetic.worked(12, "x", 34) == "48 360 = 408"


def test_worked_answers_score_one_and_others_zero(task):
  for example in (*task.train, *task.test):
    assert verify(example.check, example.worked).score == 1.0
    assert verify(example.check, f" {example.answer}.").score == 1.0
    assert verify(example.check, str(int(example.answer) + 1)).score == 0.0
    assert verify(example.check, "").score == 0.0
    if example.answer != "0":
      assert verify(example.check, str(-int(example.answer))).score == 0.0


def test_splits_are_disjoint_and_held_out_problems_are_unique(task):
  held_out = [example.question for example in task.test]
  assert len(set(held_out)) == len(held_out) == 120
  assert len(task.train) == 1200
  assert not set(held_out) & {example.question for example in task.train}


def test_splits_stay_disjoint_when_problems_are_few():
  """'1+' has 100 problems: with 40 held out, training has the other 60."""
  task = make(("1+",), 2000, 40)
  train = {example.question for example in task.train}
  assert len(train) == 60 and not train & {example.question for example in task.test}


def test_problems_depend_on_the_seed_alone():
  a, b, c = (make(("2+", "3x"), 50, 10, seed) for seed in (5, 5, 6))
  assert (a.train, a.test) == (b.train, b.test)
  assert a.train != c.train and a.test != c.test
  longer = make(("2+", "3x"), 90, 10, 5)
  assert longer.test == a.test and longer.train[:50] == a.train


@pytest.mark.parametrize("kind", ["5+", "0+", "+", "2", "2/", "2++", "", "2+\n", "²+"])
def test_malformed_kinds_are_an_error(kind):
  with pytest.raises(ValueError, match="task.arithmetic.kinds contains " + re.escape(repr(kind))):
    ArithmeticConfig(("1+", kind))


def test_too_many_held_out_problems_are_an_error():
  with pytest.raises(ValueError, match="task.test=70 .*'1[+]'"):
    make(("1+",), 10, 70)


@pytest.mark.parametrize(
  "kinds,train,test,split",
  [((), 10, 5, "train"), (("1+",), 0, 5, "train"), (("1+",), 5, 0, "test")],
)
def test_empty_splits_are_an_error(kinds, train, test, split):
  with pytest.raises(ValueError, match=f"{split} set is empty"):
    make(kinds, train, test)


def test_domains_are_sorted_and_unique():
  def example(domain):
    return Example("q", "a", "w", domain, "d", Check("last_integer", "0"))

  task = Task([example("b"), example("a"), example("b")], [example("c")])
  assert task.domains == ("a", "b", "c")
