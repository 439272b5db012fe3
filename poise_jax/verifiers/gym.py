"""reasoning-gym's own scores of answers to its entries: right is what gets full marks."""

import re
from collections.abc import Mapping
from typing import Any

import reasoning_gym as library

from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.extract import answer

# The generators whose scores pass the answer to Python's eval, some through sympy.parse_expr.
_EVALUATED = (
  "binary_matrix",
  "countdown",
  "intermediate_integration",
  "n_queens",
  "polynomial_multiplication",
  "puzzle24",
  "simple_integration",
  "spiral_matrix",
  "string_insertion",
)
_FUNCTIONS = (
  "sin cos tan sec csc cot asin acos atan arcsin arccos arctan sinh cosh tanh exp log ln sqrt "
  "abs Abs erf"
).split()


def reasoning_gym(
  reference: Mapping[str, Any], response: str, extract: str = "answer_tag"
) -> Verdict:
  """1 if the generator's score_answer gives the extracted answer full marks, else 0.

  Most of these scores give a part to any answer that contains the right one, 0.67 to 145 for 14,
  and some a hundredth to any answer at all: a policy that is rewarded so learns to say more.

  Args:
    reference: {"dataset": a generator's name, "entry": its question, answer and metadata}.
    response: what was said.
    extract: see extract.answer. With "auto" a response in none of the forms counts as a whole.
  """
  name, entry = reference["dataset"], reference["entry"]
  try:
    scorer = library.get_score_answer_fn(name)
  except ValueError as error:
    raise UnusableError(f"reasoning-gym has no generator {name!r}") from error
  given = answer(response, extract)
  if given is None and extract == "auto":
    given = answer(response, "all")
  if given is None:
    return Verdict(0.0, "unparsable")
  if name in _EVALUATED and given != entry["answer"] and not harmless(given):
    return Verdict(0.0, "unparsable", "is not evaluated: it could be a program")
  return Verdict(float(scorer(given, entry) >= 1))


def harmless(text: str) -> bool:
  """Whether evaluating a text can call nothing but elementary functions of mathematics.

  So that a language model's answer cannot run a program in the reward's process.
  """
  if "__" in text or len(text) > 5000 or re.search(r"\*\*[\s(-]*(\d{4}|\w*[\s(]*\*\*)", text):
    return False  # powers of powers would not end
  if "(" not in text:
    return not re.search(r"\blambda\b|:=|\bfor\b", text)
  calls = re.findall(r"([A-Za-z_]\w+)\s*\(", text)
  plain = re.fullmatch(r"[\w\s+\-*/^().,=|]*", text) and not re.search(r"[A-Za-z_)]\s*\.", text)
  return bool(plain) and all(name in _FUNCTIONS for name in calls)
