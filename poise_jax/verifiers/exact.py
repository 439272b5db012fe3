"""Answers that must equal the reference, as text or as a number."""

import re
from collections.abc import Sequence
from fractions import Fraction

from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.extract import answer_or_response
from poise_jax.verifiers.thought import judges_answer

_NUMBER = re.compile(
  r"(?<![\w.])[-+\u2212]?[$€£]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d{1,3}(?!\d))?"
  r"(?:\s*/\s*\d+(?:\.\d+)?)?(?:\s*\\?%)?"
)


@judges_answer
def last_integer(reference: str, response: str) -> Verdict:
  """1 if the last whole number in the response is the reference, in plain digits; else 0."""
  integers = re.findall(r"(?<![\d.,])-?\d[\d,]*+(?!\.?\d)", response)
  digits = integers[-1].replace(",", "") if integers else ""
  if not 0 < len(digits) <= 4000:  # the longest text that int() reads
    return Verdict(0.0, "unparsable", "no whole number is in the response")
  answer = str(int(digits))
  return Verdict(float(answer == reference), answer=answer)


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
  answer = answer_or_response(response, extract)
  if answer is None:
    return Verdict(0.0, "unparsable", f"no answer is in the form {extract}")

  def normal(text):
    text = " ".join(text.split())
    return text.casefold() if ignore_case else text

  references = [reference] if isinstance(reference, str) else reference
  return Verdict(float(normal(answer) in map(normal, references)), answer=answer)


def number(text: str) -> Fraction | None:
  """The last number in a text, None if there is none.

  Reads signs, thousands separators, decimals, powers of ten (1.5e3), fractions (3/4) and percent.
  """
  numbers = _NUMBER.findall(text[-2000:])
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
  answer = answer_or_response(response, extract)
  value = None if answer is None else number(answer)
  if value is None:
    return Verdict(0.0, "unparsable", "no number is in the answer")
  correct = abs(value - expected) <= max(relative * abs(expected), absolute)
  return Verdict(float(correct), answer=str(value))
