"""Tool calls: the right functions with the right arguments, as JSON."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.extract import LONGEST
from poise_jax.verifiers.thought import judges_answer

_TAGGED = re.compile(r"<tool_call>((?:(?!<tool_call>).)*?)</tool_call>", re.DOTALL)
_FENCED = re.compile(r"```(?:json|tool_call)?[ \t]*\n((?:(?!```).)*?)```", re.DOTALL)


@judges_answer
def tool_call(
  reference: Mapping[str, Any] | Sequence[Mapping[str, Any]], response: str, ordered: bool = False
) -> Verdict:
  """1 if the response makes exactly the reference's calls, else 0.

  Calls are read from <tool_call> tags, else from JSON fences, else from a response that is JSON as
  a whole: {"name": ..., "arguments": {...}}, a list of them, or OpenAI's {"function": {...}}.

  Args:
    reference: {"name": ..., "arguments": {...}} or a list of them; an empty list for no call.
    response: the text to judge.
    ordered: whether the calls must come in the reference's order.
  """
  references = [reference] if isinstance(reference, Mapping) else list(reference)
  for call in references:
    if not isinstance(call, Mapping) or "name" not in call:
      raise UnusableError(
        f"a call in the reference of verifier tool_call needs a name, got {call!r}"
      )
  expected = [(call["name"], call.get("arguments", {})) for call in references]
  text = response[-LONGEST:]
  tagged = _TAGGED.findall(text)
  blocks = tagged or _FENCED.findall(text) or [text]
  try:
    calls = [call for block in blocks for call in _calls(json.loads(block))]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    if not expected and not tagged and "<tool_call>" not in text:
      return Verdict(1.0)  # plain words, where no call is expected
    return Verdict(0.0, "unparsable", repr(error))
  expected, calls = [_key(c) for c in expected], [_key(c) for c in calls]
  return Verdict(float(calls == expected if ordered else sorted(calls) == sorted(expected)))


def _calls(value):
  """(name, arguments) of each call in parsed JSON."""
  if isinstance(value, list):
    return [call for item in value for call in _calls(item)]
  call = value.get("function", value) if isinstance(value, dict) else None
  if not isinstance(call, dict):
    raise TypeError("a call is an object")
  arguments = call.get("arguments", call.get("parameters", {}))
  if isinstance(arguments, str):  # OpenAI's API writes arguments as text
    arguments = json.loads(arguments)
  if not isinstance(arguments, dict) or not isinstance(call["name"], str):
    raise TypeError("a call has a name and an object of arguments")
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
