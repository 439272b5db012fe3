"""One sentence for a name that nobody knows."""

import difflib
from collections.abc import Iterable


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
  """The error for a name that is not in a table: it names the nearest one and lists all."""
  known = sorted(known)
  near = difflib.get_close_matches(name, known, 1)
  hint = f"; did you mean {near[0]!r}?" if near else "."
  return ValueError(f"{what} {name!r} is unknown{hint} Known are {', '.join(known)}")
