"""Mathematical answers, compared as numbers, as text, or by math-verify (sympy)."""

import logging
import re
from fractions import Fraction

import math_verify

from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.extract import LONGEST, last_box, last_line, last_tag
from poise_jax.verifiers.thought import judges_answer

# Silences warnings that math-verify's time limits are off: the pool's limit also stops C code.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

LONGEST_ANSWER = 400  # characters of an answer that is passed to sympy
LARGEST_EXPONENT = 100_000  # in an answer that is passed to sympy
_HASHES = re.compile(r"^####[ \t]*(\S.*)$", re.MULTILINE)
_PHRASE = re.compile(
  r"\b(?:the\s+)?(?:final\s+)?(?:answer|result|solution)\s+(?:is|equals|=)\s*:?[ \t]*([^\n]+)",
  re.IGNORECASE,
)
_TEXT = re.compile(
  r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname|rm)\s*\{([^{}]*)\}"
)
_SPACE = re.compile(
  r"(?<!\\)\\[,;:! ]|\\q?quad\b|~|\\(?:left|right|displaystyle|big|Big|bigl|bigr)(?![a-zA-Z])"
)
_PLAIN_NUMBER = re.compile(
  r"(?P<sign>[-+]?)(?P<whole>\d{1,3}(?:(?:,|\{,\})\d{3})+|\d*)(?P<decimal>\.\d*)?"
  r"(?:(?:e|\*10\^|\\times10\^|\\cdot10\^)\{?(?P<power>[-+]?\d{1,4})\}?)?(?P<percent>\\?%)?"
)
_FRACTION = re.compile(
  r"(?P<sign>[-+]?)(?P<whole>\d{1,9})?(?:\\[dtc]?frac\{?(-?\d{1,30})\}?\{?(-?\d{1,30})\}?|(?<!\d)(-?\d{1,30})/(\d{1,30}))"
  r"(?P<percent>\\?%)?"
)
_WITH_UNIT = re.compile(
  r"(.*?[\d.}%])\s*"
  r"(\^?\s*\{?\\circ\}?|°"
  r"|\\(?:text|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?"
  r"|(?<![a-zA-Z\\^_{])[a-zA-Z]{2,}\.?(?: [a-zA-Z]+)*(?:\^\{?[23]\}?)?"
  r"|(?<=\s)[a-zA-Z]{1,2}(?:\^\{?[23]\}?)?)"
)
_INEQUALITY = re.compile(r"[<>]|\\[lg]eq?(?![a-zA-Z])")
_ASIDE = re.compile(r"\.\s|\s+(?:because|since|so|which|as)\s")
_REPEATING = re.compile(
  r"(?P<sign>[-+]?)(?P<whole>\d{0,9})\.(?P<decimal>\d{0,9})\\(?:overline|bar)\{?(?P<period>\d{1,20})\}?"
  r"(?P<percent>)"
)
_UNITS = {
  "": "", "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm",
  "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "inch": "in", "inche": "in",
  "foot": "ft", "feet": "ft", "yard": "yd", "mile": "mi", "gram": "g", "kilogram": "kg",
  "liter": "l", "litre": "l", "milliliter": "ml", "second": "s", "sec": "s", "minute": "min",
  "hour": "h", "hr": "h", "degree": "deg", "circ": "deg", "°": "deg", "dollar": "$", "usd": "$",
  "cent": "cent", "euro": "€", "pound": "lb", "percent": "%",
}  # fmt: skip


@judges_answer
def math(reference: str, response: str) -> Verdict:
  """1 if the response's answer equals the reference mathematically, else 0.

  The answer is the last balanced \\boxed{...}, "Answer: ..." line, <answer> tag or "#### ..." line,
  whichever comes last; without any of them, what follows the last "the answer is".

  Args:
    reference: LaTeX or plain text, with or without $ and \\boxed.
    response: only its last extract.LONGEST characters are read.
  """
  gold = clean(reference)
  if not gold:
    raise UnusableError(f"the reference of verifier math is empty: {reference!r}")
  answer = clean(final_answer(response[-LONGEST:]) or "")
  if not answer:
    return Verdict(0.0, "unparsable", "no answer is in the response")
  equal = _equal_without_sympy(gold, answer)
  if equal is not None:
    return Verdict(float(equal), answer=answer)
  if reason := too_large(answer):
    return Verdict(0.0, "unparsable", f"the answer {reason}")
  if too_large(gold):
    return Verdict(0.0, answer=answer)  # only the same text as the reference's is right
  limits = {"parsing_timeout": None}
  parsed = math_verify.parse(f"${answer}$", fallback_mode="no_fallback", **limits)
  if not parsed:
    return Verdict(0.0, "unparsable", f"math-verify cannot read {answer!r}")
  expected = math_verify.parse(f"${gold}$", fallback_mode="no_fallback", **limits)
  equal = math_verify.verify(expected, parsed, timeout_seconds=None)
  if not equal and _INEQUALITY.search(answer) and not _INEQUALITY.search(gold):
    # math-verify understands x < 3 only as the first argument.
    equal = math_verify.verify(parsed, expected, timeout_seconds=None)
  return Verdict(float(equal), answer=answer)


def final_answer(text: str) -> str | None:
  """The text that a response gives as its answer, None if it gives none."""
  hashes = list(_HASHES.finditer(text))
  boxed = last_box(text)
  places = [boxed, last_line(text), last_tag(text)]
  places += [(m.start(), m.group(1)) for m in hashes[-1:]]
  answers = [place for place in places if place]
  if not answers:
    answers = [(m.start(), m.group(1)) for m in list(_PHRASE.finditer(text))[-1:]]
  if not answers:
    return None
  answer = max(answers)[1]
  inner = last_box(answer)  # a box in a line, in a tag or in another box
  return inner[1] if inner else answer if max(answers) == boxed else _ASIDE.split(answer)[0]


def clean(text: str) -> str:
  """An answer without what does not matter: boxes, dollar signs, spacing, a full stop."""
  while (box := last_box(text)) is not None:
    text = box[1]
  text = text.replace("−", "-").replace("–", "-").replace("\\$", "$").replace("$", " ")
  text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text).replace(r"\varnothing", r"\emptyset")
  text = re.sub(r"\\dfrac|\\tfrac|\\cfrac", r"\\frac", _SPACE.sub(" ", text))
  text = re.sub(r"\*\*(.+?)\*\*", r"\1", text)
  return re.sub(r"\s+", " ", text).strip().rstrip(".,;:").strip()


def _equal_without_sympy(gold: str, answer: str) -> bool | None:
  """Whether two cleaned answers are equal, None if it takes algebra to decide."""
  if _text(gold) == _text(answer):
    return True
  sides = [re.fullmatch(r"([a-zA-Z](?:_\d)?)\s*=\s*([^=]+)", x) for x in (gold, answer)]
  if all(sides) and sides[0][1] != sides[1][1]:
    return False  # the values of two different variables
  numbers = _number(sides[0][2] if sides[0] else gold), _number(sides[1][2] if sides[1] else answer)
  if None not in numbers:
    (a, unit_a), (b, unit_b) = numbers
    if "%" in (unit_a, unit_b) and unit_a != unit_b:  # 50% equals both 0.5 and 50
      percent, other = (a, b) if unit_a == "%" else (b, a)
      return other in (percent, 100 * percent)
    return a == b and (unit_a == unit_b or not unit_a or not unit_b)
  words = [re.fullmatch(r"[a-z][a-z' -]+", _text(x)) for x in (gold, answer)]
  if all(words) or any(words) and not all(numbers) and any(n is not None for n in numbers):
    return False  # two different words, or a word and a number
  return None


def _text(text):
  """An answer for comparison as text: without \\text and spaces, words in lower case."""
  text = _TEXT.sub(lambda m: m.group(1), text).strip(" .")
  plain = re.sub(r"\s+", "", text)
  words = re.fullmatch(r"\(?[A-Za-z][A-Za-z' -]+\)?|\([A-Za-z]\)|[A-Z]\.", text)
  return re.sub(r"[().]", "", text).strip().lower() if words else plain


def _number(text: str) -> tuple[Fraction, str] | None:
  """A plain number and its unit ("" for none), None if the text is anything else."""
  text = re.sub(r"^(?:\\text\{)?\s*(?:approximately|about|\\approx)\s*\}?", "", text)
  unit = ""
  if m := re.match(r"[-+]?\s*([€£])\s*(?=[\d.])", text):
    unit, text = m.group(1), text.replace(m.group(1), "", 1)
  m = _WITH_UNIT.fullmatch(text)
  if m:
    word = re.sub(r"\\(?:text|mathrm|mbox)|[{}^\\.]", "", m.group(2)).strip().lower()
    text, unit = m.group(1).strip(), _UNITS.get(word, _UNITS.get(word.removesuffix("s"), word))
    if unit == "%":
      text, unit = text + "%", ""
  text = text.strip()
  mixed = re.fullmatch(r"([-+]?)(\d{1,9})\s+(?=\d+/\d+|\\frac)(.*)", text)
  bare = re.sub(r"\s+", "", text if not mixed else mixed.group(1) + mixed.group(3))
  if m := _FRACTION.fullmatch(bare):
    numerator, denominator = m.group(3, 4) if m.group(3) else m.group(5, 6)
    if not int(denominator):
      return None
    value = Fraction(int(numerator), int(denominator))
    value += int(mixed.group(2) if mixed else m["whole"] or 0)
  elif m := _REPEATING.fullmatch(bare):
    digits, period = m["decimal"], m["period"]
    value = Fraction(int((m["whole"] or "0") + digits), 10 ** len(digits))
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(digits))
  else:
    m = _PLAIN_NUMBER.fullmatch(bare)
    if mixed or not m or not re.search(r"\d", (m["whole"] or "") + (m["decimal"] or "")):
      return None
    digits = re.sub(r"[{},]", "", m["whole"] or "0") + (m["decimal"] or "")
    if len(digits) > 1000:
      return None
    value = Fraction(digits.rstrip(".") or "0") * Fraction(10) ** int(m["power"] or 0)
  if m["percent"]:
    unit, value = "%", value / 100
  return (-value if m["sign"] == "-" else value), unit


def too_large(text: str) -> str:
  """Why sympy would take forever on an answer, "" if it would not."""
  if len(text) > LONGEST_ANSWER:
    return f"is longer than {LONGEST_ANSWER} characters"
  depth = deepest = 0
  for character in text:
    depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(character, 0)
    deepest = max(deepest, depth)
  if deepest > 12:
    return "is nested too deeply"
  power = text.replace("**", "^").replace(" ", "")
  for m in re.finditer(r"\^[{(]*[-+]?(\d+)(?:[})]*\^[{(]*[-+]?(\d+))?(?P<more>[})]*\^)?", power):
    exponent, tower = m.group(1), m.group(2)
    if m["more"] and tower:
      return "has a tower of powers"
    if (
      len(exponent) > 9
      or tower
      and (len(tower) > 2 or int(exponent) ** int(tower) > LARGEST_EXPONENT)
    ):
      return "has a tower of powers"
    if not tower and int(exponent) > LARGEST_EXPONENT:
      return f"has an exponent above {LARGEST_EXPONENT}"
  if re.search(r"\^[{(]*[^{}]*\d(?:!|\\cdot|\*|\\times)\d*", power) and re.search(r"\d{4}", power):
    return "has a product or factorial in an exponent"
  if any(int(m) > 5000 for m in re.findall(r"(\d{1,9})\d*\}?!", power)) or re.search(
    r"!\)*!", power
  ):
    return "has the factorial of a large number"
  if any(len(m) > 5 for m in re.findall(r"\\[dt]?binom\{?(\d+)", power)):
    return "has a binomial of a large number"
  if len(max(re.findall(r"\d+", text), key=len, default="")) > 300:
    return "has a number of more than 300 digits"
  return ""
