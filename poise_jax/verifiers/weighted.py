"""Weighted sums of checks."""

import dataclasses
from collections.abc import Iterator, Mapping

from poise_jax import verifiers
from poise_jax.verifiers.base import FAILURES, Check, UnusableError, Verdict


def weighted(reference: Mapping[str, tuple[float, Check]], response: str) -> Verdict:
  """The weighted sum of the scores that several checks give one response.

  The verdict's parts are the scores by name, before weighting. Its status is the first one that is
  not "ok"; its answer is that of the first check.

  Args:
    reference: name of a part -> (weight, check); the weights add up to 1.
    response: the text to judge.
  """
  check = Check("weighted", reference)
  return combine(check, (verifiers.verify(part, response) for part in single_checks(check)))


def single_checks(check: Check) -> list[Check]:
  """The checks without parts that a check consists of, in order; UnusableError if malformed."""
  if check.verifier != "weighted":
    return [check]
  _check_mapping(check.reference)
  return [single for _, part in check.reference.values() for single in single_checks(part)]


def combine(check: Check, single_verdicts: Iterator[Verdict]) -> Verdict:
  """The verdict of a check, given those of its `single_checks`; 0 if one of these has failed.

  Raises:
    UnusableError: the weights do not add up to 1.
  """
  if check.verifier != "weighted":
    return next(single_verdicts)
  weights = {name: weight for name, (weight, _) in check.reference.items()}
  if abs(sum(weights.values()) - 1) > 1e-6:
    raise UnusableError(f"the weights of a weighted check must add up to 1, got {weights}")
  parts = check.reference.items()
  verdicts = {name: combine(part, single_verdicts) for name, (_, part) in parts}
  lost = next((v for v in verdicts.values() if v.status in FAILURES), None)
  if lost:
    return Verdict(0.0, lost.status, lost.note)
  total = sum(weights[name] * verdict.score for name, verdict in verdicts.items())
  failure = next((v for v in verdicts.values() if v.status != "ok"), Verdict(0.0))
  if all(0 <= verdict.score <= 1 for verdict in verdicts.values()):
    total = min(1.0, max(0.0, total))  # rounding
  return Verdict(
    total,
    failure.status,
    failure.note,
    answer=next(iter(verdicts.values())).answer,
    parts={name: verdict.score for name, verdict in verdicts.items()},
  )


def with_think_end(check: Check, think_end: str) -> Check:
  """The check, and those of its parts, for responses whose thought ends with that marker."""
  reference = check.reference
  if check.verifier == "weighted":
    _check_mapping(reference)
    reference = {k: (weight, with_think_end(c, think_end)) for k, (weight, c) in reference.items()}
  return dataclasses.replace(check, reference=reference, think_end=think_end)


def _check_mapping(reference):
  if not isinstance(reference, Mapping):
    raise UnusableError(
      "the reference of verifier weighted maps the name of each part to (weight, Check), got "
      f"{reference!r}"
    )


weighted.check_reference = _check_mapping
