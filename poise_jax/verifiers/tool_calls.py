"""Tool calls: the right functions with the right arguments, as JSON."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from poise_jax.verifiers import fences
from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.extract import LONGEST
from poise_jax.verifiers.thought import judges_answer

_TAGGED = re.compile(r"<tool_call>((?:(?!<tool_call>).)*?)</tool_call>", re.DOTALL)
_JSON = ("json", "jsonc", "json5", "tool_call", "tool_calls")  # languages of fenced blocks


@judges_answer
def tool_call(
  reference: Mapping[str, Any] | Sequence[Mapping[str, Any]] | str,
  response: str,
  ordered: bool = False,
) -> Verdict:
  """1 if the response makes exactly the reference's calls, else 0.

  Calls are read from <tool_call> tags, else from fenced blocks of JSON, else from those of no named
  language, else from a response that is JSON as a whole: {"name": ..., "arguments": {...}}, a list
  of them, or OpenAI's {"function": {...}}. Arguments may be JSON text.

  Args:
    reference: calls in one of these forms, or JSON text of them; an empty list for no call.
    response: the text to judge.
    ordered: whether the calls must come in the reference's order.

  Raises:
    UnusableError: the reference is malformed.
  """
  try:
    value = json.loads(reference) if isinstance(reference, str) else reference
    expected = [_key(call) for call in _calls(value)]
  except (ValueError, TypeError, RecursionError) as error:
    raise UnusableError(f"the reference of verifier tool_call is malformed: {error}") from error
  text = response[-LONGEST:]
  tagged = _TAGGED.findall(text)
  try:
    sources = tagged or _fenced(text) or [text]
    calls = [_key(call) for source in sources for call in _calls(json.loads(source))]
  except (ValueError, TypeError, RecursionError) as error:
    if not expected and not tagged and "<tool_call>" not in text:
      return Verdict(1.0)  # plain words, where no call is expected
    return Verdict(0.0, "unparsable", repr(error))
  return Verdict(float(calls == expected if ordered else sorted(calls) == sorted(expected)))


def _fenced(text):
  """The contents of the fenced blocks that may be calls."""
  found = fences.blocks(text)
  json_blocks = [block.text for block in found if block.language in _JSON]
  return json_blocks or [block.text for block in found if not block.language]


def _calls(value):
  """(name, arguments) of each call in parsed JSON."""
  if isinstance(value, list | tuple):
    return [call for item in value for call in _calls(item)]
  call = value.get("function", value) if isinstance(value, Mapping) else None
  if not isinstance(call, Mapping):
    raise TypeError(f"a call is an object, got {value!r:.100}")
  arguments = call.get("arguments", call.get("parameters"))
  if isinstance(arguments, str) and arguments.strip():  # OpenAI's API writes arguments as text
    arguments = json.loads(arguments)
  arguments = arguments or {}
  if not isinstance(arguments, Mapping) or not isinstance(call.get("name"), str):
    raise TypeError(f"a call needs a name and an object of arguments, got {value!r:.100}")
  return [(call["name"], arguments)]


def _key(call):
  """The same text for calls that are equal as JSON: 1 equals 1.0, but not true or "1"."""

  def plain(value):
    if isinstance(value, Mapping):
      return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
      return [plain(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

  return json.dumps([call[0], plain(call[1])], sort_keys=True)
