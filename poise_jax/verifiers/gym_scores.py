"""Our own scores for generators of reasoning-gym whose scores can be earned without the work.

The library's scores of the other generators are used where they are 1 (gym.py). The table of
docs/results/reward_audit says what answers without work earn from each generator.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import sympy

from poise_jax.verifiers.countdown import countdown
from poise_jax.verifiers.formulas import formula

REFUSED = {  # generator -> why its score cannot be a reward
  "boxnet": "moves of boxes that are not there are ignored, so that one plan solves every grid",
  "propositional_logic": "any conclusion has full marks, also a premise that is said again",
}

DRAWS = {  # generator -> problems to draw for each that is of use, see `useless`
  "intermediate_integration": 4,
  "polynomial_equations": 20,
  "string_insertion": 50,
}


def useless(name: str, entry: Mapping[str, Any]) -> bool:
  """Whether a generator's problem has no answer, or none that takes work.

  The library cannot work out some of its integrals. Any text is right for a polynomial without real
  roots, and 95 % of string_insertion's problems with default settings ask for the string itself.
  """
  answer = entry["answer"]
  if name == "polynomial_equations":
    return not answer
  if name == "string_insertion":
    return entry["question"].split()[-1] == answer
  return name == "intermediate_integration" and "Integral(" in answer


def _is_reference(answer, entry):
  return answer.strip() == entry["answer"].strip()


def _is_word(answer, entry):
  """The library's 0.1 for each right letter is full marks for ten, whatever follows them."""
  return answer.replace(" ", "").lower() == entry["answer"].strip().lower()


def _is_truth_value(answer, entry):
  """The library takes any text for True, also False."""
  return answer.strip().lower() == str(entry["answer"]).lower()


def _is_same_json(answer, entry):
  """The library compares the reference's cells only, so that the answer may have more."""
  return json.loads(answer) == json.loads(entry["answer"])


def _is_sorted(answer, entry):
  """The library lets every number be wrong by 1, and NaN is never wrong."""
  numbers = json.loads(answer.replace("'", '"'), parse_constant=_not_a_number)
  if not isinstance(numbers, list):
    raise ValueError("the answer is no list")
  expected = json.loads(entry["answer"].replace("'", '"'))
  return [_number(x) for x in numbers] == [_number(x) for x in expected]


def _number(x):
  if not isinstance(x, str | int | float) or not math.isfinite(value := float(x)):
    raise ValueError(f"{x!r:.100} is no number")
  return value


def _not_a_number(name):
  raise ValueError(f"{name} is no number")


def _is_probability(answer, entry):
  """The library compares beginnings of texts, so that "0" begins as any probability does."""
  text = answer.replace(" ", "").replace(",", "").lower()
  number = r"\+?(\d{1,30}(/[1-9]\d{0,30}|\.\d{0,30})?|\.\d{1,30})(e-\d\d?)?"
  if not re.fullmatch(number, text, re.ASCII):
    raise ValueError("an answer of coin_flip is a decimal number or a fraction")
  value, expected = Fraction(text), Fraction(entry["answer"])
  return abs(value - expected) <= min(1e-4, expected / 100)


def _is_complex(answer, entry):
  """For the library, NaN is as close as it can be."""
  text = answer.lower().replace(" ", "").replace("*i", "i").replace("i", "j").strip("()")
  if "n" in text:
    raise ValueError("an answer of complex_arithmetic has digits, signs and i only")
  return abs(complex(text) - complex(*entry["metadata"]["result"])) < 1e-9


def _is_same_integer(answer, entry):
  """In any base with a prefix. The library evaluates the question, which ends a confined worker."""
  return int(answer, 0) == int(entry["answer"], 0)


def _is_date_answer(answer, entry):
  """The library's relative error of -1, which stands for no such date, is negative."""
  try:
    return int(answer) == int(entry["answer"])
  except ValueError:
    return answer.strip().lower() == entry["answer"].lower()


def _is_valid_board(answer, entry):
  return answer in entry["metadata"]["valid_answers"]


def _makes(answer, numbers, target):
  """Whether an expression of the numbers, each used once, equals the target."""
  verdict = countdown({"numbers": numbers, "target": target}, answer, extract="all")
  if verdict.status != "ok":
    raise ValueError(verdict.note)
  return verdict.score == 1


def _makes_target(answer, entry):
  return _makes(answer, entry["metadata"]["numbers"], entry["metadata"]["target"])


def _makes_24(answer, entry):
  return _makes(answer, entry["metadata"]["numbers"], 24)


def _is_product(answer, entry):
  return formula(answer) == formula(entry["answer"])


def _is_integral(answer, entry):
  variable = sympy.Symbol(entry["metadata"]["variable"])
  derivative = sympy.diff(formula(answer), variable)
  return sympy.simplify(derivative - formula(entry["metadata"]["integrand"])) == 0


# Generator -> whether an answer is right; raises ValueError if it cannot be read.
SCORERS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
  # The library's scores evaluate the answer or the question as Python.
  "binary_matrix": _is_reference,
  "bitwise_arithmetic": _is_same_integer,
  "countdown": _makes_target,
  "intermediate_integration": _is_integral,
  "n_queens": _is_valid_board,
  "polynomial_multiplication": _is_product,
  "puzzle24": _makes_24,
  "simple_integration": _is_integral,
  "spiral_matrix": _is_reference,
  "string_insertion": _is_reference,
  # The library's scores take wrong answers.
  "calendar_arithmetic": _is_date_answer,
  "coin_flip": _is_probability,
  "complex_arithmetic": _is_complex,
  "figlet_font": _is_word,
  "game_of_life": _is_same_json,
  "game_of_life_halting": _is_truth_value,
  "number_sorting": _is_sorted,
}
