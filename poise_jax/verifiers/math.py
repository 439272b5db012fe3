"""Mathematical answers, compared as text, as exact numbers with units, or by sympy."""

import re

from poise_jax.errors import unknown_name
from poise_jax.verifiers import algebra
from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.extract import (
  LONGEST,
  VALUE,
  last_box,
  last_line,
  last_tag,
  last_values,
)
from poise_jax.verifiers.notation import LONGEST_FORMULA, clean
from poise_jax.verifiers.quantities import parse_quantity
from poise_jax.verifiers.thought import judges_answer
from poise_jax.verifiers.units import parse_unit

_DAPO = re.compile(r"Answer\s*:\s*([^\n]+)", re.IGNORECASE)
_DAPO_LONGEST = 300  # characters
_HASHES = re.compile(r"^####[ \t]*(\S.*)$", re.MULTILINE)
_PHRASE = re.compile(
  r"\b(?:the\s+)?(?:final\s+)?(?:answer|result|solution)\s+(?:is|equals|=)"
  rf"(?:\s*:(?=[\s\S])|(?=[^\n]))[ \t]*{VALUE}",
  re.IGNORECASE | re.DOTALL,
)
_SENTENCE = re.compile(
  r"(?:[A-Z][a-z]+|[a-z])(?:[ ,][a-z]+)* (?:is|are|equals)\s+(.+)"
)  # "The sum is 5"
_NEGATION = re.compile(r"\b(?:no|not|none|neither|never|nothing)\b", re.IGNORECASE)
_ASIDE = re.compile(r"\.\s|\s+(?:because|since|so|which|as)\s|\s+\((?=[a-z]{2,}[ ,])[^()]*\)\W*$")
_TEXT = re.compile(
  r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname|rm)\s*\{([^{}]*)\}"
)
_CHOICE = re.compile(r"\(([A-H])\)\s*\S.*|\(?([A-H])\)?")
_NAMED_SETS = {
  r"\emptyset": re.compile(
    r"(?:there (?:is|are) )?no (?:real )?solutions?|(?:the )?empty set", re.I
  ),
  r"\mathbb{R}": re.compile(r"all (?:real numbers|reals)|(?:the )?real numbers", re.I),
}
_CONDITION = re.compile(
  r"(.+?)[\s,;:(]*\b(?:if|when|whenever|for|where|unless|provided)(?![a-zA-Z])\s*(.+?)\)?", re.I
)
_CONGRUENCE = re.compile(
  r"(?:(.+?)\s*(?:\\equiv|\\cong|=)\s*)?(.+?)\s*\(?\s*(?:\\[pb]?mod|\bmod(?:ulo)?)(?![a-zA-Z])"
  r"\s*\{?\s*([^{}()]+?)\s*\}?\s*\)?"
)
_BASE = re.compile(r"(\w*\d\w*?)_\s*\{?\s*(\d{1,2}|[a-z]+)\s*\}?", re.I)
_BASE_NAMES = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
  "sixteen"
).split()
_UNIT_BEHIND = re.compile(
  r"(.*?[\d}!)a-zA-Z])\s*(\\(?:text|mathrm|mbox)\s?\{.*|\^\s?\{?\\circ.*|(?<=\s)[a-zA-Z]{2,}.*)"
)


@judges_answer
def math(reference: str, response: str, strict: str = "") -> Verdict:
  r"""1 if the response's answer equals the reference mathematically, else 0.

  The answer is the last balanced \boxed{...}, "Answer: ..." line, <answer> tag or "#### ..." line,
  whichever comes last; without any of them, what follows the last "the answer is".

  Args:
    reference: LaTeX or plain text, with or without $ and \boxed.
    response: only its last extract.LONGEST characters are read.
    strict: "dapo" reads what follows the last "Answer:" in the last 300 characters, and nothing
      else, as the grader of DAPO (arXiv 2503.14476) does. It compares as this verifier always does.

  Raises:
    UnusableError: the reference is empty, or `strict` is unknown.
  """
  if strict not in ("", "dapo"):
    raise UnusableError(str(unknown_name("strict", strict, ["dapo"])))
  gold = clean(reference)
  if not gold:
    raise UnusableError(f"the reference of verifier math is empty: {reference!r}")
  found = _dapo_answer(response) if strict else final_answer(response[-LONGEST:])
  answer = clean(found or "")
  if not answer:
    return Verdict(0.0, "unparsable", "no answer is in the response")
  try:
    return Verdict(float(equal(gold, answer)), answer=answer)
  except algebra.UnreadableError as error:
    return Verdict(0.0, "unparsable", str(error))


def _dapo_answer(response):
  """What follows the last "Answer:" in the last 300 characters, None without it."""
  answers = _DAPO.findall(response[-_DAPO_LONGEST:])
  return answers[-1].strip(" \t*_") if answers else None


def final_answer(text: str) -> str | None:
  """The text that a response gives as its answer, None if it gives none."""
  hashes = list(_HASHES.finditer(text))
  boxed = last_box(text)
  places = [boxed, last_line(text), last_tag(text)]
  places += [(m.start(), m.group(1)) for m in hashes[-1:]]
  answers = [place for place in places if place]
  if not answers:
    answers = last_values(_PHRASE, text)
  if not answers:
    return None
  answer = max(answers)[1]
  if inner := last_box(answer):  # a box in a line, in a tag or in another box
    return inner[1]
  if max(answers) == boxed:
    return answer
  phrases = last_values(_PHRASE, answer)  # "Answer: The answer is 5."
  return _ASIDE.split(phrases[-1][1] if phrases else answer)[0]


def equal(gold: str, answer: str) -> bool:
  """Whether two cleaned answers are equal.

  Raises:
    algebra.UnreadableError: that takes algebra, for which the answer is unfit.
  """
  if _text(gold) == _text(answer):
    return True
  if len(answer) > LONGEST_FORMULA:
    raise algebra.UnreadableError(f"the answer is longer than {LONGEST_FORMULA} characters")
  gold, answer = (_in_symbols(text) for text in (gold, answer))
  if _text(gold) == _text(answer):
    return True
  for compare in (_equal_choices, _equal_statements, _equal_bases, _equal_numbers):
    verdict = compare(gold, answer)
    if verdict is not None:
      return verdict
  (gold, unit), (answer, other) = (_without_unit(text) for text in (gold, answer))
  if unit and other and unit.ratio(other) != 1:
    return False
  return algebra.equal(gold, answer)


def _in_symbols(text):
  """The value that a short sentence gives, and the symbol of a set that words name."""
  plain = " ".join(_TEXT.sub(r" \1 ", text).split())
  sentence = _SENTENCE.fullmatch(plain)
  if sentence and not _NEGATION.search(plain[: sentence.start(1)]):
    text = plain = sentence[1].strip()
  named = [symbol for symbol, words in _NAMED_SETS.items() if words.fullmatch(plain)]
  return named[0] if named else text


def _text(text):
  r"""An answer for comparison as text: without \text and spaces, words in lower case."""
  text = _TEXT.sub(lambda m: m.group(1), text).strip(" .")
  words = re.fullmatch(r"\(?[A-Za-z][A-Za-z' -]+\)?|\([A-Za-z]\)|[A-Z]\.", text)
  if words:
    return " ".join(re.sub(r"[().]", "", text).split()).lower()
  return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)  # 2 3 is not 23


def _equal_choices(gold, answer):
  r"""Whether a letter and "(B) 12" choose the same, None if they are no choices."""
  sides = [_CHOICE.fullmatch(_TEXT.sub(lambda m: m.group(1), x).strip()) for x in (gold, answer)]
  if not all(sides) or all(side[1] for side in sides):
    return None
  first, second = (side[1] or side[2] for side in sides)
  return first == second


def _equal_statements(gold, answer):
  """Whether congruences, or values under a condition, are the same; None if neither is one.

  A value alone is another statement: neither "5 if n is even" nor "x ≡ 5 (mod 8)" equals 5.
  """
  plain = [" ".join(_TEXT.sub(r" \1 ", text).split()) for text in (gold, answer)]
  sides = [_CONGRUENCE.fullmatch(text) for text in plain]
  if all(sides):
    (name, value, modulus), (other, second, another) = (side.groups() for side in sides)
    if name and other and _text(name) != _text(other) or not equal(modulus, another):
      return False
    numbers = [re.fullmatch(r"-?\d{1,30}", text) for text in (value, second, modulus)]
    if all(numbers):
      a, b, m = (int(number[0]) for number in numbers)
      return m != 0 and (a - b) % m == 0
    return equal(value, second)
  conditions = [
    None if side else _CONDITION.fullmatch(x) for side, x in zip(sides, plain, strict=True)
  ]
  if all(conditions):
    texts = [re.sub(r"\b(?:is|are)\b|\W", "", side[2]) for side in conditions]
    return texts[0] == texts[1] and equal(*(side[1].rstrip(" ,") for side in conditions))
  return False if any(sides) or any(conditions) else None


def _equal_bases(gold, answer):
  """Whether numerals such as 101_2 are the same, None if neither has a base.

  A base that is missing is taken for the other's; a numeral in another base is another answer.
  """
  plain = [_TEXT.sub(r"\1", text).replace(" ", "") for text in (gold, answer)]
  sides = [_BASE.fullmatch(text) for text in plain]
  if not any(sides):
    return None
  digits = [side[1] if side else text for side, text in zip(sides, plain, strict=True)]
  bases = [side[2].lower() for side in sides if side]
  if not all(re.fullmatch(r"\w+", d) for d in digits):
    return None
  bases = {_BASE_NAMES.index(b) if b in _BASE_NAMES else b for b in bases}
  return digits[0].lower() == digits[1].lower() and len({str(b) for b in bases}) == 1


def _equal_numbers(gold, answer):
  """Whether two numbers, or a word and anything, are the same; None if it takes algebra."""
  sides = [re.fullmatch(r"([a-zA-Z](?:_\d)?)\s*=\s*([^=]+)", x) for x in (gold, answer)]
  if all(sides) and sides[0][1] != sides[1][1]:
    return False  # the values of two different variables
  texts = [side[2] if side else x for side, x in zip(sides, (gold, answer), strict=True)]
  numbers = [parse_quantity(text) for text in texts]
  if None not in numbers:
    return numbers[0].equals(numbers[1])
  words = [re.fullmatch(r"[a-z][a-z' -]+", _text(x)) for x in (gold, answer)]
  if all(words) or any(words) and any(n is not None for n in numbers):
    return False  # two different words, or a word and a number
  return None


def _without_unit(text):
  r"""An expression without the unit after it, and that unit: "2\pi" of "2\pi\text{ cm}"."""
  if m := _UNIT_BEHIND.fullmatch(text):
    unit = parse_unit(m[2])
    if unit and not ("circ" in m[2] and algebra.TRIGONOMETRY.search(text)):  # cos 20°
      return m[1].strip(), unit
  return text, None
