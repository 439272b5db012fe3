"""Countdown: make a number from some others, each used once, with + - * / and parentheses.

Every problem has a solution, for its target is what a random expression comes to. Training and
held-out problems are disjoint; what is drawn depends on the seed alone.
"""

import numpy as np

from poise_jax.data.tasks.base import Example, Task
from poise_jax.errors import UserError
from poise_jax.verifiers import Check


def problem(rng: np.random.Generator, count: int, largest: int) -> Example:
  """Draws `count` numbers of 1 to `largest` and a target of 1 to 10 * largest, whole numbers all
  the way."""
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


def make(train: int, test: int, seed: int, counts: tuple[int, ...], largest: int) -> Task:
  """A task with about equally many problems of each size.

  Args:
    train: number of training problems; they may repeat, but none is a held-out one.
    test: number of held-out problems, all different.
    seed: of the draw of both.
    counts: how many numbers a problem has, such as (3, 4).
    largest: number in a problem.

  Raises:
    UserError: a size is not 2 to 6, or there are too few different problems to hold out so many.
  """
  if not counts or not all(2 <= count <= 6 for count in counts) or largest < 4:
    raise UserError(
      f"task.countdown.counts={tuple(counts)} must be sizes of 2 to 6 numbers, and "
      f"task.countdown.largest={largest} at least 4"
    )
  if 10 * test > largest ** min(counts) * len(counts):
    raise UserError(
      f"task.test={test} would hold out too much of what task.countdown.largest={largest} with "
      f"{min(counts)} numbers can be"
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
