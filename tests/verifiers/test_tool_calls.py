"""Tool calls."""

import pytest

from poise_jax.verifiers import Check, UnusableError, verify

CALL = {"name": "add", "arguments": {"a": 1, "b": [2, {"c": None}]}}
JSON = '{"name": "add", "arguments": {"b": [2, {"c": null}], "a": 1.0}}'


@pytest.mark.parametrize(
  "response",
  [
    JSON,
    f"I call it.\n<tool_call>\n{JSON}\n</tool_call>",
    f"```json\n{JSON}\n```",
    f"[{JSON}]",
    '{"type": "function", "function": {"name": "add", '
    '"arguments": "{\\"a\\": 1, \\"b\\": [2, {\\"c\\": null}]}"}}',
    '{"name": "add", "parameters": {"a": 1, "b": [2, {"c": null}]}}',
  ],
)
def test_equal_calls(response):
  assert verify(Check("tool_call", CALL), response).score == 1


@pytest.mark.parametrize(
  "response,status",
  [
    (JSON.replace("add", "sub"), "ok"),
    (JSON.replace("1.0", "true"), "ok"),  # equal in Python, not in JSON
    (JSON.replace("1.0", '"1"'), "ok"),
    (JSON.replace("1.0", '1, "x": 0'), "ok"),
    (f"[{JSON}, {JSON}]", "ok"),
    (f"<tool_call>{JSON}</tool_call><tool_call>{JSON}</tool_call>", "ok"),
    ("add(1, 2)", "unparsable"),
    (f"<tool_call>{JSON[:-1]}</tool_call>", "unparsable"),
    ('{"name": "add", "arguments": 3}', "unparsable"),
    ("[" * 50_000, "unparsable"),
    ("", "unparsable"),
  ],
)
def test_different_and_unreadable_calls(response, status):
  verdict = verify(Check("tool_call", CALL), response)
  assert (verdict.score, verdict.status) == (0, status)


def test_several_calls_and_no_call():
  other = {"name": "stop", "arguments": {}}
  response = f'<tool_call>{{"name": "stop"}}</tool_call> <tool_call>{JSON}</tool_call>'
  assert verify(Check("tool_call", [CALL, other]), response).score == 1
  assert verify(Check("tool_call", [CALL, other], {"ordered": True}), response).score == 0
  assert verify(Check("tool_call", [other, CALL], {"ordered": True}), response).score == 1
  assert verify(Check("tool_call", []), "I can say so without a tool.").score == 1
  assert verify(Check("tool_call", []), response).score == 0
  with pytest.raises(UnusableError, match="needs a name"):
    verify(Check("tool_call", {"arguments": {}}), response)
