"""Verdicts as JSON, the only form in which a process tells a more trusted one something.

Never pickle: to unpickle is to run what the sender chose. Checks and responses travel the other
way, from more to less trusted processes, and are pickled.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from poise_jax.verifiers.base import STATUSES, Verdict

LONGEST = 1 << 24  # bytes of one message
_LONGEST_NOTE = 100_000  # characters
_FIELDS = ("score", "status", "note", "answer", "parts")


def to_json(message: Mapping[str, Any]) -> bytes:
  """A message as one line of ASCII."""
  return json.dumps(message).encode() + b"\n"


def from_json(line: bytes) -> dict[str, Any]:
  """The message in a line; raises ValueError if it is not one."""
  try:
    message = json.loads(line)
  except RecursionError as error:
    raise ValueError("nested too deeply") from error
  if not isinstance(message, dict) or len(message) != 1:
    raise ValueError(f"not a message: {line[:100]!r}")
  return message


def verdict_to_data(verdict: Verdict) -> dict[str, Any]:
  """The fields of a verdict, all plain data."""
  data = {name: getattr(verdict, name) for name in _FIELDS}
  return data | {"score": float(verdict.score), "note": str(verdict.note)[:_LONGEST_NOTE]}


def verdict_from_data(data: Any) -> Verdict:
  """The verdict with these fields; raises ValueError if one has a wrong type or range."""
  if not isinstance(data, dict) or data.keys() != set(_FIELDS):
    raise ValueError(f"not the fields of a verdict: {data!r:.100}")
  verdict = Verdict(**data)
  parts = verdict.parts
  valid = (
    _is_score(verdict.score)
    and verdict.status in STATUSES
    and type(verdict.note) is str
    and len(verdict.note) <= _LONGEST_NOTE
    and (verdict.answer is None or type(verdict.answer) is str)
    and type(parts) is dict
    and all(map(_is_score, parts.values()))
  )
  if not valid:
    raise ValueError(f"not a verdict: {data!r:.100}")
  return verdict


def is_bounded(verdict: Verdict) -> bool:
  """Whether all scores are in [0, 1], as those of this package's verifiers are."""
  return all(0 <= score <= 1 for score in (verdict.score, *verdict.parts.values()))


def _is_score(value):
  return type(value) in (int, float) and math.isfinite(value)
