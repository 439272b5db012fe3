"""Intervals over seeds, by the bootstrap.

Arms share the warm start and the problems of a seed, so a resample draws whole seeds, with all of
their arms: differences and ratios of arms are paired. The percentile bootstrap of few samples is
too narrow: a 95 % interval of 5 normal samples covers about 85 %. Its levels are therefore expanded
as in T. Hesterberg, "What Teachers Should Know About the Bootstrap" (2015), so that for normal
samples the width is about that of Student's t interval. For 5 seeds it covers about 92 %.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from poise_jax import files

CONFIDENCE = 0.95
RESAMPLES = 10_000  # fewer where these are all that exist


@dataclasses.dataclass(frozen=True)
class Interval:
  """A number with its confidence interval; the ends of one from a single seed are NaN."""

  value: float
  low: float
  high: float
  seeds: int

  def __str__(self) -> str:
    if self.seeds < 2:
      return f"{self.value:.3f}"
    return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

  @property
  def half_width(self) -> float:
    """Half of the interval's width, for error bars; 0 for a single seed."""
    return 0.0 if self.seeds < 2 else (self.high - self.low) / 2

  def above(self, threshold: float) -> bool | None:
    """Whether the number is above a threshold; None if the interval contains the threshold or has
    no ends."""
    if self.low > threshold:
      return True
    return False if self.high < threshold else None

  def below(self, threshold: float) -> bool | None:
    """Whether the number is below a threshold, as `above`."""
    if self.high < threshold:
      return True
    return False if self.low > threshold else None

  def to_json(self) -> dict[str, float | int | None]:
    """{"value", "low", "high", "seeds"}; None for numbers that are not finite."""
    return files.known(dataclasses.asdict(self))


@functools.cache
def draws(count: int) -> Int[np.ndarray, "resamples count"]:
  """Resamples of `count` seeds with replacement: all that exist if they are few."""
  if count**count <= RESAMPLES:
    return np.array(list(itertools.product(range(count), repeat=count)), np.int64)
  return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def tail(count: int, confidence: float = CONFIDENCE) -> float:
  """Probability of each tail that is cut off, expanded for few samples."""
  t = stats.t.ppf((1 + confidence) / 2, count - 1)
  return float(stats.norm.cdf(-np.sqrt(count / (count - 1)) * t))


def bootstrap(statistic: Callable[[Int[np.ndarray, " count"]], float], count: int) -> Interval:
  """The interval of a statistic of seeds.

  Args:
    statistic: indices of seeds, with repetitions -> the number, which may be infinite; NaN counts
      as the highest.
    count: number of seeds, at least 1.
  """
  resampled = [statistic(indices) for indices in draws(count)] if count > 1 else []
  return _interval(float(statistic(np.arange(count))), resampled, count)


def _interval(value, resampled, count) -> Interval:
  """The interval around a value from those of the resamples."""
  if count < 2:
    return Interval(value, np.nan, np.nan, count)
  # An order statistic on either side: no mean of an infinite and a finite number.
  ordered, place = np.sort(resampled), int(np.floor(tail(count) * len(resampled)))
  return Interval(value, float(ordered[place]), float(ordered[-1 - place]), count)


def mean(values: Sequence[float]) -> Interval:
  """The interval of the mean over seeds."""
  values = np.asarray(values, np.float64)
  return _interval(float(values.mean()), values[draws(len(values))].mean(1), len(values))


def difference(a: Sequence[float], b: Sequence[float]) -> Interval:
  """The interval of mean(a) - mean(b), where a[i] and b[i] are of the same seed."""
  return mean(np.subtract(a, b))


def ratio(a: Sequence[float], b: Sequence[float]) -> Interval:
  """The interval of mean(a) / mean(b), where a[i] and b[i] are of the same seed. The ratio is
  infinite if only the latter is 0, and NaN, which counts as the highest, if both are."""
  (a, b), drawn = (np.asarray(x, np.float64) for x in (a, b)), draws(len(a))
  with np.errstate(divide="ignore", invalid="ignore"):
    return _interval(float(a.mean() / b.mean()), a[drawn].mean(1) / b[drawn].mean(1), len(a))


def spread(arms: Sequence[Sequence[float]]) -> Interval:
  """The interval of the range of the arms' means, where arms[i][j] is of seed j."""
  means = np.asarray(arms, np.float64)[:, draws(len(arms[0]))].mean(-1)
  return _interval(float(np.ptp(np.mean(arms, -1))), np.ptp(means, axis=0), len(arms[0]))


def crossing(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], level: float) -> float:
  """The first x at which a curve of straight segments reaches a level; infinite if it never does.

  Args:
    x: ascending.
    y: values at x.
    level: to be reached from below.
  """
  reached = np.flatnonzero(y >= level)
  if not len(reached):
    return float("inf")
  i = int(reached[0])
  if i == 0:
    return float(x[0])
  return float(x[i - 1] + (x[i] - x[i - 1]) * (level - y[i - 1]) / (y[i] - y[i - 1]))
