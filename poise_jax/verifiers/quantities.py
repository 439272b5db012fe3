r"""Exact numbers with units: what "3\frac{1}{2} hours", "\$1,200" or "2.5 million" is worth."""

import dataclasses
import re
from fractions import Fraction

from poise_jax.verifiers.units import Unit, parse_unit

LONGEST_NUMBER = 1000  # digits
_NUMBER = re.compile(
  r"""(?P<sign>[-+]?)\s*(?:
    (?P<mixed>\d{1,9}\s+(?=\d+\s?/|\\frac)|\d{1,9}(?=\\frac))?
    (?: \\frac\s?(?:\{\s?(?P<top>-?\d{1,30})\s?\}|(?P<top1>\d))
             \s?(?:\{\s?(?P<under>-?\d{1,30})\s?\}|(?P<under1>\d))
      | (?P<up>\d{1,30})\s?/\s?(?P<down>\d{1,30}) )
    | (?P<whole>\d{0,9})\.(?P<first>\d{0,9})\\(?:overline|bar)\s?\{?(?P<period>\d{1,20})\}?
    | (?:(?P<digits>(?:\d{1,3}(?:(?:,|\{,\})\s?\d{3})+(?!\d)|\d+)?(?:\.\d*)?)
         (?:\s?(?:\\times|\\cdot|\*|x)\s?)(?=10\s?\^)
       )? 10\s?\^\s?\{?(?P<power>[-+]?\d{1,4})\}?
    | (?P<plain>(?:\d{1,3}(?:(?:,|\{,\})\s?\d{3})+(?!\d)|\d+)?(?:\.\d*)?)
  )(?P<percent>\s?\\?%)?""",
  re.VERBOSE,
)
_ABOUT = re.compile(
  r"^(?:\\(?:text|mathrm)\s?\{)?\s*(?:approximately|about|roughly|\\approx)\s*\}?\s*"
)
_CURRENCY = re.compile(r"([-+]?)\s*(\\\$|US\\\$|USD|EUR|GBP|Rs\.?|[€£¥₹])\s*([-+]?)(?=[\d.])")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s?\{([^{}]*)\}")
_PERCENT = re.compile(r"(?:percent|per cent|percentage)", re.IGNORECASE)
_MULTIPLES = {
  "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
  "dozen": 12,
}  # fmt: skip
_MULTIPLE = re.compile(rf"({'|'.join(_MULTIPLES)})(?![a-zA-Z])\s*(.*)", re.IGNORECASE)
_PART = re.compile(
  r"(?<=[a-zA-Z}])\.?\s*,?\s*(?:and\s+)?(?=\d)"
)  # between "3 hours" and "20 minutes"
# Words that make something else than a count of things of the words after a number.
_NO_NOUN = frozenset(
  "a all am an and any are as at but by can cannot cos does double else equals except fails false "
  "for from half half-life has have if incorrect invalid is isn't less log max maybe min minus "
  "mod modulo more most never no none not on only or otherwise over perhaps plus possible quarter "
  "sin squared sometimes tan than that then third to twice unless until was were when where "
  "which with without wrong works yes".split()
)
_SMALL = frozenset(("of", "the", "in"))  # "8 boxes of tea in total"
_IRREGULAR = frozenset("children feet fish geese men mice people sheep teeth women".split())


@dataclasses.dataclass(frozen=True)
class Quantity:
  """An exact number. A percentage is kept as a fraction of 1."""

  value: Fraction
  unit: Unit = Unit()
  percent: bool = False
  parts: int = 1  # "3 hours 20 minutes" has two

  def equals(self, other: "Quantity") -> bool:
    """Whether two quantities are the same. A missing unit is taken for the other's unit.

    50% equals both 0.5 and 50. Something of several parts equals no bare number.
    """
    ratio = self.unit.ratio(other.unit)
    if ratio is None or (self.parts != other.parts and self.unit.neutral | other.unit.neutral):
      return False
    if self.percent != other.percent:
      percent, number = (self, other) if self.percent else (other, self)
      return number.value in (percent.value, 100 * percent.value)
    return self.value * ratio == other.value


def parse_quantity(text: str) -> Quantity | None:
  r"""The number that a cleaned answer is, None if it is anything else.

  Behind the number may stand a percent sign, a multiple (million, dozen), a unit of units.py, or
  the things counted: words of three or more letters, of which one is a plural ("18 brown eggs";
  behind 1 also a singular). Nothing else may: "6 x", "12xy", "4 is wrong" and "5\mathrm{i}" are
  no numbers, and words such as if, or, not and than are no things.
  """
  text = _ABOUT.sub("", text)
  pieces = _PART.split(text)
  parsed = [_single(piece) for piece in pieces]
  if len(parsed) == 1 or None in parsed:
    return parsed[0] if len(parsed) == 1 else _single(text)
  first = parsed[0]
  ratios = [part.unit.ratio(first.unit) for part in parsed]
  if None in ratios or any(not part.unit.powers or part.percent for part in parsed):
    return None
  value = sum(abs(part.value) * ratio for part, ratio in zip(parsed, ratios, strict=True))
  return Quantity(-value if first.value < 0 else value, first.unit, parts=len(parsed))


def _single(text):
  """A quantity of one number."""
  if wrapped := _WRAPPED.fullmatch(text):
    text = wrapped[1].strip()
  unit = Unit()
  if m := _CURRENCY.match(text):
    unit, text = parse_unit(m[2].rstrip(".")), m[1] + m[3] + text[m.end() :]
  m = _NUMBER.match(text)
  value = _value(m)
  if value is None:
    return None
  percent, tail = bool(m["percent"]), text[m.end() :]
  words = _WRAPPED.sub(r" \1 ", tail).strip()
  if multiple := _MULTIPLE.match(words):
    value, tail = value * _MULTIPLES[multiple[1].lower()], " " + multiple[2]
    words = multiple[2].strip()
  if _PERCENT.fullmatch(words):
    percent, words = True, ""
  if words:
    glued = re.match(r"[a-zA-Z](?![a-zA-Z])", tail)  # 6m may well be 6 times m
    behind = None if glued or percent else parse_unit(tail) or _things(words, value)
    if behind is None or behind.ratio(unit) != 1:
      return None
    unit = unit if behind.neutral else behind
  return Quantity(value / 100 if percent else value, unit, percent)


def _value(m):
  """The value of a match of _NUMBER, None without a digit or with a denominator of 0."""
  if m["period"]:
    digits, period = m["first"], m["period"]
    value = Fraction(int((m["whole"] or "0") + digits), 10 ** len(digits))
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(digits))
  elif m["up"] or m["top"] or m["top1"]:
    denominator = int(m["down"] or m["under"] or m["under1"])
    if not denominator:
      return None
    value = Fraction(int(m["up"] or m["top"] or m["top1"]), denominator) + int(m["mixed"] or 0)
  else:
    digits = re.sub(r"[{},\s]", "", m["plain"] or m["digits"] or ("1" if m["power"] else ""))
    if not re.search(r"\d", digits) or len(digits) > LONGEST_NUMBER:
      return None
    value = Fraction(digits.rstrip(".")) * Fraction(10) ** int(m["power"] or 0)
  return -value if m["sign"] == "-" else value


def _things(text, number):
  """The things that are counted, None if the text names none."""
  words = text.lower().replace("-", " ").split()
  long = all(re.fullmatch(r"[a-z']{3,}", word) or word in _SMALL for word in words)
  plural = any(w in _IRREGULAR or w[-1] == "s" and w[-2:] not in ("ss", "us", "is") for w in words)
  if not long or _NO_NOUN.intersection(words) or not (plural or abs(number) == 1):
    return None
  return Unit(noun=frozenset(words) - _SMALL)
