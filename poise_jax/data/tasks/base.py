"""What a task is: prompts with checks of their answers, in a training and a held-out set."""

import dataclasses
from collections.abc import Mapping, Sequence

from poise_jax.errors import UserError
from poise_jax.verifiers import Check


@dataclasses.dataclass(frozen=True)
class Example:
  """One question."""

  question: str  # what the prompt template wraps
  answer: str  # the reference answer, as a reader wants to see it
  worked: str  # a response as a teacher would write it, for supervised warm starts
  domain: str  # POISE fits one probe a domain
  difficulty: str  # known to the task, reported by evaluation, never shown to the model or probe
  check: Check  # how a response is judged


@dataclasses.dataclass(frozen=True)
class Task:
  """Raises UserError on construction if a split is empty."""

  train: Sequence[Example]
  test: Sequence[Example]
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)  # examples, by reason

  def __post_init__(self):
    for split in ("train", "test"):
      if not getattr(self, split):
        raise UserError(f"the task's {split} set is empty: there is nothing to train or test on")

  @property
  def domains(self) -> tuple[str, ...]:
    """All domains, sorted; a domain's number is its place here."""
    return tuple(sorted({example.domain for example in (*self.train, *self.test)}))
