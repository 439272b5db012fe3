"""Mathematical answers, compared with labels made by hand."""

import pytest
from labelled_answers import ANSWERS

from poise_jax.verifiers import Check, UnusableError, verify
from poise_jax.verifiers.extract import find_answer
from poise_jax.verifiers.math import too_large
from poise_jax.verifiers.pool import Pool

# (reference, answer) judged wrongly, see docs/results/verifiers/README.md. A fix removes its row.
KNOWN_MISTAKES = {("-1", "i^2"), (r"\ln 2", r"\log_e 2"), ("5", "5?")}


def test_verdicts_agree_with_the_labels():
  assert len(ANSWERS) >= 200
  with Pool(2, time_limit=20) as pool:
    checks = [Check("math", reference) for _, reference, _, _ in ANSWERS]
    verdicts = pool.score(checks, [response for _, _, response, _ in ANSWERS])
  mistakes = set()
  for (kind, reference, response, right), verdict in zip(ANSWERS, verdicts, strict=True):
    assert verdict.status in ("ok", "unparsable"), (kind, reference, response[-100:], verdict)
    if verdict.score != right:
      mistakes.add((reference, find_answer(response)))
  assert mistakes == KNOWN_MISTAKES


@pytest.mark.parametrize(
  "text", ["10^10^10", "10^{10^{10}}", "9^{9^{9}}", "2^{10000000}", "9**9**9"]
)
def test_expressions_that_take_sympy_forever_are_refused(text):
  assert too_large(text)


@pytest.mark.parametrize(
  "text", ["2^{2^{3}}", "10^{100}", "x^{n^2}", "5!", "2^{2023}", r"\binom{20}{10}"]
)
def test_ordinary_powers_are_accepted(text):
  assert not too_large(text)


@pytest.mark.parametrize("response", ["", "no idea", r"\boxed{}", r"\boxed{10^{10^{10}}}"])
def test_without_a_readable_answer_a_response_is_unparsable(response):
  assert verify(Check("math", "5"), response).status == "unparsable"


def test_an_empty_reference_is_an_error():
  with pytest.raises(UnusableError, match="is empty"):
    verify(Check("math", "$ $"), "5")
