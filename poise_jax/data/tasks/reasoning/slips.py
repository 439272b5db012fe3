"""Slips: wrong results of the atomic steps of a thought."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

# (right result of an atomic step, wrong results to choose from) -> the result that is written
Step = Callable[[Any, Iterable[Any]], Any]


def flawless(right: Any, wrong: Iterable[Any]) -> Any:
  """The step of a teacher who never slips."""
  return right


def slipping(rng: np.random.Generator, slip: float) -> Step:
  """The step of a teacher who writes one of the wrong results with probability `slip`."""

  def step(right, wrong):
    if rng.random() >= slip:
      return right
    wrong = [result for result in wrong if result != right]
    return wrong[rng.integers(len(wrong))]

  return step


def near(value: int) -> list[int]:
  """Wrong results of a sum or difference: one off, or for two digits and more also ten off."""
  return [value + off for off in ((-1, 1) if abs(value) < 10 else (-10, -1, 1, 10))]
