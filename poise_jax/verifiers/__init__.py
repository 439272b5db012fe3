"""Is an answer right? A verifier is a function (reference, response, **options) -> Verdict.

docs/verifiers.md lists the verifiers with their references and options.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from math import isfinite

from poise_jax import own_functions
from poise_jax.errors import UserError, unknown_name
from poise_jax.verifiers.base import STATUSES, Check, SandboxError, UnusableError, Verdict
from poise_jax.verifiers.extract import find_answer
from poise_jax.verifiers.thought import after_thought

_HERE = "poise_jax.verifiers"
# Module and function of each verifier. Modules load on first use: some import large libraries.
VERIFIERS = {
  "math": f"{_HERE}.math:math",
  "choice": f"{_HERE}.choice:choice",
  "exact": f"{_HERE}.exact:exact",
  "numeric": f"{_HERE}.exact:numeric",
  "last_integer": f"{_HERE}.exact:last_integer",
  "countdown": f"{_HERE}.countdown:countdown",
  "constraints": f"{_HERE}.constraints:constraints",
  "tool_call": f"{_HERE}.tool_calls:tool_call",
  "code": f"{_HERE}.code:code",
  "reasoning_gym": f"{_HERE}.gym:reasoning_gym",
  "structure": f"{_HERE}.structure:structure",
  "weighted": f"{_HERE}.weighted:weighted",
}


@functools.cache
def load(name: str) -> Callable[..., Verdict | float]:
  """The function behind a name in VERIFIERS or of a user, as "package.module:function" or
  "path/to/file.py:function".

  Raises:
    UnusableError: the name is unknown, its module fails to import, or it is not a function.
  """
  path = VERIFIERS.get(name, name)
  if not own_functions.is_own(path):
    raise UnusableError(
      f"{unknown_name('verifier', name, VERIFIERS)}, or name a function of your own as "
      f"{own_functions.FORMS}"
    )
  try:
    return own_functions.load(path)
  except UserError as error:
    raise UnusableError(f"verifier {name!r}: {error}") from error


def verify(check: Check, response: str) -> Verdict:
  """Judges one response in this process, without a time limit. `Pool` judges many safely.

  What is judged is the part of the response after its thought (see thought.py); only a user's
  function and the constraint "matches", which describes a format, see the whole response.

  The answer of an "ok" verdict that has none is what stands in a box, an answer line or a tag (see
  extract.py), or else all that follows the thought; None if the thought does not end. Answers that
  differ in case or white space become equal.

  Raises:
    UnusableError: the check cannot judge any response.
    UserError: a user's function returns neither a finite number nor a Verdict with such scores.
    SandboxError: the sandbox of a program could not be set up.
    Exception: whatever else a user's function raises. Where a verifier of this package raises, the
      response is the cause, and is unparsable.
  """
  verifier, options = load(check.verifier), dict(check.options)
  if check.think_end and getattr(verifier, "takes_think_end", False):
    options["think_end"] = check.think_end
  try:
    if check.verifier in VERIFIERS:
      result = verifier(check.reference, response, **options)
    else:
      result = _call(verifier, check, response, options)
    verdict = _verdict(check.verifier, result)
  except (UnusableError, SandboxError):
    raise
  except Exception as error:  # from any of the libraries behind a verifier
    if check.verifier not in VERIFIERS or check.verifier == "weighted":
      raise
    note = f"{check.verifier} fails on the answer: {error!r}"[:1000]
    verdict = Verdict(0.0, "unparsable", note)
  answer = verdict.answer
  if not answer and verdict.status == "ok":
    judged = after_thought(response, check.think_end)
    answer = judged and (find_answer(judged, options.get("extract", "auto")) or judged)
  answer = " ".join((answer or "").split()).casefold() or None
  parts = {name: float(part) for name, part in verdict.parts.items()}
  return dataclasses.replace(verdict, answer=answer, parts=parts)


_signature = functools.cache(inspect.signature)


def _call(function: Callable, check: Check, response: str, options: dict) -> Verdict | float:
  """Calls a user's function with those of the question, the row's columns and the options that it
  takes.

  The reference and the response come first, unless its parameters have these names, in any order.
  """
  parameters = _signature(function).parameters
  takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  offered = {**check.row, "question": check.question}
  named = {k: v for k, v in offered.items() if takes_all or k in parameters} | options
  given = {"reference": check.reference, "response": response}
  if given.keys() <= parameters.keys():
    return function(**{**named, **given})
  first = [*given, *list(parameters)[:2]]  # a column of such a name would be given twice
  named = {k: v for k, v in named.items() if k not in first}
  return function(check.reference, response, **named)


def _verdict(name: str, result: Verdict | float) -> Verdict:
  """What the verifier `name` returned, as a checked Verdict."""
  bounded = name in VERIFIERS and name != "weighted"
  try:
    verdict = result if isinstance(result, Verdict) else Verdict(float(result))
    scores = [verdict.score, *verdict.parts.values()]
    valid = all(0 <= x <= 1 if bounded else isfinite(x) for x in scores)
    valid = valid and verdict.status in STATUSES and isinstance(verdict.answer, str | None)
  except (TypeError, ValueError, AttributeError):
    valid = False
  if not valid:
    raise UserError(
      f"verifier {name!r} returned {result!r}; return a finite number, or a Verdict with such "
      f"scores, a status of {', '.join(STATUSES)}, and an answer that is text or None"
    )
  return verdict


def require_usable(check: Check) -> None:
  """Raises UnusableError if no response to a check can be right, as far as its verifier can tell.

  Nothing is known about the references and options of a user's function.
  """
  if check.verifier not in VERIFIERS:
    return
  verifier = load(check.verifier)
  try:
    _signature(verifier).bind(check.reference, "", **check.options)
  except TypeError as error:
    raise UnusableError(f"the options of verifier {check.verifier}: {error}") from error
  try:
    if hasattr(verifier, "check_reference"):
      verifier.check_reference(check.reference, **check.options)
    if check.verifier == "weighted":
      for _, part in check.reference.values():
        require_usable(part)
    else:
      verifier(check.reference, "", **check.options)
  except UnusableError:
    raise
  except Exception as error:  # it would crash on every response
    reference = f"the reference of verifier {check.verifier}, {check.reference!r:.100},"
    raise UnusableError(f"{reference} is malformed: {error!r}") from error


def score(checks: Sequence[Check], responses: Sequence[str]) -> list[Verdict]:
  """Judges responses, one check each, in this process."""
  return [verify(check, response) for check, response in zip(checks, responses, strict=True)]


__all__ = [
  *("STATUSES", "VERIFIERS", "Check", "UnusableError", "Verdict"),
  *("load", "require_usable", "score", "verify"),
]
