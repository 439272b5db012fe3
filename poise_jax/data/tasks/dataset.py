"""Tasks from published datasets and from a user's own files.

Questions of the held-out set are never trained on, and every question is trained on once; what is
left out for that is counted.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from poise_jax.data import sources as datasets
from poise_jax.data.tasks.base import Example, Task
from poise_jax.errors import UserError
from poise_jax.verifiers import Check

OWN = "own"  # what a user's own files are called in task.train_on and task.test_on
COLUMNS = ("id", "question", "answer", "worked", "domain", "difficulty")


def make(
  train_on: str,
  test_on: str,
  test: int,
  seed: int,
  folder: str,
  data_dir: str,
  own: Mapping[str, Any],
) -> Task:
  """A task from datasets.

  Args:
    train_on: names of datasets.SOURCES, or "own", with commas between them.
    test_on: the same, for the held-out set; empty: `test` of the training rows are held out.
    test: how many, then.
    seed: of which, then.
    folder: see datasets.load.
    data_dir: see datasets.load.
    own: a user's own files and columns: config.task.own.

  Raises:
    UserError, OSError: see datasets.load; or there is nothing to train on or to hold out.
  """
  train_on, test_on = _listed(train_on), _listed(test_on)
  if not train_on:
    raise UserError(
      f"task.train_on is empty; name datasets out of {', '.join(datasets.SOURCES)}, or {OWN!r}"
    )
  for split, names in (("train", train_on), ("test", test_on)):
    if own[split] and OWN not in names:
      raise UserError(f"task.own.{split} has files, but task.{split}_on does not name {OWN!r}")
  left_out = Counter()
  held_out = _examples(test_on, "test", folder, data_dir, own, left_out)
  examples = _examples(train_on, "train", folder, data_dir, own, left_out)
  seen = {datasets.same_question(example.question): "held out" for example in held_out}
  chosen = []
  for example in examples:
    question = datasets.same_question(example.question)
    if question in seen:
      left_out[f"{seen[question]} as well"] += 1
      continue
    seen[question] = "in another dataset"
    chosen.append(example)
  if not test_on:
    if not 0 < test < len(chosen):
      raise UserError(
        f"task.test={test} of {len(chosen)} training rows cannot be held out; task.test_on could "
        "name a held-out set"
      )
    order = np.random.default_rng(seed).permutation(len(chosen))
    held_out = [chosen[i] for i in sorted(order[:test])]
    chosen = [chosen[i] for i in sorted(order[test:])]
  return Task(chosen, held_out, dict(left_out))


def _examples(names, split, folder, data_dir, own, left_out):
  examples = []
  for name in names:
    source = _own(own) if name == OWN else datasets.find(name)
    rows, counts = datasets.load(source, split, folder, data_dir)
    left_out.update({f"{name}, {split}: {reason}": n for reason, n in counts.items()})
    for row in rows:
      check = Check(source.verifier, row.pop("reference"), source.options)
      examples.append(Example(**row, check=check))
  return examples


def _listed(names):
  return tuple(name.strip() for name in names.split(",") if name.strip())


def _own(own):
  """The source that the fields of config.task.own describe."""
  if not own["question"] or not own["answer"]:
    raise UserError("task.own.question and task.own.answer must name columns")
  return datasets.Source(
    name=OWN,
    files={split: _listed(own[split]) for split in ("train", "test") if own[split]},
    columns={name: own[name] for name in COLUMNS if own[name]},
    domain=OWN,
    verifier=own["verifier"],
    options=own["options"],
  )
