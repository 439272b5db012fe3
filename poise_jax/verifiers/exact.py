"""Answers that must equal the reference, as text or as a number."""

import re
from collections.abc import Sequence
from fractions import Fraction

from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.extract import answer_or_response
from poise_jax.verifiers.notation import plain_width
from poise_jax.verifiers.thought import judges_answer

_NUMBER = re.compile(
  r"(?<![\w.])[-+\u2212]?[$€£]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d{1,3}(?!\d))?"
  r"(?:\s*/\s*\d+(?:\.\d+)?)?(?:\s*\\?%)?"
)


@judges_answer
def last_integer(reference: str | int, response: str) -> Verdict:
  """1 if the last whole number in the response is the reference, in plain digits; else 0."""
  integers = re.findall(r"(?<![\d.,])-?\d[\d,]*+(?!\.?\d)", response)
  digits = integers[-1].replace(",", "") if integers else ""
  if not 0 < len(digits) <= 4000:  # the longest text that int() reads
    return Verdict(0.0, "unparsable", "no whole number is in the response")
  answer = str(int(digits))
  return Verdict(float(answer == str(reference)), answer=answer)


def _check_integer(reference, **_):
  if not re.fullmatch(r"0|-?[1-9]\d{0,3999}", str(reference)):
    raise UnusableError(
      "the reference of verifier last_integer must be a whole number in plain digits, such as 12, "
      f"got {reference!r:.100}"
    )


last_integer.check_reference = _check_integer


@judges_answer
def exact(
  reference: str | Sequence[str],
  response: str,
  extract: str = "auto",
  ignore_case: bool = False,
) -> Verdict:
  """1 if the answer is the reference, or one of several; white space may differ.

  Args:
    reference: the right text, or all right texts.
    response: the text to judge.
    extract: see extract.find_answer; with "auto" a response in none of the forms counts as a whole.
    ignore_case: whether "Yes" equals "yes".
  """
  references = [reference] if isinstance(reference, str) else reference
  texts = isinstance(references, Sequence) and all(isinstance(text, str) for text in references)
  if not texts or not any(text.strip() for text in references):
    raise UnusableError(
      f"the reference of verifier exact must be a text, or a list of texts, got {reference!r:.100}"
    )
  answer = answer_or_response(response, extract)
  if answer is None:
    return Verdict(0.0, "unparsable", f"no answer is in the form {extract}")

  def normal(text):
    text = " ".join(text.split())
    return text.casefold() if ignore_case else text

  return Verdict(float(normal(answer) in map(normal, references)), answer=answer)


def number(text: str) -> Fraction | None:
  """The last number in a text, None if there is none.

  Reads signs, thousands separators, decimals, powers of ten (1.5e3), fractions (3/4) and percent.
  """
  numbers = _NUMBER.findall(plain_width(text[-2000:]))
  if not numbers:
    return None
  digits = re.sub(r"[,$€£\s\\%+]", "", numbers[-1].replace("\u2212", "-"))
  numerator, _, denominator = digits.replace("e+", "e").partition("/")
  if denominator and not Fraction(denominator):
    return None
  value = Fraction(numerator) / (Fraction(denominator) if denominator else 1)
  return value / 100 if numbers[-1].endswith("%") else value


@judges_answer
def numeric(
  reference: str | float,
  response: str,
  extract: str = "auto",
  relative: float = 1e-6,
  absolute: float = 0.0,
) -> Verdict:
  """1 if the last number of the answer is the reference within a tolerance, else 0.

  Args:
    reference: a number, or a text such as "1,234.5" or "3/4". 50% is 0.5.
    response: the text to judge.
    extract: see extract.find_answer; with "auto" a response in none of the forms counts as a whole.
    relative: tolerance as a fraction of the reference. The larger tolerance applies.
    absolute: tolerance in the unit of the reference.
  """
  expected = number(str(reference))
  if expected is None:
    raise UnusableError(f"the reference of verifier numeric must be a number, got {reference!r}")
  if not (relative >= 0 and absolute >= 0):
    raise UnusableError(
      f"the tolerances of verifier numeric must be at least 0, got {relative=} and {absolute=}"
    )
  answer = answer_or_response(response, extract)
  value = None if answer is None else number(answer)
  if value is None:
    return Verdict(0.0, "unparsable", "no number is in the answer")
  correct = abs(value - expected) <= max(relative * abs(expected), absolute)
  return Verdict(float(correct), answer=str(value))
