"""Sums, differences and products of graded difficulty.

A kind is a number of digits and an operator, such as "2+" or "3x": both operands have that many
digits. Differences are never negative. Training and held-out problems are disjoint, and the seed
alone determines both.
"""

import dataclasses

import numpy as np

from poise_jax.data.tasks.base import Example, Task
from poise_jax.data.tasks.config import ArithmeticConfig
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
  """A worked answer: digit by digit from the right, then '=' and the result.

  Sums and differences list the result of each pair of digits, products the partial products.
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
  """The answer of a teacher who skips the working: close to the right one, but wrong."""
  return f"= {int(example.answer) + int(rng.integers(1, 10)) * int(rng.choice([-1, 1]))}"


def make(config: ArithmeticConfig, train: int, test: int, seed: int) -> Task:
  """A task with about equally many problems of each kind.

  Args:
    config: kinds of problems, and how often the teacher of the worked answers guesses. A warm start
      on such answers leaves the policy with two habits, working and guessing, and the reward tells
      it which one pays.
    train: number of training problems; they may repeat, but none is held out.
    test: number of held-out problems, all different.
    seed: random seed of both sets.

  Raises:
    UserError: a kind has too few problems to hold out its share and leave half as many to train on.
  """
  kinds, careless = config.kinds, config.careless
  rng = np.random.default_rng(seed)
  held_out = {}
  for i in range(test if kinds else 0):
    kind = kinds[i % len(kinds)]
    distinct = (10 ** int(kind[0]) - (10 ** (int(kind[0]) - 1) if kind[0] != "1" else 0)) ** 2
    if kind[-1] == "-":
      distinct //= 2
    if 1.5 * (test * kinds.count(kind) // len(kinds) + 1) > distinct:
      raise UserError(
        f"task.test={test} would hold out more than two thirds of all {kind!r} problems; lower it"
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
