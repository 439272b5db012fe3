"""Which answers would keep sympy busy for longer than a second, seen before sympy works on them."""

import math
import re

import sympy

LONGEST_ANSWER = 400  # characters of an answer that is parsed
DEEPEST = 8  # nested brackets of an answer that is parsed
MOST_BARS = 12
MOST_DIGITS = 100_000  # of a number that is worked out
LARGEST_FACTORIAL = 5000
MOST_TERMS = 200  # of a sum or product
_DOUBLE_POWER = re.compile(r"\^\s*(?:\d+|[a-zA-Z]|\\[a-zA-Z]+)\s*\^")  # x^y^z
_LARGE_BINOMIAL = re.compile(r"\\binom\s*\{?\s*\d{5}|\d{5,}\s*\}?\s*\\choose")


def too_long(text: str) -> str:
  """Why parsing an answer would take forever, "" if it would not."""
  if len(text) > LONGEST_ANSWER:
    return f"is longer than {LONGEST_ANSWER} characters"
  depth = deepest = 0
  for character in text:
    depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(character, 0)
    deepest = max(deepest, depth)
  if deepest > DEEPEST:
    return "is nested too deeply"
  if _DOUBLE_POWER.search(text):  # which the parser takes for (x^y)^z, after a while
    return "has a power of a power without braces"
  if text.count("|") > MOST_BARS:
    return f"has more than {MOST_BARS} bars"
  if _LARGE_BINOMIAL.search(text):  # the parser works binomials of plain numbers out
    return "has a binomial of a large number"
  return ""


class TooLargeError(Exception):
  """An expression that takes too long to work out."""


def too_large(expression: sympy.Basic | sympy.MatrixBase) -> str:
  """Why working a parsed expression out would take forever, "" if it would not."""
  try:
    _digits(expression)
  except TooLargeError as error:
    return str(error)
  except (OverflowError, RecursionError):
    return "is too large a number"
  return ""


def _digits(node) -> float:
  """An upper bound on the decimal digits of an expression's numerator and denominator.

  Raises:
    TooLargeError: a number in it has more than MOST_DIGITS digits, or it takes too many steps.
  """
  if isinstance(node, sympy.Rational):
    return math.log10(max(abs(node.p), node.q))
  if not isinstance(node, sympy.Basic | sympy.MatrixBase):
    return 0.0
  if isinstance(node, sympy.Sum | sympy.Product):
    return _limit(_of_a_range(node))
  if isinstance(node, sympy.Integral | sympy.Limit | sympy.Derivative):
    raise TooLargeError("has an integral, a limit or a derivative that is not worked out")
  parts = [_digits(part) for part in (node if isinstance(node, sympy.MatrixBase) else node.args)]
  if isinstance(node, sympy.Pow | sympy.exp):
    digits = _of_a_power(node.as_base_exp()[1], *(parts if len(parts) == 2 else [0.5, *parts]))
  elif isinstance(node, sympy.factorial | sympy.gamma | sympy.factorial2):
    digits = 10 ** _limit(parts[0], math.log10(LARGEST_FACTORIAL), "factorial of a large number")
    digits *= parts[0]
  elif isinstance(node, sympy.binomial):
    digits = parts[0] * 10 ** _limit(parts[1], 6, "binomial of a large number")
  elif isinstance(node, sympy.Add | sympy.Mul):
    digits = sum(parts) + (math.log10(len(parts)) if isinstance(node, sympy.Add) else 0)
  else:
    digits = max(parts, default=0.0)
  return _limit(digits)


def _limit(digits, most=MOST_DIGITS, what="number of too many digits"):
  if digits > most:
    raise TooLargeError(f"has a {what}")
  return digits


def _of_a_power(exponent, base_digits, exponent_digits):
  """The digits of a power; `base_digits` is 0 for a variable, whose power stays one."""
  largest = 10 ** _limit(exponent_digits, 9, "tower of powers") if exponent.is_number else 1.0
  return base_digits * largest


def _of_a_range(node):
  """The digits of a sum or product over a range."""
  inner = 0.0
  terms = 1.0
  for _, low, high in node.limits:
    _digits(low), _digits(high)
    if high.is_number and low.is_number:
      bounds = [float(bound) for bound in (low, high)]
      terms *= bounds[1] - bounds[0] + 1
    else:
      terms = math.inf
  if not terms <= MOST_TERMS:
    raise TooLargeError("has a sum or product that is not worked out")
  substituted = node.function.subs({variable: high for variable, _, high in node.limits})
  inner = _digits(substituted)
  return inner * terms
