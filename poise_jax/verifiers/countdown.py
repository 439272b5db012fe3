"""Countdown: an expression that makes a target of given numbers. Parsed, never evaluated."""

import ast
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.extract import answer_or_response
from poise_jax.verifiers.notation import plain_width
from poise_jax.verifiers.thought import judges_answer

_OPERATORS = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.Mult: operator.mul,
  ast.Div: operator.truediv,
}
_LATEX = {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": ""}
_PLAIN = str.maketrans({"×": "*", "÷": "/", "−": "-", "·": "*", "[": "(", "]": ")", "$": " "})


@judges_answer
def countdown(
  reference: Mapping[str, int | Sequence[int]],
  response: str,
  extract: str = "auto",
  all_numbers: bool = True,
) -> Verdict:
  """1 if the answer is an expression of the numbers that equals the target exactly, else 0.

  Args:
    reference: {"numbers": [...], "target": int}.
    response: the text to judge; the left side of an equation counts ("3 * 4 = 12").
    extract: see extract.find_answer; with "auto" a response in none of the forms counts as a whole.
    all_numbers: whether every number must be used; none may be used more than once in any case.
  """
  answer = answer_or_response(response, extract)
  if answer is None:
    return Verdict(0.0, "unparsable", f"no answer is in the form {extract}")
  expression = plain_width(answer)
  for latex, plain in _LATEX.items():
    expression = expression.replace(latex, plain)
  numbers = []
  try:
    expression = expression.translate(_PLAIN).split("=")[0].strip()
    if len(expression) > 500:
      raise ValueError("the expression is longer than 500 characters")
    value = _value(ast.parse(expression, mode="eval").body, numbers)
  except ZeroDivisionError:
    return Verdict(0.0, answer=answer)
  except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
    return Verdict(0.0, "unparsable", str(error))
  given, used = Counter(reference["numbers"]), Counter(numbers)
  allowed = used == given if all_numbers else used <= given
  return Verdict(float(allowed and value == reference["target"]), answer=answer)


def _check_reference(reference, **_):
  fields = isinstance(reference, Mapping) and {"numbers", "target"} <= set(reference)
  numbers = reference["numbers"] if fields else ()
  whole = isinstance(numbers, Sequence) and all(type(x) is int and x >= 0 for x in numbers)
  if not numbers or not whole or not isinstance(reference["target"], int | float | Fraction):
    raise UnusableError(
      'the reference of verifier countdown must be {"numbers": [whole numbers], "target": number}, '
      f"got {reference!r:.100}"
    )


countdown.check_reference = _check_reference


def _value(node, numbers):
  """The value of a parsed expression; appends the whole numbers in it to `numbers`."""
  if isinstance(node, ast.Constant) and type(node.value) is int:
    numbers.append(node.value)
    return Fraction(node.value)
  if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
    return _OPERATORS[type(node.op)](_value(node.left, numbers), _value(node.right, numbers))
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    return -_value(node.operand, numbers)
  raise ValueError(f"{type(node).__name__} is neither a whole number nor one of + - * /")
