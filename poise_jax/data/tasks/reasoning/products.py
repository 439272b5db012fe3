"""Products, such as 47*86, worked by the partial products of their digits and a running sum.

The thought for 47*86 is 7*6=42 40*6=240 7*80=560 40*80=3200 42+240=282 282+560=842 842+3200=4042.
Digits that are zero have no partial product. A step is a partial product or a sum.
"""

import numpy as np

from poise_jax.data.tasks.reasoning.slips import Step, near
from poise_jax.data.tasks.reasoning.sums import bounds

DIGITS = ((1, 1), (2, 1), (3, 1), (2, 2), (3, 2), (3, 3))  # of both factors, by level
LEVELS = len(DIGITS)
VERIFIER = "last_integer"


def problems(level: int) -> int:
  """The number of products."""
  (low, high), (other_low, other_high) = map(bounds, DIGITS[level - 1])
  return (high - low) * (other_high - other_low)


def question(rng: np.random.Generator, level: int) -> str:
  """A random product."""
  a, b = (int(rng.integers(*bounds(digits))) for digits in DIGITS[level - 1])
  return f"{a}*{b}"


def think(question: str, step: Step) -> tuple[str, str]:
  """Works by partial products; see the module."""
  a, b = map(_parts, question.split("*"))
  lines, products = [], []
  for q, q_unit in b:
    for p, p_unit in a:
      unit = p_unit * q_unit
      table = [p * q + off for off in (-p, -q, -1, 1, p, q)]  # neighbours in the table of products
      product = step(p * q * unit, [wrong * unit for wrong in table if wrong >= 0])
      lines.append(f"{p * p_unit}*{q * q_unit}={product}")
      products.append(product)
  total = products[0]
  for product in products[1:]:
    result = step(total + product, near(total + product))
    lines.append(f"{total}+{product}={result}")
    total = result
  return " ".join(lines), str(total)


def _parts(number):
  """The digits other than zero, from the right, each with its unit; (0, 1) for the number 0."""
  parts = [(int(digit), 10**i) for i, digit in enumerate(reversed(number)) if digit != "0"]
  return parts or [(0, 1)]
