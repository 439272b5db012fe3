"""Fenced blocks (``` or ~~~) in a response, scanned line by line as CommonMark does (section 4.5).

Language models are less tidy than CommonMark, so a fence may also be indented by any amount, stand
behind words on its line, and open a block that the one before it has not closed.
"""

import dataclasses
import re

_FENCE = re.compile(r"^(?P<before>(?:(?!```|~~~).)*)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
_LANGUAGE = re.compile(r"[\s{.]*([\w+#-]*)")


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block."""

  language: str  # first word after the opening fence, in lower case; "" if there is none
  text: str  # lines between the fences, without the indentation of the opening fence


def blocks(text: str) -> list[Block]:
  """The fenced blocks of a text, in order, without empty ones; the last one may lack its end."""
  found, opening, lines = [], None, []

  def close():
    if opening and "".join(lines).strip():
      found.append(Block(_LANGUAGE.match(opening["info"])[1].lower(), "\n".join(lines) + "\n"))
    lines.clear()

  for line in re.split(r"\r\n|\r|\n", text):
    fence = _FENCE.match(line)
    if not opening:
      if fence and _opens(fence):
        opening = fence
      continue
    indent = len(opening["before"]) if not opening["before"].strip() else 0
    if not fence or not _ends(fence, opening, indent):
      lines.append(line[min(indent, len(line) - len(line.lstrip())) :])
      continue
    if fence["before"].strip():
      lines.append(fence["before"])
    close()
    opening = fence if fence["info"].strip() else None
  close()
  return found


def _opens(fence):
  """Whether a line outside a block opens one. Words may stand in front of ```python, but a sentence
  may also be about ``` or ~~~."""
  prose = len(fence["info"].split()) > 1 and "=" not in fence["info"]
  return not fence["before"].strip() or (fence["fence"][0] == "`" and not prose)


def _ends(fence, opening, indent):
  """Whether a line with a fence ends the block that `opening` opened `indent` columns deep.

  A deeper fence belongs to the block, such as one in the docstring of a program.
  """
  if fence["fence"][0] != opening["fence"][0] or len(fence["fence"]) < len(opening["fence"]):
    return False
  if fence["before"].strip():
    return not fence["info"].strip() and fence["fence"][0] == "`"
  return len(fence["before"]) <= indent + 3
