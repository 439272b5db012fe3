"""What a claim is, and how the outcome of its runs becomes a verdict."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.claims.intervals import Interval
from experiments.claims.lab import Lab
from experiments.claims.runner import Unit

HOLDS = "holds"
PART = "holds in part"
FAILS = "does not hold here"
UNKNOWN = "cannot be told"
NOT_RUN = "not run yet"


@dataclasses.dataclass(frozen=True)
class Check:
  """A hypothesis that was fixed before the runs, and what they say about it."""

  hypothesis: str
  source: str  # the source's number
  ours: str
  holds: bool | None  # None: the interval contains the threshold
  control: bool = False  # tests the measurement, or is nearly certain: no part of the verdict

  @classmethod
  def above(cls, hypothesis: str, source: str, ours: Interval, threshold: float = 0.0) -> "Check":
    """That a number is above a threshold."""
    return cls(hypothesis, source, str(ours), ours.above(threshold))

  @classmethod
  def below(cls, hypothesis: str, source: str, ours: Interval, threshold: float = 0.0) -> "Check":
    """That a number is below a threshold."""
    return cls(hypothesis, source, str(ours), ours.below(threshold))

  def as_control(self) -> "Check":
    """The same check, left out of the verdict."""
    return dataclasses.replace(self, control=True)

  @property
  def outcome(self) -> str:
    """One of the verdicts."""
    return {True: HOLDS, False: FAILS, None: UNKNOWN}[self.holds]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What the finished runs of a claim say; the first check is the headline."""

  checks: Sequence[Check]
  tables: Mapping[str, str]  # heading -> table in Markdown; the first one goes into RESULTS.md
  figure: str  # an SVG file
  numbers: Mapping[str, Any]  # for metrics.json; lists below a name "... by seed" have one a seed

  def __post_init__(self):
    if self.checks[0].control:
      raise ValueError(f"the headline is a control: {self.checks[0].hypothesis}")


@dataclasses.dataclass(frozen=True)
class Claim:
  """A claim of the paper, and how it is tested."""

  folder: pathlib.Path  # holds page.md; its name is the claim's
  title: str
  source: str  # the source's result with its place in the paper
  seeds: tuple[int, ...]  # fixed before the runs
  units: Callable[[Lab], list[Unit]]  # the runs, in order
  analyse: Callable[[Lab, tuple[int, ...]], Outcome]  # of the seeds whose runs are all finished

  @property
  def name(self) -> str:
    """The name on the command line."""
    return self.folder.name


def verdict(checks: Sequence[Check], finished: int, planned: int) -> str:
  """The verdict on a claim.

  Until every seed is finished it cannot be told: to stop at the seed at which an interval happens
  to leave a threshold would find differences where there are none.

  Args:
    checks: of all hypotheses; controls do not count.
    finished: planned seeds whose runs are all finished.
    planned: seeds that were fixed before the runs.
  """
  if finished < planned:
    return UNKNOWN
  outcomes = [check.holds for check in checks if not check.control]
  if all(outcome is True for outcome in outcomes):
    return HOLDS
  if any(outcome is True for outcome in outcomes):
    return PART
  return FAILS if any(outcome is False for outcome in outcomes) else UNKNOWN
