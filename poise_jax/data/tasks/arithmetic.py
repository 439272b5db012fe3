"""Sums, differences and products of graded difficulty.

A kind is digits and operator, such as "2+" or "3x": both operands have that many digits.
Differences are not negative. Training and held-out problems are disjoint; what is drawn depends on
the seed alone.
"""

import dataclasses
import re

import numpy as np

from poise_jax.data.tasks.base import Example, Task
from poise_jax.errors import UserError
from poise_jax.verifiers import Check

OPERATORS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "x": lambda a, b: a * b}


def problem(rng: np.random.Generator, kind: str) -> Example:
  """Draws one problem of a kind."""
  digits, operator = int(kind[:-1]), kind[-1]
  low = 10 ** (digits - 1) if digits > 1 else 0
  a, b = (int(x) for x in rng.integers(low, 10**digits, 2))
  if operator == "-":
    a, b = max(a, b), min(a, b)
  answer = str(OPERATORS[operator](a, b))
  return Example(
    question=f"{a} {operator} {b}",
    answer=answer,
    worked=worked(a, operator, b),
    domain="arithmetic",
    difficulty=kind,
    check=Check("last_integer", answer),
  )


def worked(a: int, operator: str, b: int) -> str:
  """The answer with its reasoning: digit by digit from the right, then '=' and the number.

  Sums and differences write the running result of each digit pair; products the partial products.
  """
  answer = OPERATORS[operator](a, b)
  steps, x, y = [], str(a)[::-1], str(b)[::-1]
  if operator == "x":
    steps = [str(a * int(digit) * 10**i) for i, digit in enumerate(y)]
  else:
    carry = 0
    for p, q in zip(x, y, strict=True):
      value = int(p) + carry + (int(q) if operator == "+" else -int(q))
      steps.append(str(value))
      carry = value // 10
  return f"{' '.join(steps)} = {answer}"


def guess(rng: np.random.Generator, example: Example) -> str:
  """What a teacher writes who skips the working: a number close to the answer, but wrong."""
  return f"= {int(example.answer) + int(rng.integers(1, 10)) * int(rng.choice([-1, 1]))}"


def make(kinds: tuple[str, ...], train: int, test: int, seed: int, careless: float = 0.0) -> Task:
  """A task with about equally many problems of each kind.

  Args:
    kinds: such as ("1+", "2x"); a kind that stands there twice has twice the share.
    train: number of training problems; they may repeat, but none is a held-out one.
    test: number of held-out problems, all different.
    seed: of the draw of both.
    careless: how often the teacher of the training set's worked answers guesses at a one-digit
      problem; careless ** (1 / digits) for longer ones. A warm start on such answers ends with two
      habits, working and guessing, and leaves it to the reward to tell which one pays.

  Raises:
    UserError: a kind is malformed, careless is no probability, or a kind has too few problems to
      hold out its share and leave as many to train on.
  """
  for kind in kinds:
    if not re.fullmatch(r"[1-4][+x-]", str(kind)):
      raise UserError(
        f"task.kinds has {kind!r}; a kind is 1 to 4 digits and one of + - x, such as '2+'"
      )
  if not 0 <= careless <= 1:
    raise UserError(f"task.careless={careless} is a probability: it must be in [0, 1]")
  rng = np.random.default_rng(seed)
  held_out = {}
  for i in range(test if kinds else 0):
    kind = kinds[i % len(kinds)]
    distinct = (10 ** int(kind[0]) - (10 ** (int(kind[0]) - 1) if kind[0] != "1" else 0)) ** 2
    if kind[-1] == "-":
      distinct //= 2
    if 1.5 * (test * kinds.count(kind) // len(kinds) + 1) > distinct:
      raise UserError(
        f"task.test={test} would hold out more than two thirds of all {kind!r} problems"
      )
    while (example := problem(rng, kind)).question in held_out:
      pass
    held_out[example.question] = example
  examples = []
  while kinds and len(examples) < train:
    kind = kinds[len(examples) % len(kinds)]
    example = problem(rng, kind)
    if example.question in held_out:
      continue
    if careless and rng.random() < careless ** (1 / int(kind[0])):
      example = dataclasses.replace(example, worked=guess(rng, example))
    examples.append(example)
  return Task(train=examples, test=list(held_out.values()))
