"""The part of a response that is judged: what follows the last end-of-thinking marker.

Every verifier of this package is decorated with `judges_answer`, which hides the thought from it,
but `weighted`, whose parts are verifiers, and `constraints`, one of which describes the form of the
whole response. A user's function sees the whole response.
"""

import functools
from collections.abc import Callable

from poise_jax.verifiers.base import Verdict

START, END = "<think>", "</think>"


def after_thought(response: str, think_end: str = "") -> str | None:
  """The part of a response after its thought, None if the thought does not end.

  Args:
    response: text of a response.
    think_end: marker that must occur; what follows the last one is the answer. Empty: END, which
      must only occur if START does. A START in the answer opens another thought.
  """
  if think_end:
    _, marker, response = response.rpartition(think_end)
    if not marker:
      return None
  answer = response.rpartition(END)[2]
  return None if START in answer else answer


def unfinished(think_end: str) -> Verdict:
  """The verdict on a response whose thought does not end."""
  return Verdict(0.0, "unparsable", f"the thought does not end with {think_end or END}")


def takes_think_end(verifier: Callable[..., Verdict]) -> Callable[..., Verdict]:
  """The verifier, marked as one whose option `think_end` is that of `after_thought`; a check's own
  `think_end` sets it."""
  verifier.takes_think_end = True
  return verifier


def judges_answer(verifier: Callable[..., Verdict]) -> Callable[..., Verdict]:
  """The verifier with the option `think_end`; it sees what follows the thought of a response, and
  a response whose thought does not end is unparsable."""

  @takes_think_end
  @functools.wraps(verifier)
  def judge(reference, response, *args, think_end="", **options):
    answer = after_thought(response, think_end)
    if answer is None:
      return unfinished(think_end)
    return verifier(reference, answer, *args, **options)

  return judge
