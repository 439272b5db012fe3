"""The tests of a program, as a reference of the verifier `code` describes them.

A test that no program can pass, or that every program passes, is refused.
"""

import ast
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from poise_jax.verifiers.base import UnusableError
from poise_jax.verifiers.code_names import program_names


@dataclasses.dataclass(frozen=True)
class Tests:
  """Tests of one of three kinds; the other two lists are empty."""

  sources: Sequence[str] = ()  # Python that raises if the program is wrong
  calls: Sequence[tuple[list, Any]] = ()  # (arguments, expected result) of the function `name`
  runs: Sequence[tuple[str, str]] = ()  # (standard input, expected output)
  setup: str = ""  # Python that runs before each of `sources`
  name: str = ""  # a function, or a method of class Solution; "" if no test names one
  names: Sequence[str] = ()  # what the tests use of the program

  def __len__(self) -> int:
    return len(self.sources) + len(self.calls) + len(self.runs)


def read_tests(reference: Mapping[str, Any] | str) -> Tests:
  """The tests in a reference; see code.code for its forms.

  Raises:
    UnusableError: the reference is malformed, or no program can pass one of its tests.
  """
  if isinstance(reference, str):
    reference = _one_value(reference, "text")
  if not isinstance(reference, Mapping):
    raise _unusable(f"must be an object, got {reference!r:.60}")
  sources = reference.get("tests") or []
  sources = [sources] if isinstance(sources, str) else sources
  inputs, outputs = reference.get("inputs") or [], reference.get("outputs") or []
  for key, value in dict(tests=sources, inputs=inputs, outputs=outputs).items():
    if not isinstance(value, list | tuple):
      raise _unusable(f"has {key} that are not a list: {value!r:.60}")
  if bool(sources) == bool(inputs) or len(inputs) != len(outputs):
    raise _unusable("needs either tests, or as many outputs as inputs")
  name, setup = _name(reference), reference.get("setup") or ""
  pairs = [(i, *pair) for i, pair in enumerate(zip(inputs, outputs, strict=True), 1)]
  if sources:
    does_something = [_does_something(source) for source in (setup, *sources)]
    if not all(does_something[1:]) and not reference.get("entry_point"):
      source = sources[does_something.index(False, 1) - 1]
      raise _unusable(f"has no entry_point, and a test that calls nothing: {source!r:.60}")
    listed = [*([name] if name else []), *(reference.get("names") or [])]
    names = program_names(setup, sources, listed)
    return Tests(sources=sources, setup=setup, name=name, names=names)
  if reference.get("fn_name"):
    return Tests(calls=[_call(*pair) for pair in pairs], name=name, names=[name, "Solution"])
  return Tests(runs=[(_text(i, x), _text(i, y)) for i, x, y in pairs])


def _name(reference):
  """The name of the function, without the class Solution that has it as a method."""
  name = reference.get("entry_point") or reference.get("fn_name") or ""
  plain = name.removeprefix("Solution().") if isinstance(name, str) else ""
  if name and not plain.isidentifier():
    raise _unusable(f"names the function {name!r}, which is no name in Python")
  return plain


def _does_something(source):
  """Whether a test does not merely define `check`; raises UnusableError if it is not Python."""
  if not isinstance(source, str):
    raise _unusable(f"has a test that is not text: {source!r:.60}")
  return _last_statement(source) not in ("", "check")


@functools.lru_cache(maxsize=1024)
def _last_statement(source):
  """The name that the last statement defines, else its kind; "" if there is no statement."""
  try:
    statements = ast.parse(source).body
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    raise _unusable(f"has a test that is not Python ({error}): {source!r:.60}") from error
  return getattr(statements[-1], "name", type(statements[-1]).__name__) if statements else ""


def _call(number, arguments, result):
  """The arguments and the result of a call; both may be JSON text, one argument a line."""
  if isinstance(arguments, str):
    arguments = _json_values(arguments, f"input {number}")
    result = _one_value(result, f"output {number}") if isinstance(result, str) else result
  if not isinstance(arguments, list | tuple):
    raise _unusable(
      f"has the input {number} {arguments!r:.60}, which is not a list of fn_name's arguments"
    )
  return _plain(number, list(arguments)), _plain(number, result)


def _plain(number, value):
  """The value, as JSON reads it back."""
  try:
    return json.loads(json.dumps(value))
  except (TypeError, ValueError, RecursionError) as error:
    raise _unusable(f"has a test {number} that is not plain data: {error}") from error


def _json_values(text, what):
  """The values of a text of JSON values, one after the other."""
  values, decoder, rest = [], json.JSONDecoder(), text.strip()
  while rest:
    try:
      value, end = decoder.raw_decode(rest)
    except (ValueError, RecursionError) as error:
      raise _unusable(f"has the {what} {text!r:.60}, which is not JSON: {error}") from error
    values.append(value)
    rest = rest[end:].lstrip()
  return values


def _one_value(text, what):
  """The one value of a JSON text."""
  values = _json_values(text, what)
  if len(values) != 1:
    raise _unusable(f"has the {what} {text!r:.60}, which is not one JSON value")
  return values[0]


def _text(number, value):
  """The standard input or output of a run: a text, or its lines."""
  lines = value if isinstance(value, list | tuple) else [value]
  for line in lines:
    if isinstance(line, bool) or not isinstance(line, str | int | float):
      raise _unusable(f"has a test {number} whose input or output is not text: {value!r:.60}")
  return "\n".join(map(str, lines))


def _unusable(problem):
  return UnusableError(f"the reference of verifier code {problem}")
