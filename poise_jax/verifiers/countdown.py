"""Countdown: an expression of given numbers that makes a target. Parsed, never evaluated."""

import ast
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

from poise_jax.errors import UserError
from poise_jax.verifiers.base import Verdict
from poise_jax.verifiers.extract import answer

_OPERATORS = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
}
_PLAIN = str.maketrans({"×": "*", "÷": "/", "−": "-", "·": "*", "[": "(", "]": ")", "$": " "})


def countdown(
  reference: Mapping[str, int | Sequence[int]],
  response: str,
  extract: str = "auto",
  all_numbers: bool = True,
) -> Verdict:
  """1 if the answer is an expression of the numbers that equals the target exactly, else 0.

  Args:
    reference: {"numbers": [...], "target": int}.
    response: what was said; of an equation the left side counts ("3 * 4 = 12").
    extract: see extract.answer; with "auto" a response in none of the forms counts as a whole.
    all_numbers: whether every number must be used; each may be used once at most in any case.
  """
  given = answer(response, extract)
  if given is None and extract == "auto":
    given = answer(response, "all")
  if given is None:
    return Verdict(0.0, "unparsable")
  for latex, plain in (
    (r"\times", "*"),
    (r"\cdot", "*"),
    (r"\div", "/"),
    (r"\left", ""),
    (r"\right", ""),
  ):
    given = given.replace(latex, plain)
  used = []
  try:
    left = given.translate(_PLAIN).split("=")[0].strip()
    if len(left) > 500:
      raise UserError("longer than any expression of a few numbers")
    value = _value(ast.parse(left, mode="eval").body, used)
  except ZeroDivisionError:
    return Verdict(0.0)
  except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
    return Verdict(0.0, "unparsable", str(error))
  numbers, used = Counter(reference["numbers"]), Counter(used)
  allowed = used == numbers if all_numbers else used <= numbers
  return Verdict(float(allowed and value == reference["target"]))


def _value(node, used):
  """The value of a parsed expression; appends the whole numbers in it to `used`."""
  if isinstance(node, ast.Constant) and type(node.value) is int:
    used.append(node.value)
    return Fraction(node.value)
  if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
    return _OPERATORS[type(node.op)](_value(node.left, used), _value(node.right, used))
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    return -_value(node.operand, used)
  raise UserError(f"{type(node).__name__} is no whole number and none of + - * /")
