"""Mixtures of reasoning-gym's generators, each a domain with a probe of its own.

Training and held-out problems are disjoint; what is drawn depends on the seed alone.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from reasoning_gym.factory import DATASETS
from rich.progress import track

from poise_jax.data.tasks.base import Example, Task
from poise_jax.errors import UserError, unknown_name
from poise_jax.verifiers import Check

GENERATORS = sorted(set(DATASETS) - {"composite"})  # this file mixes
SLOW = 5000  # examples from which on a progress bar is shown


def make(generators: Mapping[str, Mapping[str, Any]], train: int, test: int, seed: int) -> Task:
  """A task of several generators.

  Args:
    generators: name -> the generator's own settings, and `weight`, its share of both sets (1).
    train: number of training problems in all; they may repeat, but none is a held-out one.
    test: number of held-out problems in all, all different.
    seed: of the draw of both.

  Raises:
    UserError: no generator is named, one is unknown, a setting is unknown or refused, or a
      generator has too few different problems to hold out its share.
  """
  if not generators:
    raise UserError(
      "task.generators is empty; name some of reasoning-gym's, such as "
      '{"chain_sum": {"weight": 1, "max_terms": 2}}'
    )
  weights = {name: settings.get("weight", 1) for name, settings in generators.items()}
  for name, weight in weights.items():
    if not isinstance(weight, int | float) or not weight > 0:
      raise UserError(f"task.generators.{name}.weight={weight!r} must be a number above 0")
  sets = {"train": [], "test": []}
  shares = {split: _shares(weights, n) for split, n in (("train", train), ("test", test))}
  for name, settings in generators.items():
    settings = {key: value for key, value in settings.items() if key != "weight"}
    counts = {split: shares[split][name] for split in sets}
    for split, examples in _draw(name, settings, counts["train"], counts["test"], seed).items():
      sets[split] += examples
  return Task(**sets)


def _shares(weights, total):
  """{name: how many}, `total` in all, each within one of its exact share."""
  ends = np.rint(np.cumsum(list(weights.values())) / sum(weights.values()) * total).astype(int)
  return dict(zip(weights, np.diff(ends, prepend=0).tolist(), strict=True))


def _draw(name, settings, train, test, seed):
  """Examples of one generator: the first `test` different ones are held out."""
  entries = _entries(name, settings, 20 * (train + test) + 1000, seed)
  held_out, examples = {}, []
  if train + test > SLOW:
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
    f"reasoning-gym's {name} with {settings or 'its own settings'} has too few different problems "
    f"to hold out {test} and train on {train}; widen its settings, or lower task.test"
  )


def _entries(name: str, settings: Mapping[str, Any], size: int, seed: int) -> Iterator[dict]:
  if name not in GENERATORS:
    raise unknown_name("reasoning-gym's generator", name, GENERATORS)
  kind, options = DATASETS[name]
  fields = {field.name for field in dataclasses.fields(options)} - {"seed", "size"}
  for setting in settings:
    if setting not in fields:
      raise unknown_name(f"task.generators.{name} setting", setting, fields)
  # reasoning-gym's seed is added to a problem's number: neighbouring seeds would share problems.
  mixed = int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])
  try:
    drawn = kind(options(seed=mixed, size=size, **settings))
  except (AssertionError, TypeError, ValueError) as error:
    raise UserError(f"reasoning-gym's {name} refuses {settings}: {error}") from error
  return (drawn[i] for i in range(size))


def _example(name, entry):
  answer = "" if entry["answer"] is None else str(entry["answer"])  # some have many right answers
  return Example(
    question=entry["question"],
    answer=answer,
    worked=answer,
    domain=name,
    difficulty=name,
    # "auto": a response without a tag, box or answer line is the answer as a whole.
    check=Check("reasoning_gym", {"dataset": name, "entry": entry}, {"extract": "auto"}),
  )
