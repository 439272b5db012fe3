"""Answers that are data: grids, lists, JSON objects."""

import ast
import json
import re
from typing import Any

from poise_jax.verifiers.base import Verdict
from poise_jax.verifiers.extract import last_box, last_tag

_FENCED = re.compile(r"```(?:json|python)?\n(.*?)```", re.DOTALL)


def structure(reference: Any, response: str) -> Verdict:
  """1 if the answer is the reference as data, else 0.

  The answer is what the last <answer> tag holds, else the last box, else the last fenced block,
  else all; read as JSON, as a Python literal, or as what stands between the braces of an object.
  Numbers count as what they are worth, texts without regard to case and to space around them.
  """
  found = last_tag(response) or last_box(response)
  text = found[1] if found else response
  if fenced := _FENCED.findall(text):
    text = fenced[-1]
  try:
    return Verdict(float(_plain(parsed(text)) == _plain(reference)))
  except RecursionError:
    return Verdict(0.0, "unparsable")


def parsed(text: str) -> Any:
  """The data that a text writes down; the text itself if it is no data."""
  for written in (text.strip(), "{" + text.strip() + "}"):
    for read in (json.loads, ast.literal_eval):
      try:
        return read(written)
      except (ValueError, SyntaxError, RecursionError, MemoryError):
        pass
  return text


def _plain(data):
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
    return str(data).casefold()  # to Python it equals 1.0
  return float(data) if isinstance(data, int) else data
