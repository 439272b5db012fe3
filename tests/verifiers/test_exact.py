"""Verifiers that compare texts and numbers."""

import pytest

from poise_jax.verifiers import Check, UnusableError, verify
from poise_jax.verifiers.exact import last_integer


@pytest.mark.parametrize(
  "text,expected",
  [
    ("42", "42"),
    ("", None),
    ("no number, none.", None),
    ("-", None),
    ("-34", "-34"),
    ("= -34.", "-34"),
    ("the answer is 7.", "7"),
    ("1 2 3", "3"),
    ("12 13 = 132", "132"),
    ("1,234", "1234"),
    ("-1,234,567!", "-1234567"),
    ("007", "7"),
    ("-0", "0"),
    ("3.5", None),  # a decimal is not an integer, nor are its digits
    ("4 or 3.5", "4"),
    ("3.5, so 4", "4"),
    ("3.14159", None),
    ("-2.5", None),
    ("1,234.5", None),
    ("12-5", "5"),  # a difference written without spaces, not the number -5
    ("3,", "3"),
    ("12\n", "12"),
    ("x=5y", "5"),
    ("1, 2, 3", "3"),
    (".5", None),
  ],
)
def test_the_last_integer_of_a_text(text, expected):
  wrong, right = (last_integer(reference, text) for reference in ("none", str(expected)))
  assert wrong.score == 0.0
  assert right.score == (expected is not None)
  assert right.status == ("unparsable" if expected is None else "ok")


@pytest.mark.parametrize(
  "reference,response,options,score",
  [
    ("a cat", "Answer: a  cat", {}, 1),
    ("a cat", "a cat", {}, 1),
    ("a cat", "A cat", {}, 0),
    ("a cat", "A cat", {"ignore_case": True}, 1),
    (["x", "y"], r"\boxed{y}", {}, 1),
    (["x", "y"], r"\boxed{xy}", {}, 0),
    ("y", "Answer: x\n<answer>y</answer>", {}, 1),
    ("y", "Answer: x\n<answer>y</answer>", {"extract": "answer_line"}, 0),
  ],
)
def test_exact(reference, response, options, score):
  assert verify(Check("exact", reference, options), response).score == score


def test_an_answer_in_another_form_than_extract_is_unparsable():
  assert verify(Check("exact", "y", {"extract": "boxed"}), "y").status == "unparsable"
  with pytest.raises(UnusableError, match="unknown extract 'box'; did you mean 'boxed'\\?"):
    verify(Check("exact", "y", {"extract": "box"}), "y")


@pytest.mark.parametrize(
  "reference,response,options,score",
  [
    ("1234.5", "It costs $1,234.50 in all", {}, 1),
    (0.75, "Answer: 3/4", {}, 1),
    ("50%", "0.5", {}, 1),
    (1500, r"\boxed{1.5e3}", {}, 1),
    (-3, "The result is −3", {}, 1),
    (1234.5, "Answer：１，２３４．５", {}, 1),
    (7, "### Final Answer\n\n7", {}, 1),
    (3, "12-3", {}, 1),
    (3.14159, "3.14", {}, 0),
    (3.14159, "3.14", {"absolute": 0.01}, 1),
    (100, "101", {"relative": 0.02}, 1),
    (100, "103", {"relative": 0.02}, 0),
    (5, "first 5 then 6", {}, 0),
    (0, "1/0", {}, 0),
  ],
)
def test_numeric(reference, response, options, score):
  assert verify(Check("numeric", reference, options), response).score == score


def test_numeric_needs_a_number_in_response_and_reference():
  assert verify(Check("numeric", 5), "five").status == "unparsable"
  with pytest.raises(UnusableError, match="must be a number, got 'five'"):
    verify(Check("numeric", "five"), "5")
