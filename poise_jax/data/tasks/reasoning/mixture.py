"""A mixture of the domains, and a teacher who thinks before most answers and guesses some.

Training and held-out problems are disjoint, and the seed alone determines both.
"""

import itertools
import string
from collections.abc import Iterator, Mapping

import numpy as np

from poise_jax.data.tasks.base import Example, Task
from poise_jax.data.tasks.config import ReasoningConfig
from poise_jax.data.tasks.reasoning.domains import DOMAINS
from poise_jax.data.tasks.reasoning.slips import Step, flawless, slipping
from poise_jax.errors import UserError, unknown_name
from poise_jax.verifiers import Check

WRITTEN = f"{string.ascii_lowercase}{string.digits}+-*=() "  # in thoughts and answers
HASTE = 0.5  # probability of a slip at each step of the thought that a guess leaves out


def make(config: ReasoningConfig, think_end: str, train: int, test: int, seed: int) -> Task:
  """A task with equally many problems of each domain and, within a domain, of each level.

  At most a third of a level's problems is held out, so that the others can be trained on; what a
  small level cannot give comes from the other levels and domains in turn.

  The teacher of the training examples never guesses at level 1, with probability `guess` at level
  2, and the more often the longer a thought would be (guess ** (1 / (level - 1))): it writes no
  thought, but the answer of a hasty one, which is close to the right answer and at times right.
  Otherwise it thinks and slips at each step with probability `slip`; what follows builds on the
  wrong result. The worked answers of held-out examples are right.

  Args:
    config: domains and levels, and how often the teacher guesses and slips.
    think_end: marker between thought and answer, config.task.think_end.
    train: number of training problems; they may repeat, but none is held out.
    test: number of held-out problems, all different.
    seed: random seed of both sets.

  Raises:
    UserError: the marker is empty or could occur in a thought, a domain is unknown, a level does
      not exist, or there are too few different problems to hold out so many.
  """
  if not set(think_end) - set(WRITTEN):
    raise UserError(
      f"task.think_end={think_end!r}, the marker between the reasoning task's thoughts and "
      "answers, must have a character that neither contains; set it, for example to '</think>'"
    )
  levels = _levels(config.levels)
  drawing, teaching = np.random.default_rng(seed).spawn(2)  # the problems depend on no habit
  held_out = _held_out(drawing, levels, test, think_end)
  cells, examples = _cells(levels), []
  while len(examples) < train:
    name, level = next(cells)
    while (question := DOMAINS[name].question(drawing, level)) in held_out:
      pass
    guesses = level > 1 and teaching.random() < config.guess ** (1 / (level - 1))
    step = slipping(teaching, HASTE if guesses else config.slip)
    examples.append(_example(name, level, question, think_end, step, guesses))
  return Task(train=examples, test=list(held_out.values()))


def _levels(given: Mapping[str, tuple[int, int]]) -> dict[str, range]:
  """The levels of each domain, checked; without any, all levels of all domains."""
  levels = {}
  for name, bounds in (given or {name: (1, d.LEVELS) for name, d in DOMAINS.items()}).items():
    if name not in DOMAINS:
      raise unknown_name("domain in task.reasoning.levels", name, DOMAINS)
    highest = DOMAINS[name].LEVELS
    pair = isinstance(bounds, tuple | list) and [type(x) for x in bounds] == [int, int]
    if not pair or not 1 <= bounds[0] <= bounds[1] <= highest:
      raise UserError(
        f"task.reasoning.levels.{name} must be (lowest, highest) within 1 and {highest}, "
        f"got {bounds!r}"
      )
    levels[name] = range(bounds[0], bounds[1] + 1)
  return levels


def _cells(levels: Mapping[str, range]) -> Iterator[tuple[str, int]]:
  """(domain, level) without end: the domains in turn, and in each of them the levels in turn."""
  turns = {name: itertools.cycle(levels[name]) for name in levels}
  for name in itertools.cycle(turns):
    yield name, next(turns[name])


def _held_out(rng, levels, test, think_end):
  """{question: example}: `test` held-out examples."""
  room = {
    (name, level): DOMAINS[name].problems(level) // 3 for name in levels for level in levels[name]
  }
  if test > sum(room.values()):
    raise UserError(
      f"task.test={test} would hold out more than a third of the problems of "
      f"task.reasoning.levels, {sum(room.values())}; lower it, or add levels or domains"
    )
  held_out = {}
  for name, level in _cells(levels):
    if len(held_out) == test:
      return held_out
    if room[name, level]:
      room[name, level] -= 1
      while (question := DOMAINS[name].question(rng, level)) in held_out:
        pass
      held_out[question] = _example(name, level, question, think_end, flawless)


def _example(
  name: str, level: int, question: str, think_end: str, step: Step, guesses: bool = False
) -> Example:
  domain = DOMAINS[name]
  _, right = domain.think(question, flawless)
  thought, answer = domain.think(question, step)
  return Example(
    question=question,
    answer=right,
    worked=f"{'' if guesses else thought}{think_end}{answer}",
    domain=name,
    difficulty=f"{name} {level}",
    check=Check(domain.VERIFIER, right),
  )
