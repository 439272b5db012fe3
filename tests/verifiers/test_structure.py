"""Answers that are data."""

import pytest

from poise_jax.verifiers import Check, UnusableError, verify

GRID = {"header": ["House", "Name"], "rows": [["1", "alice"], ["2", "bob"]]}


def score(reference, response):
  return verify(Check("structure", reference), response).score


@pytest.mark.parametrize(
  "reference,response",
  [
    ([[0, 1], [2, 3]], "I see. <answer>[[0,1],\n [2, 3]]</answer>"),
    ([[0, 1]], "<answer>[[9]]</answer> no: <answer>[[0, 1]]</answer>"),
    (["crow", "owl"], "<answer>['Crow', 'owl ']</answer>"),
    (GRID, '<answer>{"rows": [[1, "Alice"], [2, "Bob"]], "header": ["House", "Name"]}</answer>'),
    ({"output": {"n": [1, 2]}}, r'thus \boxed{"output": {"n": [1, 2.0]}}'),
    ({"output": True}, '\\boxed{\n```json\n{"output": true}\n```\n}'),
    ("Xiao", "<answer> xiao </answer>"),
    ([1, 2], "[1, 2]"),
    (5, r"\boxed{4} rather \boxed{5}"),
    # A reference that is text is read as an answer is.
    ("[[0, 1], [2, 3]]", "<answer>[[0, 1], [2, 3]]</answer>"),
    ('{"output": [1, null]}', r'\boxed{"output": [1, null]}'),
    ("['crow', 'owl']", '["crow", "owl"]'),
    ("5", "<answer>5.0</answer>"),
    ("True", "<answer>true</answer>"),
    ("1,000", "<answer>1,000</answer>"),
    # Values that Python does not compare by themselves.
    ("Nan", "<answer>nan</answer>"),
    (["Infinity", 1], '["infinity", 1]'),
    ([float("nan")], "[NaN]"),
    ([10**400], f"[{10**400}]"),
    # Fences.
    ([1, 2], "```bash\nls\n```\nso\n```json\n[1, 2]\n```"),
    ([1, 2], "```json\n[1, 2]\n```\n```text\n[3]\n```"),
    ([1, 2], "<answer>\r\n```json\r\n[1, 2]\r\n```\r\n</answer>"),
    ([1, 2], "~~~\n[1, 2]\n~~~"),
    ([1, 2], '   ```json title="a.json"\n   [1,\n    2]\n   ```'),
  ],
)
def test_right_answers(reference, response):
  assert score(reference, response) == 1.0


@pytest.mark.parametrize(
  "reference,response",
  [
    ([[0, 1], [2, 3]], "<answer>[[0, 1], [2, 4]]</answer>"),
    ([[0, 1], [2, 3]], "<answer>[[0, 1]]</answer>"),
    ([[0, 1]], "<answer>[[0, 1]]</answer> no: <answer>[[9]]</answer>"),
    (["crow", "owl"], "<answer>['owl', 'crow']</answer>"),
    (GRID, '<answer>{"rows": [[1, "Bob"], [2, "Alice"]], "header": ["House", "Name"]}</answer>'),
    ({"output": 5}, r"\boxed{5}"),
    ({"output": True}, r'\boxed{"output": 1}'),
    ([1, 2], ""),
    ([1, 2], "[" * 100_000),
    ([1, 2], "<answer>{1, 2}</answer>"),
    ([2**60], f"[{2**60 + 1}]"),  # equal as floats
    ("[1, 2]", "<answer>[1, 3]</answer>"),
    ([1, 2], "```json\n[1, 2]\n```\n```json\n[3]\n```"),
    ([1, 2], "<answer>__import__('os').abort()</answer>"),
  ],
)
def test_wrong_answers(reference, response):
  assert score(reference, response) == 0.0


@pytest.mark.parametrize("reference", ["", " \n", {1, 2}, [b"x"], {"a": 1j}])
def test_a_reference_that_no_answer_equals_is_an_error(reference):
  with pytest.raises(UnusableError, match="the reference of verifier structure is"):
    score(reference, "[1, 2]")
