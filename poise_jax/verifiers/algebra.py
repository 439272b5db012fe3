"""Answers that need algebra: parsed by math-verify, worked out and compared by sympy."""

import logging
import re

import math_verify
import sympy
from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.logic import And
from sympy.core.function import AppliedUndef

from poise_jax.verifiers.size_limits import too_large, too_long
from poise_jax.verifiers.values import close, proportion, same_value

# Silences warnings that math-verify's time limits are off: the pool's limit also stops C code.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

# LaTeX only: math-verify's other extractor takes any number for the answer of a text that it cannot
# read. Units stay: it would drop letters and whole \text{...} after a value.
_LATEX = math_verify.LatexExtractionConfig(
  normalization_config=NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
  )
)
_INEQUALITY = re.compile(r"[<>]|\\(?:[lg](?:eq?|t)|[lg]eqslant)(?![a-zA-Z])")
_OR = re.compile(r"\s*(?:\\text\s*\{\s*or\s*\}|\\lor(?![a-zA-Z])|\\vee|\bor\b)\s*")
_AND = re.compile(r"\s*(?:\\text\s*\{\s*and\s*\}|\\land(?![a-zA-Z])|\\wedge|\band\b)\s*")
_BUILDER = re.compile(r"\\\{\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid|:|\|)(.*)\\\}")
_UNREADABLE = re.compile(
  r"\\(?:approx|sim|simeq|equiv|pmod|bmod|to|rightarrow|Rightarrow)(?![a-z])"
)
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\\circ(?![a-z])|\{\s*\\circ\s*\})")
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_CLOSE = 0.05  # how far a ≈ b may be apart, as a fraction
_PRECISION = 40  # digits to which math-verify compares numbers
_MOST_NODES = 30  # of the expressions that math-verify compares


class UnreadableError(Exception):
  """An answer that cannot be parsed, or that would take too long to work out."""


def parse(text: str) -> sympy.Basic | sympy.MatrixBase:
  """A cleaned answer as a sympy expression, not worked out.

  Raises:
    UnreadableError: why it is none.
  """
  if reason := too_long(text):
    raise UnreadableError(f"the answer {reason}")
  if builder := _BUILDER.fullmatch(text):
    text = builder[2].strip()
  if _INEQUALITY.search(text) and (combined := _combined(text)) is not None:
    return combined
  # The parser drops what follows an approximation, and multiplies numbers with a space between.
  if _UNREADABLE.search(text) or re.search(r"(?<![_^\d.])\d+ \d", text):
    raise UnreadableError(f"{text!r} is no expression")
  in_radians = r"(\1\\cdot\\pi/180)" if TRIGONOMETRY.search(text) else r"\1"
  text = _DEGREES.sub(in_radians, text)  # the parser drops the sign
  found = math_verify.parse(
    f"${text}$", [_LATEX], fallback_mode="no_fallback", parsing_timeout=None
  )
  if not found:
    raise UnreadableError(f"math-verify cannot read {text!r}")
  if reason := too_large(found[0]):
    raise UnreadableError(f"the answer {reason}")
  imaginary = {s: sympy.I for s in found[0].free_symbols if s.name == "i"}
  return found[0].xreplace(imaginary) if imaginary else found[0]


def _combined(text):
  r"""The set of "x < 1 or x > 2", "x < 2 \text{ and } x > 1"; None for anything else."""
  for pattern, combine in ((_OR, sympy.Union), (_AND, sympy.Intersection)):
    parts = pattern.split(text)
    if len(parts) > 1 and all(_INEQUALITY.search(part) for part in parts):
      sets = [_as_set(parse(part)) for part in parts]
      return None if None in sets else combine(*sets)
  return None


def _as_set(relation):
  """The set that a relation in one variable describes, None if it describes none."""
  if isinstance(relation, sympy.Set):
    return relation
  try:
    relations = relation.args if isinstance(relation, And) else [relation]
    return sympy.Intersection(*(r.as_set() for r in relations))
  except Exception:  # sympy solves only some inequalities
    return None


def equal(gold: str, answer: str) -> bool:
  """Whether two cleaned answers are equal as mathematics.

  Raises:
    UnreadableError: the answer cannot be parsed, or sympy fails on it.
  """
  values = _values(answer)
  try:
    expected = _values(gold)
  except UnreadableError:
    return False  # only the same text is right, which has been compared before
  if gold.count("'") != answer.count("'"):  # the parser drops those of f'(x)
    return False
  try:
    return any(same(a, b) for a in expected for b in values)
  except Exception as error:  # of any kind, from sympy
    raise UnreadableError(f"sympy cannot compare {answer!r}: {error!r}"[:200]) from error


def _values(text):
  r"""The expressions that an answer is: one, or both sides of "\sqrt{2} \approx 1.41"."""
  sides = re.split(r"\\(?:approx|simeq)(?![a-zA-Z])", text)
  if len(sides) != 2 or not all(side.strip() for side in sides):
    return [parse(text)]
  values = [parse(side.strip()) for side in sides]
  numbers = [value.rhs if isinstance(value, sympy.Eq) else value for value in values]
  if not close(*numbers, _CLOSE):
    raise UnreadableError(f"{text!r} is no approximation")
  return values


def same(gold: sympy.Basic, answer: sympy.Basic) -> bool:
  """Whether two parsed answers are equal.

  Expressions are compared by their values (see values.py), sets and tuples element by element,
  equations and inequalities up to a factor, and what is left by math-verify.
  """
  gold, answer = _named_alike(_unchained(gold), _unchained(answer))
  kinds = [isinstance(value, sympy.Expr) for value in (gold, answer)]
  if any(kinds):
    return all(kinds) and same_value(gold, answer)
  if isinstance(gold, sympy.Rel) and isinstance(answer, sympy.Rel):
    return _same_relation(gold, answer)
  if isinstance(gold, sympy.Interval) and isinstance(answer, sympy.Interval):
    sides = (gold.left_open, gold.right_open) == (answer.left_open, answer.right_open)
    return bool(sides) and same(gold.start, answer.start) and same(gold.end, answer.end)
  a, b = _elements(gold), _elements(answer)
  ordered = [not isinstance(value, sympy.FiniteSet) for value in (gold, answer)]
  if a is None or b is None or ordered[0] != ordered[1]:
    return _by_math_verify(gold, answer)
  if len(a) != len(b) or ordered[0]:
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
  for x in a:
    match = next((i for i, y in enumerate(b) if same(x, y)), None)
    if match is None:
      return False
    b.pop(match)
  return True


def _unchained(value):
  """The first and the last side of "x = 2 * 3 = 6"."""
  if isinstance(value, And) and all(isinstance(part, sympy.Eq) for part in value._unsorted_args):
    parts = value._unsorted_args
    return sympy.Eq(parts[0].lhs, parts[-1].rhs, evaluate=False)
  return value


def _named_alike(gold, answer):
  """Drops "x =" where only one of two answers has it, and the braces around a single element."""
  if isinstance(answer, sympy.Eq) and not isinstance(gold, sympy.Rel | And):
    if answer.lhs.free_symbols or same(answer.lhs, answer.rhs):  # "5 = 6" is neither
      answer = answer.rhs
  if isinstance(gold, sympy.Eq) and _is_name(gold.lhs) and not isinstance(answer, sympy.Rel | And):
    gold = gold.rhs
  if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.FiniteSet) and len(answer) == 1:
    answer = answer.args[0]
  return gold, answer


def _is_name(side):
  return isinstance(side, sympy.Symbol | AppliedUndef)


def _same_relation(gold, answer):
  """Whether one relation is a positive multiple of the other, an equation any multiple."""
  difference, other = (value.lhs - value.rhs for value in (gold, answer))
  factor = proportion(difference, other)
  if not factor:
    return False
  flipped = gold.func if factor > 0 else gold.reversed.func
  return (
    isinstance(answer, flipped)
    or isinstance(answer, sympy.Eq | sympy.Ne)
    and (answer.func is gold.func)
  )


def _elements(value):
  """The elements of a set, tuple or matrix, with a matrix's shape; None for anything else."""
  if isinstance(value, sympy.MatrixBase):
    return [*map(sympy.Integer, value.shape), *value]
  return list(value.args) if isinstance(value, sympy.FiniteSet | sympy.Tuple) else None


def _by_math_verify(gold, answer):
  """math-verify's judgement of small sets and relations; large ones may take it minutes."""
  if any(sum(1 for _ in sympy.preorder_traversal(v)) > _MOST_NODES for v in (gold, answer)):
    return False
  limits = dict(numeric_precision=_PRECISION, timeout_seconds=None)
  if math_verify.verify(gold, answer, **limits):
    return True
  # math-verify understands x < 3 as an interval only as the first argument.
  return isinstance(answer, sympy.Rel | And) and math_verify.verify(answer, gold, **limits)
