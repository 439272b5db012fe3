"""Mixtures of reasoning-gym's generators; every generator is a domain.

Training and held-out problems are disjoint, and the seed alone determines both.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from reasoning_gym.factory import DATASETS
from rich.progress import track

from poise_jax.data.tasks.base import Example, Task
from poise_jax.data.tasks.config import ReasoningGymConfig
from poise_jax.errors import UserError, unknown_name
from poise_jax.verifiers import Check
from poise_jax.verifiers.gym_scores import DRAWS, REFUSED, useless

GENERATORS = sorted(set(DATASETS) - {"composite"})  # this module does the mixing
ALL = "all"  # a name that stands for all generators
PROGRESS_FROM = 5000  # number of examples from which a progress bar is shown


def make(config: ReasoningGymConfig, train: int, test: int, seed: int) -> Task:
  """A task that mixes several generators.

  Args:
    config: the generators, each with its own settings and `weight`, its share of both sets (1);
      "all" stands for those that are not named and can be a reward.
    train: number of training problems in all; they may repeat, but none is held out.
    test: number of held-out problems in all, all different.
    seed: random seed of both sets.

  Raises:
    UserError: no generator is named, a generator or one of its settings is unknown or rejected, a
      generator cannot be a reward, or it has too few different problems to hold out its share.
  """
  generators = config.generators
  if not generators:
    raise UserError(
      "task.reasoning_gym.generators is empty; name generators of reasoning-gym, such as "
      '{"chain_sum": {"weight": 1, "max_terms": 2}}'
    )
  if ALL in generators:
    usable = dict.fromkeys(sorted(set(GENERATORS) - set(REFUSED)), generators[ALL])
    generators = {**usable, **{name: generators[name] for name in generators if name != ALL}}
  weights = {name: settings.get("weight", 1) for name, settings in generators.items()}
  sets = {"train": [], "test": []}
  shares = {split: _shares(weights, n) for split, n in (("train", train), ("test", test))}
  for name, settings in generators.items():
    settings = {key: value for key, value in settings.items() if key != "weight"}
    counts = {split: shares[split][name] for split in sets}
    for split, examples in _draw(name, settings, counts["train"], counts["test"], seed).items():
      sets[split] += examples
  return Task(**sets)


def _shares(weights, total):
  """{name: count}: counts that add up to `total`, each within one of its exact share."""
  ends = np.rint(np.cumsum(list(weights.values())) / sum(weights.values()) * total).astype(int)
  return dict(zip(weights, np.diff(ends, prepend=0).tolist(), strict=True))


def _draw(name, settings, train, test, seed):
  """Examples of one generator; its first `test` different problems are held out."""
  entries = _entries(name, settings, 20 * (train + test) + 1000, seed)
  held_out, examples = {}, []
  if train + test > PROGRESS_FROM:
    entries = track(entries, f"drawing {name}", total=None, transient=True)
  for entry in entries:
    question = entry["question"]
    if len(held_out) < test:
      held_out.setdefault(question, _example(name, entry))
    elif len(examples) < train:
      if question not in held_out:
        examples.append(_example(name, entry))
    if len(held_out) == test and len(examples) == train:
      return {"train": examples, "test": list(held_out.values())}
  raise UserError(
    f"reasoning-gym's {name} with {settings or 'its default settings'} has too few different "
    f"problems to hold out {test} and train on {train}; widen its settings or lower task.test"
  )


def _entries(name: str, settings: Mapping[str, Any], size: int, seed: int) -> Iterator[dict]:
  if name not in GENERATORS:
    raise unknown_name("generator in task.reasoning_gym.generators", name, GENERATORS)
  if name in REFUSED:
    raise UserError(f"reasoning-gym's {name} cannot be a reward: {REFUSED[name]}")
  kind, options = DATASETS[name]
  fields = {field.name for field in dataclasses.fields(options)} - {"seed", "size"}
  for setting in settings:
    if setting not in fields:
      raise unknown_name(f"setting of task.reasoning_gym.generators.{name}", setting, fields)
  # reasoning-gym adds its seed to a problem's number, so neighbouring seeds would share problems.
  mixed = int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
  draws = size * DRAWS.get(name, 1)
  try:
    drawn = kind(options(seed=mixed, size=draws, **settings))
  except (AssertionError, TypeError, ValueError) as error:
    raise UserError(f"reasoning-gym's {name} rejects {settings}: {error}") from error
  entries = map(drawn.__getitem__, range(draws))
  return itertools.islice((entry for entry in entries if not useless(name, entry)), size)


def _example(name, entry):
  answer = "" if entry["answer"] is None else str(entry["answer"])  # None: many answers are right
  return Example(
    question=entry["question"],
    answer=answer,
    worked=answer,
    domain=name,
    difficulty=name,
    # "auto": without a tag, box or answer line, the whole response is the answer.
    check=Check("reasoning_gym", {"dataset": name, "entry": entry}, {"extract": "auto"}),
  )
