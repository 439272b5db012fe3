"""Countdown: reach a target from given numbers, each used once, with + - * / and parentheses.

Every problem has a solution, because its target is the value of a random expression. Training and
held-out problems are disjoint, and the seed alone determines both.
"""

import numpy as np

from poise_jax.data.tasks.base import Example, Task
from poise_jax.data.tasks.config import CountdownConfig
from poise_jax.errors import UserError
from poise_jax.verifiers import Check


def problem(rng: np.random.Generator, count: int, largest: int) -> Example:
  """Draws `count` numbers in [1, largest] and a target in [1, 10 * largest]; all intermediate
  results are whole numbers."""
  while True:
    numbers = [int(x) for x in rng.integers(1, largest + 1, count)]
    parts = [(x, str(x)) for x in numbers]
    while len(parts) > 1:
      i, j = rng.choice(len(parts), 2, replace=False)
      (a, left), (b, right) = parts[i], parts[j]
      results = {"+": a + b, "-": a - b, "*": a * b}
      if b and a % b == 0:
        results["/"] = a // b
      sign = str(rng.choice(list(results)))
      parts = [part for k, part in enumerate(parts) if k not in (i, j)]
      parts.append((results[sign], f"({left} {sign} {right})"))
    target, expression = parts[0]
    if 1 <= target <= 10 * largest and target not in numbers:
      break
  expression = expression[1:-1]  # the outermost parentheses
  return Example(
    question=f"Use each of the numbers {', '.join(map(str, numbers))} exactly once, with + - * / "
    f"and parentheses, to write an expression that equals {target}.",
    answer=expression,
    worked=expression,
    domain="countdown",
    difficulty=f"{count} numbers",
    check=Check("countdown", {"numbers": numbers, "target": target}),
  )


def make(config: CountdownConfig, train: int, test: int, seed: int) -> Task:
  """A task with about equally many problems of each count of numbers.

  Args:
    config: how many numbers a problem has, and their range.
    train: number of training problems; they may repeat, but none is held out.
    test: number of held-out problems, all different.
    seed: random seed of both sets.

  Raises:
    UserError: there are too few different problems to hold out so many.
  """
  counts, largest = config.counts, config.largest
  if 10 * test > largest ** min(counts) * len(counts):
    raise UserError(
      f"task.test={test} would hold out too many of the problems with {min(counts)} numbers up to "
      f"task.countdown.largest={largest}; lower task.test"
    )
  rng = np.random.default_rng(seed)
  held_out, examples = {}, []
  while len(held_out) < test:
    example = problem(rng, counts[len(held_out) % len(counts)], largest)
    held_out.setdefault(example.question, example)
  while len(examples) < train:
    example = problem(rng, counts[len(examples) % len(counts)], largest)
    if example.question not in held_out:
      examples.append(example)
  return Task(train=examples, test=list(held_out.values()))
