"""What a verifier takes and returns: Check and Verdict. Nothing here imports jax."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from poise_jax.errors import UserError

FAILURES = ("timed_out", "crashed", "sandbox_failed")  # statuses without a judgement
STATUSES = ("ok", "unparsable", *FAILURES)


class UnusableError(UserError):
  """A check that cannot judge any response: a mistake in a task or config, or a missing library or
  privilege. Raised instead of giving every response a score of zero."""


class SandboxError(OSError):
  """A sandbox could not be set up, so the program in it did not run: no judgement of the answer."""


@dataclasses.dataclass(frozen=True)
class Check:
  """How to judge the responses to one question; plain data, which travels between processes."""

  # a name in verifiers.VERIFIERS, or a user's "package.module:function" or "path/file.py:function"
  verifier: str
  reference: Any  # the right answer, in the form that the verifier expects
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # keyword arguments
  # Marker that ends the thought of a response and must occur; empty: see thought.after_thought.
  think_end: str = ""
  # For a user's function alone, which may ask for them: the question, and its row by columns.
  question: str = dataclasses.field(default="", repr=False)
  row: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A verifier's judgement of one response. Plain data, because it travels between processes."""

  score: float  # reward in [0, 1]; any finite number from a user's function
  status: str = "ok"  # one of STATUSES; the metrics count every other status than "ok"
  note: str = dataclasses.field(default="", compare=False)  # explanation for people
  # Answer that the verifier read in the response, None where nothing could be read. Answers that
  # count as the same in a majority vote are the same text; `verifiers.verify` sees to that.
  answer: str | None = None
  # Scores by name, such as the unweighted ones behind a weighted sum.
  parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
