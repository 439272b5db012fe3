"""Formulas as sympy expressions, read without Python's eval, which sympy's own parser uses.

An answer is text from a model under training. Read by eval, it is a program.
"""

import ast
import math

import sympy

LONGEST = 2000  # characters of a formula
LARGEST = 10_000  # digits of a number
_CONSTANTS = {"pi": sympy.pi, "E": sympy.E, "I": sympy.I}
_NAMES = "sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt Abs erf"
_FUNCTIONS = {name: getattr(sympy, name) for name in _NAMES.split()}
_FUNCTIONS |= {"abs": sympy.Abs, "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan}
_OPERATORS = {
  ast.Add: lambda a, b: a + b,
  ast.Sub: lambda a, b: a - b,
  ast.Mult: lambda a, b: a * b,
  ast.Div: lambda a, b: a / b,
  ast.Pow: lambda a, b: _power(a, b),
}


def formula(text: str) -> sympy.Expr:
  """The formula in a text: numbers, names, + - * / **, and elementary functions.

  Raises:
    ValueError: the text is anything else, or its value is too large to write down.
  """
  text = text.strip()
  if not text.isascii():  # Python reads other letters as the ASCII letters that they resemble
    raise ValueError("the formula has characters other than ASCII")
  if len(text) > LONGEST:
    raise ValueError(f"the formula is longer than {LONGEST} characters")
  try:
    return _expression(ast.parse(text, mode="eval").body)
  except (SyntaxError, RecursionError, MemoryError, TypeError, ArithmeticError) as error:
    raise ValueError(f"the formula cannot be read: {error}") from error


def _expression(node):
  if isinstance(node, ast.Constant) and type(node.value) in (int, float):
    return sympy.Integer(node.value) if type(node.value) is int else sympy.Float(node.value)
  if isinstance(node, ast.Name):
    if node.id in _FUNCTIONS:
      raise ValueError(f"the function {node.id} has no argument")
    return _CONSTANTS.get(node.id) or sympy.Symbol(node.id)
  if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
    return _OPERATORS[type(node.op)](_expression(node.left), _expression(node.right))
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
    value = _expression(node.operand)
    return -value if isinstance(node.op, ast.USub) else value
  if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
    if node.func.id in _FUNCTIONS and len(node.args) == 1:
      return _FUNCTIONS[node.func.id](_expression(node.args[0]))
  raise ValueError(f"{type(node).__name__} is not part of a formula")


def _power(base, exponent):
  """A power, unless it is a number that would fill the memory."""
  if base.is_number and exponent.is_number:
    size, times = (abs(complex(value)) for value in (base, exponent))
    if times > 1 and times * abs(math.log10(size or 1)) > LARGEST:
      raise ValueError(f"a power has more than {LARGEST} digits")
  return base**exponent
