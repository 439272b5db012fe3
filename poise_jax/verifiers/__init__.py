"""Is an answer right? Verifiers are functions (reference, response, **options) -> Verdict.

docs/verifiers.md lists them with their references and options.
"""

import functools
import importlib
from collections.abc import Callable, Sequence

from poise_jax.errors import UserError
from poise_jax.verifiers.base import STATUSES, Check, UnusableError, Verdict

_HERE = "poise_jax.verifiers"
# Where each verifier is: modules load when they are needed, for some bring a large library.
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
def load(name: str) -> Callable[..., Verdict]:
  """The function of a name in VERIFIERS, or of a user's "package.module:function".

  Raises UnusableError if there is none, or a library that it needs is missing.
  """
  path = VERIFIERS.get(name, name)
  module, colon, function = path.partition(":")
  if not colon:
    raise UnusableError(
      f"verifier {name!r} is unknown; known are {', '.join(VERIFIERS)}, and a function of your own "
      "as 'package.module:function'"
    )
  try:
    loaded = getattr(importlib.import_module(module), function)
  except Exception as error:  # whatever a user's module does while it is imported
    raise UnusableError(f"verifier {name!r} does not load: {error!r}") from error
  if not callable(loaded):
    raise UnusableError(f"verifier {name!r} is not a function but a {type(loaded).__name__}")
  return loaded


def verify(check: Check, response: str) -> Verdict:
  """Judges one response in this process: no time limit, errors are raised. See pool.Pool.

  Raises:
    UnusableError: the check cannot judge any answer.
    UserError: a user's function returned something else than a number in [0, 1] or a Verdict.
  """
  said = load(check.verifier)(check.reference, response, **check.options)
  if not isinstance(said, Verdict):
    said = Verdict(float(said))
  if not 0 <= said.score <= 1 or said.status not in STATUSES:
    raise UserError(f"verifier {check.verifier!r} gave {said}; scores are numbers in [0, 1]")
  return said


def score(checks: Sequence[Check], responses: Sequence[str]) -> list[Verdict]:
  """Judges responses, one check each, in this process."""
  return [verify(check, response) for check, response in zip(checks, responses, strict=True)]


__all__ = ["STATUSES", "VERIFIERS", "Check", "UnusableError", "Verdict", "load", "score", "verify"]
