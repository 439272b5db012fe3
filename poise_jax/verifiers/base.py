"""What a verifier is asked, and what it says. Nothing here imports jax."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from poise_jax.errors import UserError

STATUSES = ("ok", "unparsable", "timed_out", "crashed")


class UnusableError(UserError):
  """A check that cannot judge any answer: a mistake in a task or config, or a missing library or
  privilege. Raised instead of giving every answer a zero."""


@dataclasses.dataclass(frozen=True)
class Check:
  """How to judge the answers to one question; plain data, for it travels between processes."""

  verifier: str  # a name in verifiers.VERIFIERS, or "package.module:function"
  reference: Any  # what an answer is compared with; its form is the verifier's
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # keyword arguments


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a verifier said of one answer."""

  score: float  # in [0, 1]
  status: str = "ok"  # one of STATUSES; whatever is not "ok" is counted in the metrics
  note: str = dataclasses.field(default="", compare=False)  # why, for people
