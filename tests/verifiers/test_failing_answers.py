"""Answers on which a parser or a library fails: unparsable, never the end of a run."""

import pytest
import reasoning_gym

from poise_jax.verifiers import Check, verify

FAILING = {  # answers on which a parser, a library or Python itself fails
  "structure": ([[1]], ["{[1]: 2}", "9" * 5000, "[" * 900 + "]" * 900, "{{1}: 2}", "[1e999, {}]"]),
  "math": ("5", [r"\boxed{" + "9" * 400 + "}", r"\boxed{" + "(" * 900 + ")" * 900 + "}"]),
  "exact": ("5", ["\ud800", "9" * 5000]),
  "numeric": ("5", ["9" * 5000, "1e999", "-" * 900 + "1", "1/0"]),
  "countdown": (
    {"numbers": [2, 3], "target": 5},
    ["(" * 900 + "1" + ")" * 900, "2**9**9", "9" * 5000],
  ),
  "choice": ("A", ["(" * 5000, "\ud800"]),
  "tool_call": ({"name": "f", "arguments": {}}, ["<tool_call>" + "[" * 9000 + "</tool_call>"]),
  "constraints": ([{"kind": "json"}], ["[" * 90000, "9" * 5000]),
  "last_integer": ("5", ["9" * 5000, "-" * 900]),
}


@pytest.mark.parametrize("name", FAILING)
def test_an_answer_never_makes_a_verifier_fail(name):
  reference, responses = FAILING[name]
  for response in responses:
    verdict = verify(Check(name, reference), response)
    assert verdict.score == 0 and verdict.status in ("ok", "unparsable"), response[:50]


def test_every_generator_survives_answers_of_another_kind():
  """reasoning-gym's scorers raise on many of them."""
  for name in ("prime_factorization", "base_conversion", "time_intervals", "sudoku", "rubiks_cube"):
    entry = reasoning_gym.create_dataset(name, size=1, seed=1)[0]
    check = Check("reasoning_gym", {"dataset": name, "entry": entry}, {"extract": "all"})
    for response in ("word", "", "9" * 400, "[" * 900, "{[1]: 2}", "-1", "nan", "\ud800"):
      verdict = verify(check, response)
      assert verdict.score == 0 and verdict.status in ("ok", "unparsable"), (name, response[:20])
