"""Answers that are data."""

import pytest

from poise_jax.verifiers import Check, verify

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
    ([1, 2], "<answer>__import__('os').abort()</answer>"),
  ],
)
def test_wrong_answers(reference, response):
  assert score(reference, response) == 0.0
