"""Signs to put between numbers so that they make a target, such as 3?5?2=4, found by trying.

Level k has k + 1 numbers, 1 to 9, and exactly one choice of signs is right. The thought tries them
in order, + before - from the left, and drops those that make another number: 3+5+2=10 3+5-2=6
3-5+2=0. When one is left, it is right without a try: 3-5-2 for the target -4. A step is a try; a
slip takes a wrong choice for the right one, or drops the right one.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from poise_jax.data.tasks.reasoning.slips import Step, near

LEVELS = 4
VERIFIER = "exact"


def problems(level: int) -> int:
  """A lower bound on the number of problems."""
  return 2 * 9 ** (level + 1)  # for any numbers, the largest and the smallest target


def question(rng: np.random.Generator, level: int) -> str:
  """Random numbers and a target that one choice of signs makes."""
  while True:
    numbers = [int(x) for x in rng.integers(1, 10, level + 1)]
    values = [value for _, value in _choices(numbers)]
    target = values[rng.integers(len(values))]
    if values.count(target) == 1:
      return f"{'?'.join(map(str, numbers))}={target}"


def _choices(numbers: Sequence[int]) -> Iterator[tuple[str, int]]:
  """All expressions in the order of the search, and their values."""
  first, *others = numbers
  for signs in itertools.product("+-", repeat=len(others)):
    terms = [f"{sign}{number}" for sign, number in zip(signs, others, strict=True)]
    yield f"{first}{''.join(terms)}", first + sum(map(int, terms))


def think(question: str, step: Step) -> tuple[str, str]:
  """Tries the choices in order; see the module."""
  numbers, target = question.split("=")
  target = int(target)
  *choices, (last, _) = _choices([int(number) for number in numbers.split("?")])
  tries = []
  for expression, value in choices:
    result = step(value, near(target) if value == target else [target])
    tries.append(f"{expression}={result}")
    if result == target:
      return " ".join(tries), expression
  return " ".join(tries), last
