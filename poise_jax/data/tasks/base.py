"""A task: questions with checks of their answers, in a training and a held-out set."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from poise_jax.errors import UserError
from poise_jax.verifiers import Check


@dataclasses.dataclass(frozen=True)
class Example:
  """One question and the check of its answers."""

  question: str  # text that the prompt template wraps
  answer: str  # reference answer for human readers
  worked: str  # a teacher's response, for the supervised warm start
  domain: str  # POISE fits one probe a domain
  difficulty: str  # label for metrics and reports; neither model nor probe sees it
  check: Check  # how a response is verified
  turns: tuple[tuple[str, str], ...] = ()  # (role, content) of a chat in front of the question

  @property
  def asked(self) -> str:
    """All that is asked: the question and, if there are any, the turns in front of it."""
    return "\n".join([*(f"{role}: {content}" for role, content in self.turns), self.question])


@dataclasses.dataclass(frozen=True)
class Task:
  """Training and held-out examples. Raises UserError on construction if a split is empty."""

  train: Sequence[Example]
  test: Sequence[Example]
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)  # reason -> examples

  def __post_init__(self):
    for split in ("train", "test"):
      if not getattr(self, split):
        raise UserError(f"the task's {split} set is empty")

  @property
  def domains(self) -> tuple[str, ...]:
    """All domains, sorted; the index of a domain is its position here."""
    return tuple(sorted({example.domain for example in (*self.train, *self.test)}))

  def summary(self) -> str:
    """Lines with the number of examples in each split, by domain if there are several, and the
    number of examples left out."""
    lines = []
    for split, examples in (("training", self.train), ("held-out", self.test)):
      line, counts = f"{len(examples)} {split} examples", Counter(e.domain for e in examples)
      if len(self.domains) > 1:
        line += f" ({', '.join(f'{name} {counts[name]}' for name in self.domains)})"
      lines.append(line)
    lines += [f"left out: {count} ({reason})" for reason, count in self.left_out.items()]
    return "\n".join(lines)
