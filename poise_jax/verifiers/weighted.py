"""Weighted sums of checks."""

import dataclasses
from collections.abc import Mapping

from poise_jax import verifiers
from poise_jax.verifiers.base import Check, UnusableError, Verdict


def weighted(reference: Mapping[str, tuple[float, Check]], response: str) -> Verdict:
  """The weighted sum of the scores that several checks give one response.

  The verdict's parts are the scores by name, before weighting. Its status is the first one that is
  not "ok"; its answer is that of the first check.

  Args:
    reference: name of a part -> (weight, check); the weights add up to 1.
    response: the text to judge.
  """
  _check_mapping(reference)
  weights = {name: weight for name, (weight, _) in reference.items()}
  if abs(sum(weights.values()) - 1) > 1e-6:
    raise UnusableError(f"the weights of a weighted check must add up to 1, got {weights}")
  verdicts = {name: verifiers.verify(check, response) for name, (_, check) in reference.items()}
  total = sum(weights[name] * verdict.score for name, verdict in verdicts.items())
  failure = next((v for v in verdicts.values() if v.status != "ok"), Verdict(0.0))
  return Verdict(
    min(1.0, max(0.0, total)),
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


def verifier_names(check: Check) -> list[str]:
  """The verifiers that a check needs, those of its parts included."""
  if check.verifier != "weighted":
    return [check.verifier]
  _check_mapping(check.reference)
  return ["weighted", *(n for _, part in check.reference.values() for n in verifier_names(part))]


def _check_mapping(reference):
  if not isinstance(reference, Mapping):
    raise UnusableError(
      "the reference of verifier weighted maps the name of each part to (weight, Check), got "
      f"{reference!r}"
    )


weighted.check_reference = _check_mapping
