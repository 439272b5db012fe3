"""reasoning-gym's own scores of answers to its entries, where only full marks count as right."""

import re
from collections.abc import Mapping
from typing import Any

import reasoning_gym as library

from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.extract import answer_or_response
from poise_jax.verifiers.thought import judges_answer

# Generators whose scores pass the answer to Python's eval, some through sympy.parse_expr.
EVALUATED = (
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


@judges_answer
def reasoning_gym(
  reference: Mapping[str, Any], response: str, extract: str = "answer_tag"
) -> Verdict:
  """1 if the generator's score_answer gives the extracted answer full marks, else 0.

  Most generators give partial credit to any answer that contains the right one (0.67 to 145 for
  14), and some give 0.01 to any answer: rewarded like this, a policy learns to write more.

  Args:
    reference: {"dataset": a generator's name, "entry": its question, answer and metadata}.
    response: the text to judge.
    extract: see extract.find_answer; with "auto" a response in none of the forms counts as a whole.
  """
  if not isinstance(reference, Mapping) or not {"dataset", "entry"} <= set(reference):
    raise UnusableError(
      "the reference of verifier reasoning_gym needs a dataset and an entry, got "
      f"{reference!r:.100}"
    )
  name, entry = reference["dataset"], reference["entry"]
  try:
    scorer = library.get_score_answer_fn(name)
  except ValueError as error:
    raise UnusableError(f"reasoning-gym has no generator {name!r}") from error
  answer = answer_or_response(response, extract)
  if answer is None or not answer and entry["answer"] != "":
    return Verdict(0.0, "unparsable", f"no answer is in the form {extract}")
  if name in EVALUATED and answer != entry["answer"] and not harmless(answer):
    return Verdict(0.0, "unparsable", "the answer is not evaluated: it could be a program")
  return Verdict(float(scorer(answer, entry) >= 1), answer=answer)


def harmless(text: str) -> bool:
  """Whether evaluating a text can only call elementary mathematical functions.

  Otherwise a language model's answer could run a program in the verifier's process.
  """
  if "__" in text or len(text) > 5000 or re.search(r"\*\*[\s(-]*(\d{4}|\w*[\s(]*\*\*)", text):
    return False  # powers of powers take forever
  if "(" not in text:
    return not re.search(r"\blambda\b|:=|\bfor\b", text)
  calls = re.findall(r"([A-Za-z_]\w+)\s*\(", text)
  plain = re.fullmatch(r"[\w\s+\-*/^().,=|]*", text) and not re.search(r"[A-Za-z_)]\s*\.", text)
  return bool(plain) and all(name in _FUNCTIONS for name in calls)
