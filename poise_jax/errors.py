"""Errors that a user can fix."""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
  """A mistake in a command, a config or a file: one sentence with the bad value and how to fix it.

  The command line prints the sentence. Every other exception is a bug or a failure of the system.
  """


def unknown_name(what: str, name: str, choices: Iterable[str]) -> UserError:
  """The error for a name that is not in a table: suggests the nearest choice and lists all."""
  choices = sorted(choices)
  nearest = difflib.get_close_matches(name, choices, 1)
  hint = f"did you mean {nearest[0]!r}? " if nearest else ""
  return UserError(f"unknown {what} {name!r}; {hint}choose from {', '.join(choices)}")


def check_finite(section: str, options: Any):
  """Raises UserError for a float field of a dataclass that is NaN or infinite.

  Comparisons with bounds do not find NaN.

  Args:
    section: dotted name of the options in the config, for the message.
    options: an instance of a dataclass.
  """
  for field in dataclasses.fields(options):
    value = getattr(options, field.name)
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"{section}.{field.name} must be a finite number, got {value}")
