"""Errors that a user can mend."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """A mistake in a command, a config or a file: one sentence with the bad value and the way out.

  The command line prints the sentence. Every other exception is a bug or a failure of the system.
  """


def unknown_name(what: str, name: str, choices: Iterable[str]) -> UserError:
  """The error for a name that is not in a table: suggests the nearest choice and lists all."""
  choices = sorted(choices)
  nearest = difflib.get_close_matches(name, choices, 1)
  hint = f"did you mean {nearest[0]!r}? " if nearest else ""
  return UserError(f"unknown {what} {name!r}; {hint}choose from {', '.join(choices)}")
