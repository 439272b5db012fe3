"""Multiple choice."""

import pytest

from poise_jax.verifiers import Check, UnusableError, verify

CITIES = {"A": "Rome", "B": "Paris", "C": "Bern"}


@pytest.mark.parametrize(
  "response",
  [
    r"\boxed{B}",
    r"\boxed{\text{(B)}}",
    "Answer: B",
    "**Answer:** (B)",
    "The answer is (b).",
    "A is wrong, so the correct answer is B: Paris.",
    "It is Paris.\n\nB",
    "Answer: A\nNo.\nAnswer: B.",
    "<answer>B</answer>",
    "Answer: B. Paris",
    "Answer: Paris",
    r"\boxed{\textbf{B}}",
    "**Final Answer**\n\nB",
    "✅ Answer: **B**",
    "Answer：（Ｂ）",
  ],
)
def test_the_right_letter_is_chosen(response):
  assert verify(Check("choice", "B", {"choices": CITIES}), response).score == 1


@pytest.mark.parametrize(
  "response",
  [r"\boxed{A}", "Answer: A", "The answer is C, not B.", "Answer: B or C", "Answer: B. Bern", ""],
)
def test_another_letter_or_none_is_chosen(response):
  assert verify(Check("choice", "B", {"choices": CITIES}), response).score == 0


@pytest.mark.parametrize(
  "response", ["A dog has four legs.", "", "I think, therefore I am", r"\boxed{Q}"]
)
def test_without_a_choice_a_response_is_unparsable(response):
  assert verify(Check("choice", "A", {"choices": CITIES}), response).status == "unparsable"


def test_a_reference_must_be_a_letter():
  with pytest.raises(UnusableError, match="must be one of A, B, C, got 'Paris'"):
    verify(Check("choice", "Paris", {"choices": CITIES}), "B")
