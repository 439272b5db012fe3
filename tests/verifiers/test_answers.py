"""A verdict carries the answer that the verifier read, as it counts in a majority vote."""

import pickle

import pytest

from poise_jax.verifiers import Check, Verdict, verify


@pytest.mark.parametrize(
  "response,answer",
  [("1234", "1234"), ("it is 1,234.", "1234"), ("12 or 0099", "99"), ("1.5", None), ("", None)],
)
def test_an_integer_is_read_in_plain_digits(response, answer):
  assert verify(Check("last_integer", "1234"), response).answer == answer


@pytest.mark.parametrize(
  "check,responses,answer,other",
  [
    (
      Check("math", "1/2"),
      ["So \\boxed{1/2}.", "Answer: $1/2$", "#### 1/2"],
      "1/2",
      "\\boxed{1/3}",
    ),
    (
      Check("numeric", 0.5),
      ["Answer: 0.50", "it is 1/2", "\\boxed{50\\%}"],
      "1/2",
      "Answer: 0.51",
    ),
    (
      Check("choice", "B"),
      ["The answer is (B).", "Answer: b", "\\boxed{\\text{B}}"],
      "b",
      "Answer: C",
    ),
    (
      Check("exact", "Oslo"),
      ["Answer: Oslo", "I think <answer> OSLO </answer>"],
      "oslo",
      "Answer: Rome",
    ),
    (
      Check("exact", "Oslo", {"extract": "boxed"}),
      ["\\boxed{Oslo} or\nAnswer: Rome", "\\boxed{oslo}"],
      "oslo",
      "\\boxed{Rome}",
    ),
    (
      Check("countdown", {"numbers": [2, 3], "target": 6}),
      ["2 * 3", "Answer: 2 * 3", "\\boxed{2  * 3}"],
      "2 * 3",
      "3 * 2",
    ),
  ],
  ids=lambda value: value.verifier if isinstance(value, Check) else "",
)
def test_answers_that_a_verifier_reads_alike_are_the_same_text(check, responses, answer, other):
  assert {verify(check, response).answer for response in responses} == {answer}
  assert verify(check, other).answer not in (answer, None)


@pytest.mark.parametrize(
  "check",
  [
    Check("math", "5"),
    Check("choice", "B"),
    Check("numeric", 5),
    Check("exact", "5", {"extract": "boxed"}),
    Check("countdown", {"numbers": [5], "target": 5}),
    Check("code", {"tests": ["assert f() == 5"]}),
    Check("tool_call", {"name": "f"}),
  ],
  ids=lambda check: check.verifier,
)
def test_an_unparsable_response_has_no_answer(check):
  verdict = verify(check, "It remains unclear.")
  assert (verdict.status, verdict.answer) == ("unparsable", None)


@pytest.mark.parametrize(
  "check",
  [
    Check("user_rewards:half", None),  # returns a number
    Check("user_rewards:follow", "", {}),
    Check("structure", [1]),
    Check("constraints", [{"kind": "no_commas"}]),
  ],
  ids=lambda check: check.verifier,
)
def test_by_default_an_answer_stands_in_its_usual_place_or_is_the_whole_response(check):
  assert verify(check, "so <answer>The Cat</answer> it is").answer == "the cat"
  assert verify(check, " The  Cat\nsat ").answer == "the cat sat"
  assert verify(check, "the dog").answer == "the dog"
  assert verify(check, " \n").answer is None


def test_the_default_reads_the_form_that_the_options_name():
  check = Check("user_rewards:any_options", None, {"extract": "boxed"})
  assert verify(check, "\\boxed{Oslo} or\nAnswer: Rome").answer == "oslo"


def test_a_users_verdict_keeps_its_answer_and_parts():
  verdict = verify(Check("user_rewards:vowels", None), "A tree")
  assert verdict == Verdict(0.3, answer="3 vowels", parts={"a": 0.1, "e": 0.2})
  assert pickle.loads(pickle.dumps(verdict)) == verdict


def test_a_weighted_check_has_the_answer_of_its_first_part_and_the_scores_of_all():
  parts = {
    "sum": (0.5, Check("last_integer", "5")),
    "half": (0.25, Check("user_rewards:half", None)),
    "short": (0.25, Check("constraints", [{"kind": "words", "at_most": 1}])),
  }
  verdict = verify(Check("weighted", parts), "it is 5")
  assert verdict == Verdict(0.625, answer="5", parts={"sum": 1.0, "half": 0.5, "short": 0.0})
  verdict = verify(Check("weighted", parts), "it is five")
  assert (verdict.status, verdict.answer) == ("unparsable", None)
