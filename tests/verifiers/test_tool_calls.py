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


@pytest.mark.parametrize(
  "reference",
  [
    CALL,
    [CALL],
    {"name": "add", "arguments": '{"a": 1, "b": [2, {"c": null}]}'},
    [{"name": "add", "arguments": '{"b": [2, {"c": null}], "a": 1}'}],
    JSON,
    f"[{JSON}]",
    {"type": "function", "function": {"name": "add", "arguments": CALL["arguments"]}},
    {"name": "add", "parameters": CALL["arguments"]},
  ],
)
def test_a_reference_in_every_form_that_an_answer_may_have(reference):
  assert verify(Check("tool_call", reference), JSON).score == 1
  assert verify(Check("tool_call", reference), JSON.replace("1.0", "2")).score == 0


@pytest.mark.parametrize("arguments", [{}, "", "{}", None])
def test_calls_without_arguments(arguments):
  check = Check("tool_call", {"name": "now", "arguments": arguments})
  assert verify(check, '{"name": "now"}').score == 1
  assert verify(check, '{"name": "now", "arguments": ""}').score == 1
  assert verify(check, '{"name": "now", "arguments": {"x": 1}}').score == 0


@pytest.mark.parametrize(
  "reference",
  [
    {"name": "add", "arguments": '{"a": 1'},
    {"name": "add", "arguments": "a=1"},
    {"name": "add", "arguments": "[1]"},
    {"name": "add", "arguments": [1]},
    {"name": 5, "arguments": {}},
    {"arguments": {"a": 1}},
    [CALL, "add(1)"],
    "add(1)",
    "",
    7,
    {"name": "add", "arguments": {"a": {1, 2}}},
  ],
)
def test_a_reference_that_no_call_equals_is_an_error(reference):
  with pytest.raises(UnusableError, match="the reference of verifier tool_call is malformed"):
    verify(Check("tool_call", reference), JSON)


@pytest.mark.parametrize(
  "response,score",
  [
    (f"```bash\ncurl x\n```\n```json\n{JSON}\n```", 1),
    (f"```\nplan: add\n```\n```tool_call\n{JSON}\n```\n```text\n3\n```", 1),
    (f"~~~json\n{JSON}\n~~~", 1),
    (f"  ```JSON\r\n  {JSON}\r\n  ```\r\n", 1),
    (f'```json title="call.json"\n{JSON}\n```', 1),
    (f"```\n{JSON}\n```", 1),
    (f"```bash\n{JSON}\n```", 0),
    (f"```json\n{JSON}\n```\n```json\n{JSON}\n```", 0),
  ],
)
def test_fenced_calls(response, score):
  assert verify(Check("tool_call", CALL), response).score == score
