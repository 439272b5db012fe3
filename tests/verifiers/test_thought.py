"""No verifier sees the thought: each of VERIFIERS, called directly and by a check."""

import importlib

import pytest

from poise_jax.verifiers import VERIFIERS, Check, Verdict, verify
from poise_jax.verifiers.thought import after_thought

ADD = {"tests": ["assert add(2, 3) == 5"]}
PROGRAM = "```python\ndef add(a, b):\n  return a {} b\n```"
CALL = '<tool_call>{{"name": "sum", "arguments": {{"x": {}}}}}</tool_call>'
SUM = {"dataset": "chain_sum", "entry": {"question": "4 + 3", "answer": "7", "metadata": {}}}
# verifier -> (reference, right answer, wrong answer)
ANSWERS = {
  "math": ("7", r"So \boxed{7}.", r"So \boxed{8}."),
  "choice": ("B", "Answer: B", "Answer: C"),
  "exact": ("owl", "Answer: owl", "Answer: crow"),
  "numeric": (7, "It is 7.", "It is 8."),
  "last_integer": ("7", "4 + 3 = 7", "4 + 3 = 8"),
  "countdown": ({"numbers": [2, 5], "target": 10}, "Answer: 2 * 5", "Answer: 2 + 5"),
  "constraints": ([{"kind": "no_commas"}], "One two", "One, two"),
  "tool_call": ({"name": "sum", "arguments": {"x": 7}}, CALL.format(7), CALL.format(8)),
  "code": (ADD, PROGRAM.format("+"), PROGRAM.format("-")),
  "reasoning_gym": (SUM, "<answer>7</answer>", "<answer>8</answer>"),
  "structure": ([4, 3], "<answer>[4, 3]</answer>", "<answer>[3]</answer>"),
  "weighted": (
    {"sum": (0.75, Check("math", "7")), "tea": (0.25, Check("exact", "7"))},
    r"\boxed{7}",
    r"\boxed{8}",
  ),
}


def call(verifier, reference, response):
  """The verdict of a function of VERIFIERS, called directly."""
  module, _, name = VERIFIERS[verifier].partition(":")
  return getattr(importlib.import_module(module), name)(reference, response)


def ask(verifier, reference, response):
  """The verdict on a check."""
  return verify(Check(verifier, reference), response)


@pytest.mark.parametrize("judge", [call, ask])
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_what_follows_the_thought_is_judged(verifier, judge):
  reference, right, wrong = ANSWERS[verifier]
  for thought in ("<think>{}</think>\n", "{}\n</think>\n", "<think>a</think> {} </think>"):
    assert judge(verifier, reference, thought.format(wrong) + right).score == 1
    verdict = judge(verifier, reference, thought.format(right) + wrong)
    assert (verdict.score, verdict.status) == (0, "ok")
  assert judge(verifier, reference, right).score == 1
  assert judge(verifier, reference, f"<think></think>{right}").score == 1


@pytest.mark.parametrize("judge", [call, ask])
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_a_thought_that_does_not_end_is_unparsable(verifier, judge):
  reference, right, _ = ANSWERS[verifier]
  for response in (f"<think>{right}", f"<think>a</think>{right}<think>{right}", f"{right}<think>"):
    verdict = judge(verifier, reference, response)
    assert (verdict.score, verdict.status, verdict.answer) == (0, "unparsable", None)


@pytest.mark.parametrize("verifier", sorted(set(VERIFIERS) - {"constraints", "code"}))
def test_a_response_that_ends_with_its_thought_has_no_answer(verifier):
  reference, right, _ = ANSWERS[verifier]
  verdict = verify(Check(verifier, reference), f"<think>{right}</think>")
  assert verdict.score == 0
  assert not verdict.answer


@pytest.mark.parametrize("marker", ["</think>", "[/THINK]", "**Final**"])
@pytest.mark.parametrize("verifier", sorted(set(VERIFIERS) - {"weighted"}))
def test_the_marker_of_a_check_must_occur(verifier, marker):
  reference, right, wrong = ANSWERS[verifier]
  check = Check(verifier, reference, think_end=marker)
  assert verify(check, f"{wrong} {marker}\n{right}").score == 1
  assert verify(check, f"{right} {marker}\n{wrong}").score == 0
  assert verify(check, f"{right} {marker} no {marker} {right}").score == 1
  verdict = verify(check, right)
  assert (verdict.score, verdict.status, verdict.answer) == (0, "unparsable", None)


def test_a_vote_is_read_behind_the_thought():
  exact = Check("exact", "owl", {"extract": "answer_line"})
  assert verify(exact, "<think>Answer: crow</think>Answer: Owl").answer == "owl"
  own = Check("user_rewards:half", "")  # reports no answer of its own
  assert verify(own, r"<think>\boxed{3}</think> I say \boxed{4}") == Verdict(0.5, answer="4")
  assert verify(own, "<think>3</think> four ") == Verdict(0.5, answer="four")
  assert verify(own, r"<think>\boxed{3}") == Verdict(0.5, answer=None)
  marked = Check("user_rewards:half", "", think_end="[/THINK]")
  assert verify(marked, r"\boxed{3} [/THINK] \boxed{4}").answer == "4"
  assert verify(marked, r"\boxed{3}").answer is None


def test_a_users_function_and_a_format_see_the_whole_response():
  thought = "<think>aeiou"
  assert verify(Check("user_rewards:follow", f"{thought}</think>"), f"{thought}</think>").score == 1
  assert verify(Check("user_rewards:follow", thought, think_end="</t>"), thought).score == 1
  form = {"kind": "matches", "pattern": "<think>.+</think>.+"}
  for think_end in ("", "</think>"):
    check = Check("constraints", [form], think_end=think_end)
    assert verify(check, "<think>a,\nb</think>c").score == 1
    assert verify(check, "<think>a,\nb").score == 0
  short = {"kind": "words", "at_most": 2}
  both = Check("constraints", [form, short])
  assert verify(both, "<think>one two three</think>four").score == 1
  assert verify(both, "<think>one</think>two three four").score == 0
  assert verify(both, "<think>one").status == "unparsable"


@pytest.mark.parametrize(
  "response,think_end,answer",
  [
    ("a", "", "a"),
    ("", "", ""),
    ("<think>a</think>b", "", "b"),
    ("a</think>b</think>c", "", "c"),
    ("a</think>", "", ""),
    ("<think>a", "", None),
    ("a<think>b</think>c<think>", "", None),
    ("a[E]b", "[E]", "b"),
    ("a[E]b[E]c", "[E]", "c"),
    ("ab", "[E]", None),
    ("<think>a</think>b", "[E]", None),
    ("<think>a[E]b</think>c", "[E]", "c"),
    ("a[E]<think>b", "[E]", None),
  ],
)
def test_the_part_behind_the_thought(response, think_end, answer):
  assert after_thought(response, think_end) == answer
