"""Letters to sort, such as dbca, worked by insertion: bd bcd abcd.

Level k has 2 k + 1 different letters. The thought inserts one letter after the other into those
sorted so far. A step is one insertion; a slip puts the letter next to its place.
"""

import math
import string

import numpy as np

from poise_jax.data.tasks.reasoning.slips import Step

LEVELS = 8
VERIFIER = "exact"


def problems(level: int) -> int:
  """The number of words."""
  return math.perm(len(string.ascii_lowercase), 2 * level + 1)


def question(rng: np.random.Generator, level: int) -> str:
  """Random letters, all different."""
  letters = list(string.ascii_lowercase)
  return "".join(rng.choice(letters, 2 * level + 1, replace=False))


def think(question: str, step: Step) -> tuple[str, str]:
  """Sorts by insertion; see the module."""
  done, lists = question[0], []
  for letter in question[1:]:
    # In front of the first later letter; an earlier slip may have left letters out of order.
    place = next((i for i, other in enumerate(done) if other > letter), len(done))
    right = _insert(done, letter, place)
    beside = [i for i in (place - 1, place + 1) if 0 <= i <= len(done)]
    done = step(right, [_insert(done, letter, i) for i in beside])
    lists.append(done)
  return " ".join(lists), done


def _insert(letters, letter, place):
  return f"{letters[:place]}{letter}{letters[place:]}"
