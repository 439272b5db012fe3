"""Held-out sets: which questions an evaluation asks, and in which batches."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from poise_jax.data import tasks
from poise_jax.data.prompts import PromptEncoder, limit_lengths, mark_thoughts
from poise_jax.data.tasks.config import with_changes

HELD_OUT = "held_out"  # name of the held-out set of config.task


@dataclasses.dataclass(frozen=True)
class EvalSet:
  """Held-out examples and how their questions are asked."""

  name: str
  examples: Sequence[tasks.Example]
  encoder: PromptEncoder
  config: dict[str, Any]  # fields of config.task that the set was made from
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)  # reason -> examples

  def batches(self, size: int) -> list[tuple[list[int], int]]:
    """Batches of at most `size` prompts, shortest first: indices of the prompts and width in
    tokens. Every prompt is in one batch."""
    lengths = [len(self.encoder.ids(example)) for example in self.examples]
    limit = self.encoder.max_length
    return [(batch, min(width, limit)) for batch, width in batch_by_length(lengths, size)]


def batch_by_length(
  lengths: Sequence[int], batch_size: int, multiple: int = 64
) -> list[tuple[list[int], int]]:
  """Batches of prompts of similar length, so that there is little padding.

  Args:
    lengths: prompt lengths, tokens.
    batch_size: prompts a batch; the last batch may have fewer.
    multiple: widths are rounded up to a multiple of it, so that few programs are compiled.

  Returns:
    (indices into `lengths`, width in tokens) a batch, shortest first; every index occurs once.
  """
  shortest_first = sorted(range(len(lengths)), key=lambda i: lengths[i])
  batches = [shortest_first[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
  return [(batch, -(-lengths[batch[-1]] // multiple) * multiple) for batch in batches]


def make_sets(config: ConfigDict, tokenizer) -> list[EvalSet]:
  """The held-out sets of config.eval.tasks, or that of config.task if there are none.

  Raises:
    UserError: config.task has no such field, a set is empty, or a prompt is too long.
  """
  sections = {
    name: with_changes(config.task, changes, f"eval.tasks.{name}")
    for name, changes in config.eval.tasks.items()
  }
  sets = []
  for name, section in (sections or {HELD_OUT: config.task}).items():
    encoder = PromptEncoder.from_config(section, tokenizer)
    task = tasks.make(section, config.seed)
    task = dataclasses.replace(task, train=task.test)  # the training set is large and not needed
    task = mark_thoughts(limit_lengths(task, encoder, section.drop_long), encoder)
    left_out = {reason: n for reason, n in task.left_out.items() if ", test: " in reason}
    sets.append(EvalSet(name, task.test, encoder, section.to_dict(), left_out))
  return sets
