"""Whether two expressions have the same value: exactly for fractions, else to a hundred digits.

Expressions with variables are equal if they agree at several points. That is quicker than
simplifying their difference, which takes sympy minutes for some answers, and overlooks less.
"""

from fractions import Fraction

import sympy
from sympy.core.function import AppliedUndef

_DIGITS = 150  # that are worked out
_SAME_DIGITS = 100  # that must agree
_POINTS = 4
_INFINITE = (sympy.oo, -sympy.oo, sympy.zoo, sympy.nan)


def same_value(a: sympy.Expr, b: sympy.Expr) -> bool:
  """Whether two expressions are equal, for all real values of their variables."""
  if not (_variables(a) or _variables(b)):
    a, b = a.doit(), b.doit()
    if isinstance(a, sympy.Rational) and isinstance(b, sympy.Rational):
      return a == b
    if a.has(*_INFINITE) or b.has(*_INFINITE):
      return a == b
    return close(a, b, Fraction(1, 10**_SAME_DIGITS))
  pairs = _at_points(a, b)
  return bool(pairs) and all(_near(x, y, Fraction(1, 10**_SAME_DIGITS)) for x, y in pairs)


def proportion(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr | None:
  """The real number by which a is a multiple of b, None if there is none."""
  ratios = [x / y for x, y in _at_points(a, b) if x and y]
  if len(ratios) < _POINTS // 2:
    return None
  first = ratios[0]
  constant = all(_near(first, ratio, Fraction(1, 10**_SAME_DIGITS)) for ratio in ratios)
  return first if constant and first.is_real else None


def close(a: sympy.Expr, b: sympy.Expr, tolerance: float | Fraction) -> bool:
  """Whether two numbers differ by at most a fraction of the larger one; False for expressions."""
  if _variables(a) or _variables(b):
    return False
  return _near(*(value.doit().evalf(_DIGITS) for value in (a, b)), tolerance)


def _near(a, b, tolerance):
  size = max(abs(a), abs(b)) if a and b else 1  # nothing is close to zero but zero
  return bool(abs(a - b) <= sympy.Rational(tolerance) * size)


def _variables(expression):
  return expression.free_symbols or expression.atoms(AppliedUndef)


def _at_points(a, b):
  """The values of two expressions at several points, without points at which one is not real.

  Expressions with the imaginary unit, and those that are real nowhere, may have complex values.
  """
  functions = {f for e in (a, b) for f in e.atoms(AppliedUndef)}
  names = sorted({str(f) for f in functions} | {s.name for e in (a, b) for s in e.free_symbols})
  pairs = []
  for point in range(_POINTS):
    # Different fractions between -4 and 4; all are positive at the first points.
    values = {
      name: sympy.Float(
        sympy.Rational((101 + 37 * i * (point + 2)) % 389 + 7, 97 + 2 * point)
        * (-1 if point > 1 and (i + point) % 2 else 1),
        _DIGITS,
      )
      for i, name in enumerate(names)
    }
    pair = []
    for expression in (a, b):
      expression = expression.xreplace({f: values[str(f)] for f in functions})
      expression = expression.xreplace({s: values[s.name] for s in expression.free_symbols})
      pair.append(expression.doit().evalf(_DIGITS))
    if all(value.is_number and not value.has(*_INFINITE) for value in pair):
      pairs.append(pair)
  real = [pair for pair in pairs if all(value.is_real for value in pair)]
  return pairs if a.has(sympy.I) or b.has(sympy.I) else real or pairs
