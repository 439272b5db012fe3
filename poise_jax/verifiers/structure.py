"""Answers that are data: grids, lists, JSON objects."""

import ast
import json
import math
from typing import Any

from poise_jax.verifiers import fences
from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.extract import last_box, last_tag
from poise_jax.verifiers.thought import judges_answer

_LANGUAGES = ("json", "jsonc", "json5", "python", "python3", "py", "")  # of fenced blocks


@judges_answer
def structure(reference: Any, response: str) -> Verdict:
  """1 if the answer equals the reference as data, else 0.

  The answer is the last <answer> tag, else the last box, else the whole response, and in it the
  last fenced block of JSON, Python or no named language, if there is one. It is read as JSON, as a
  Python literal, or as the inside of an object's braces, and so is a reference that is text.
  Numbers are compared by value (1 is 1.0), texts without case and outer spaces.

  Raises:
    UnusableError: the reference is empty text, or not plain data.
  """
  if isinstance(reference, str) and not reference.strip():
    raise UnusableError("the reference of verifier structure is empty")
  try:
    expected = _plain(parsed(reference) if isinstance(reference, str) else reference)
  except TypeError as error:
    raise UnusableError(f"the reference of verifier structure {error}") from error
  answer = last_tag(response) or last_box(response)
  text = answer[1] if answer else response
  if blocks := [block.text for block in fences.blocks(text) if block.language in _LANGUAGES]:
    text = blocks[-1]
  try:
    return Verdict(float(_plain(parsed(text)) == expected))
  except (RecursionError, TypeError):
    return Verdict(0.0, "unparsable", "the answer is nested too deeply, or not plain data")


def parsed(text: str) -> Any:
  """The data that a text spells out; the text itself if it is not data."""
  for source in (text.strip(), "{" + text.strip() + "}"):
    for parse in (json.loads, ast.literal_eval):
      try:
        return parse(source)
      except (ValueError, SyntaxError, RecursionError, MemoryError):
        pass
  return text


def _plain(data):
  """Data in which equal values are equal in Python too."""
  if isinstance(data, dict):
    return {str(key).strip().casefold(): _plain(value) for key, value in data.items()}
  if isinstance(data, list | tuple):
    return [_plain(value) for value in data]
  if data is None or type(data) is int:
    return data
  if isinstance(data, bool):
    return str(data).casefold()  # Python's True equals 1
  if not isinstance(data, str | float):
    raise TypeError(f"is not plain data: {data!r:.100}")
  for number in (int, float):
    try:
      value = number(data) if isinstance(data, str) else data
    except ValueError:
      continue
    if math.isfinite(value):  # NaN does not equal NaN, and may be a name
      return value
  return str(data).strip().casefold()
