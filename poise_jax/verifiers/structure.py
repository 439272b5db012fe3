"""Answers that are data: grids, lists, JSON objects."""

import ast
import json
import re
from typing import Any

from poise_jax.verifiers.base import Verdict
from poise_jax.verifiers.extract import last_box, last_tag
from poise_jax.verifiers.thought import judges_answer

_FENCED = re.compile(r"```(?:json|python)?\n(.*?)```", re.DOTALL)


@judges_answer
def structure(reference: Any, response: str) -> Verdict:
  """1 if the answer equals the reference as data, else 0.

  The answer is the last <answer> tag, else the last box, else the whole response, and in it the
  last fenced block if there is one. It is read as JSON, as a Python literal, or as the inside of an
  object's braces. Numbers are compared by value (1 is 1.0), texts without case and outer spaces.
  """
  answer = last_tag(response) or last_box(response)
  text = answer[1] if answer else response
  if blocks := _FENCED.findall(text):
    text = blocks[-1]
  try:
    return Verdict(float(_plain(parsed(text)) == _plain(reference)))
  except RecursionError:
    return Verdict(0.0, "unparsable", "the answer is nested too deeply")


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
  if isinstance(data, str):
    try:
      return float(data)
    except ValueError:
      return data.strip().casefold()
  if isinstance(data, bool):
    return str(data).casefold()  # Python's True equals 1.0
  return float(data) if isinstance(data, int) else data
