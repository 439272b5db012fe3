"""Where in a response the answer is found."""

import pytest

from poise_jax.verifiers.extract import find_answer


@pytest.mark.parametrize(
  "response,answer",
  [
    (r"so \boxed 31", "31"),
    (r"so $\boxed4$.", "4"),
    (r"so $\boxed x$", "x"),
    (r"\fbox -2.5", "-2.5"),
    (r"\boxed 3, no: \boxed{4}", "4"),
    (r"\boxed{3}, no: \boxed 4", "4"),
    (r"\boxed 31x + 1", None),
    (r"\boxed 3} of {", None),
    ("🎉 **The Final Answer:** 31", "31"),
    ("Thus, my answer: 31", "31"),
    ("It follows. Answer: 31", "31"),
    ("Answer：31", "31"),
    ("答案：31", "31"),
    ("Final Answer → 31", "31"),
    ("Answer = 31", "31"),
    ("Answer:\n\n31\n\nI hope that helps.", "31"),
    ("**Answer:**\n$$\n31\n$$\nDone.", "31"),
    ("Answer:\n\\[ x =\n31 \\]", "x =\n31"),
    ("## Answer\n31", "31"),
    ("**Final Answer**\n\n**31**", "31"),
    ("The final answer\n31", None),
    ("Answer:\n\n\n\n\n31", None),
    ("Answer:", None),
    ("## Answer\n", None),
    ("Their answers: 31", None),
    ("answer 31", None),
  ],
)
def test_forms_of_an_answer(response, answer):
  assert find_answer(response) == answer


def test_the_last_form_counts():
  assert find_answer("Answer:\n5\n\n**Final Answer**\n6") == "6"
  assert find_answer("**Final Answer**\n6\nso Answer: 7") == "7"
  assert find_answer("**Final Answer**\nThe total is \\boxed{8}.") == "8"
