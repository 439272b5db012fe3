"""Sums and differences, such as 347+589, worked digit by digit from the right.

Level d has operands of d digits, and differences are not negative. A column that carries or borrows
adds "+1" or "-1" to the next one: 7+9=16 4+8+1=13 3+5+1=9. A step is the result of a column.
"""

import re

import numpy as np

from poise_jax.data.tasks.reasoning.slips import Step

LEVELS = 6
VERIFIER = "last_integer"


def bounds(digits: int) -> tuple[int, int]:
  """The smallest number with so many digits, and the smallest with more; 0 has one digit."""
  return (10 ** (digits - 1) if digits > 1 else 0), 10**digits


def problems(level: int) -> int:
  """The number of sums and differences."""
  low, high = bounds(level)
  count = high - low
  return count**2 + count * (count + 1) // 2


def question(rng: np.random.Generator, level: int) -> str:
  """A random sum or difference."""
  a, b = (int(x) for x in rng.integers(*bounds(level), 2))
  return f"{a}+{b}" if rng.random() < 0.5 else f"{max(a, b)}-{min(a, b)}"


def think(question: str, step: Step) -> tuple[str, str]:
  """Works column by column; see the module."""
  a, operator, b = re.fullmatch(r"(\d+)([+-])(\d+)", question).groups()
  columns, digits, carry = [], "", 0
  for x, y in zip(map(int, reversed(a)), map(int, reversed(b)), strict=True):
    if operator == "+":
      right, results = x + y + carry, range(20)
    else:
      x += 10 * (x < y + carry)  # borrows
      right, results = x - y - carry, range(10)
    off = (right - 10, right - 1, right + 1, right + 10)
    result = step(right, [wrong for wrong in off if wrong in results])
    columns.append(f"{x}{operator}{y}{f'{operator}1' if carry else ''}={result}")
    digits = f"{result % 10}{digits}"
    carry = result // 10 if operator == "+" else x // 10
  return " ".join(columns), str(int(f"{carry}{digits}"))
