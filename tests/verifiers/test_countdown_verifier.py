"""Countdown expressions."""

import pytest

from poise_jax.verifiers import Check, verify


@pytest.mark.parametrize(
  "response,score,status",
  [
    ("<answer>(25 - 5) * 3</answer>", 1, "ok"),
    (r"\boxed{(25-5)\times 3 = 60}", 1, "ok"),
    ("Answer: 3 × (25 − 5)", 1, "ok"),
    ("(25-5)*3", 1, "ok"),
    ("Answer：（２５－５）×３", 1, "ok"),
    ("25² - 5 * 3", 0, "unparsable"),
    ("<answer>60</answer>", 0, "ok"),  # not an expression of the numbers
    ("<answer>25 + 5 * 7</answer>", 0, "ok"),
    ("<answer>25 * 3 - 5 - 5 - 5</answer>", 0, "ok"),  # uses a number more than once
    ("<answer>25 + 5 + 3</answer>", 0, "ok"),
    ("<answer>25 / (5 - 5) + 3</answer>", 0, "ok"),
    ("<answer>__import__('os').getpid()</answer>", 0, "unparsable"),
    ("<answer>25 ** 5 ** 3</answer>", 0, "unparsable"),
    ("<answer>" + "(" * 5000 + "</answer>", 0, "unparsable"),
    ("<answer>25 5 3</answer>", 0, "unparsable"),
    ("", 0, "unparsable"),
  ],
)
def test_score_and_status(response, score, status):
  verdict = verify(Check("countdown", {"numbers": [25, 5, 3], "target": 60}), response)
  assert (verdict.score, verdict.status) == (score, status)


def test_numbers_may_stay_unused_without_all_numbers():
  reference = {"numbers": [25, 5, 3], "target": 20}
  assert verify(Check("countdown", reference), "25 - 5").score == 0
  assert verify(Check("countdown", reference, {"all_numbers": False}), "25 - 5").score == 1
