"""reasoning-gym's own scores of answers to its entries, where only full marks count as right."""

import functools
from collections.abc import Mapping
from typing import Any

import reasoning_gym as library

from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.extract import answer_or_response
from poise_jax.verifiers.gym_scores import REFUSED, SCORERS
from poise_jax.verifiers.thought import judges_answer


@judges_answer
def reasoning_gym(
  reference: Mapping[str, Any], response: str, extract: str = "answer_tag"
) -> Verdict:
  """1 if the generator's score_answer gives the extracted answer full marks, else 0.

  Most generators give partial credit to any answer that contains the right one (0.67 to 145 for
  14), and some give 0.01 to any answer: rewarded like this, a policy learns to write more. The
  generators in gym_scores.SCORERS are scored there instead.

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
  if name in REFUSED:
    raise UnusableError(f"reasoning-gym's {name} cannot be a reward: {REFUSED[name]}")
  try:
    scorer = _library_scorer(name)
  except ValueError as error:
    raise UnusableError(f"reasoning-gym has no generator {name!r}") from error
  answer = answer_or_response(response, extract)
  if answer is None or not answer and entry["answer"] != "":
    return Verdict(0.0, "unparsable", f"no answer is in the form {extract}")
  if name not in SCORERS:
    return Verdict(float(scorer(answer, entry) >= 1), answer=answer)
  try:
    return Verdict(float(SCORERS[name](answer, entry)), answer=answer)
  except ValueError as error:
    return Verdict(0.0, "unparsable", str(error), answer=answer)


@functools.cache
def _library_scorer(name):
  """The library's scorer of a generator; some load files for seconds when they are made."""
  return library.get_score_answer_fn(name)
