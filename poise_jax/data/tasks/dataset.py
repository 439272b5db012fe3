"""Tasks from published datasets and from a user's own files.

A held-out question is never trained on, and a question in several datasets is trained on once; the
rows left out for that are counted.
"""

import dataclasses
from collections import Counter

import numpy as np

from poise_jax.data import sources
from poise_jax.data.tasks.base import Example, Task
from poise_jax.data.tasks.config import DatasetConfig, OwnConfig
from poise_jax.errors import UserError
from poise_jax.verifiers import Check

OWN = "own"  # name of a user's own files in task.dataset.train_on and task.dataset.test_on
COLUMNS = ("id", "question", "messages", "answer", "worked", "domain", "difficulty")


def make(config: DatasetConfig, test: int, seed: int) -> Task:
  """A task from one or several datasets.

  Args:
    config: names of the datasets, and where their files are.
    test: number of training rows held out if config.test_on is empty.
    seed: random seed of the choice of those rows.

  Raises:
    UserError, OSError: see sources.load; or there is nothing to train on or to hold out.
  """
  train_on, test_on = split_names(config.train_on), split_names(config.test_on)
  if not train_on:
    raise UserError(
      f"task.dataset.train_on is empty; choose from {', '.join(sources.SOURCES)}, {OWN}"
    )
  for split, names in (("train", train_on), ("test", test_on)):
    if getattr(config.own, split) and OWN not in names:
      raise UserError(
        f"task.dataset.own.{split} names files, but task.dataset.{split}_on does not name {OWN!r}"
      )
    if OWN in names and not getattr(config.own, split):
      raise UserError(
        f"task.dataset.{split}_on names {OWN!r}, but no file is named: set "
        f"--config.task.dataset.own.{split}=FILE"
      )
  left_out = Counter()
  held_out = _examples(test_on, "test", config, left_out)
  rows = _examples(train_on, "train", config, left_out)
  used = {sources.normalized(example.asked): "held out" for example in held_out}
  examples = []
  for example in rows:
    question = sources.normalized(example.asked)
    if question in used:
      left_out[f"{used[question]} as well"] += 1
      continue
    used[question] = "in another dataset"
    examples.append(example)
  if not test_on:
    if not 0 < test < len(examples):
      raise UserError(
        f"task.test={test} must be at least 1 and less than the {len(examples)} training rows; or "
        "name a held-out set in task.dataset.test_on"
      )
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = [examples[i] for i in sorted(order[:test])]
    examples = [examples[i] for i in sorted(order[test:])]
  return Task(examples, held_out, dict(left_out))


def _examples(names, split, config, left_out):
  examples = []
  for name in names:
    source = _own_source(config.own) if name == OWN else sources.find(name)
    rows, counts = sources.load(source, split, config.folder, config.data_dir)
    left_out.update({f"{name}, {split}: {reason}": n for reason, n in counts.items()})
    for row in rows:
      columns = row.pop("row", {})
      check = Check(source.verifier, row.pop("reference"), source.options, row=columns)
      examples.append(Example(**row, check=check))
  return examples


def split_names(names: str) -> tuple[str, ...]:
  """The names in a list that commas separate."""
  return tuple(name.strip() for name in names.split(",") if name.strip())


def _own_source(own: OwnConfig) -> sources.Source:
  fields = dataclasses.asdict(own)
  if own.messages:
    fields["question"] = ""
  return sources.Source(
    name=OWN,
    files={split: split_names(fields[split]) for split in ("train", "test") if fields[split]},
    columns={name: fields[name] for name in COLUMNS if fields[name]},
    domain=OWN,
    verifier=own.verifier,
    options=own.options,
  )
