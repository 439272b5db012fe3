"""Nested expressions with + - and *, such as ((3+4)*2)-5, worked by rewriting.

Level k has k + 1 operators. The numbers are 1 to 9, every intermediate value is in -99..99, and no
factor is 0. The thought replaces the leftmost innermost operation by its value until a number
remains: (7*2)-5=14-5=9. A step is one such value.
"""

import operator
import re

import numpy as np

from poise_jax.data.tasks.reasoning.slips import Step, near

LEVELS = 8
VERIFIER = "last_integer"
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
LARGEST = 99  # absolute value
_OPERATION = re.compile(r"(-?\d+)([-+*])(-?\d+)")
_INNERMOST = re.compile(rf"\({_OPERATION.pattern}\)")


def problems(level: int) -> int:
  """A lower bound on the number of expressions."""
  return 9 ** (level + 2)  # the numbers; every choice of them has an expression


def question(rng: np.random.Generator, level: int) -> str:
  """A random expression."""
  text, _ = _draw(rng, level + 1)
  return text[1:-1]  # without the outermost parentheses


def _draw(rng, operators):
  """A random expression with its parentheses, and its value."""
  if not operators:
    number = int(rng.integers(1, 10))
    return str(number), number
  on_the_left = int(rng.integers(operators))
  (left, a), (right, b) = _draw(rng, on_the_left), _draw(rng, operators - 1 - on_the_left)
  values = {sign: apply(a, b) for sign, apply in OPERATORS.items() if sign != "*" or a * b}
  signs = [sign for sign, value in values.items() if abs(value) <= LARGEST]  # + or - is among them
  sign = signs[rng.integers(len(signs))]
  return f"({left}{sign}{right})", values[sign]


def think(question: str, step: Step) -> tuple[str, str]:
  """Works by rewriting; see the module."""
  text, lines = question, []
  while match := _INNERMOST.search(text) or _OPERATION.fullmatch(text):
    a, sign, b = match.groups()
    value = OPERATORS[sign](int(a), int(b))
    text = f"{text[: match.start()]}{step(value, near(value))}{text[match.end() :]}"
    lines.append(text)
  return "=".join(lines), text
