"""The tables of a comparison: means over seeds, paired differences, runs, costs and probes.

A table has few enough columns for a window of 1,200 pixels.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from poise_jax.reports import value
from poise_jax.reports.run_log import Run, metric_of

LAST = 10  # steps at the end of a run over which the reward is averaged
PROBE_METRICS = ("mae", "pearson")
PROBE_HEADER = ("run", "domain", "MAE", "r", "held-out accuracy before", "after")
COSTS_HEADER = (
  *("algorithm", "seed", "steps", "rollouts", "tokens", "minutes"),
  *("seconds of a step: sampling", "estimation", "update"),
)

Groups = Mapping[str, Sequence[Run]]  # label of a curve -> its runs by seed
Table = tuple[Sequence[str], list[list[str]]]  # header, rows


def before(run: Run) -> float:
  """Held-out accuracy of the first evaluation, as config.eval.best_by chooses it."""
  return run.series(metric_of(run.best_by))[1][0]


def after(run: Run) -> float:
  """Held-out accuracy of the last evaluation."""
  return run.series(metric_of(run.best_by))[1][-1]


def gain(run: Run) -> float:
  """Held-out accuracy that the run gained."""
  return after(run) - before(run)


def reward(run: Run) -> float | None:
  """Mean reward of the last steps; None if no step was logged."""
  _, series = run.series("reward/mean")
  return float(series[-LAST:].mean()) if len(series) else None


def clipped(runs: Sequence[Run]) -> float | None:
  """The fraction of optimizer steps whose gradient was clipped; None if it was not logged."""
  series = np.concatenate([run.series("policy/grad_clipped")[1] for run in runs])
  return float(series.mean()) if len(series) else None


def removed(run: Run) -> float | None:
  """The share of the reward's variance that the baseline removes; None if it was not logged."""
  shares = value.common(_second_half(run), "baseline/variance_reduction")
  return float(shares.mean()) if len(shares) else None


RESULTS = {  # column -> the number of a run, and whether it is a difference
  "held-out accuracy before": (before, False),
  "held-out accuracy after": (after, False),
  "gain": (gain, True),
  f"reward, last {LAST} steps": (reward, False),
  "variance removed by the baseline": (removed, False),
}
PAIRED = ("held-out accuracy after", "gain", f"reward, last {LAST} steps")


def means(groups: Groups) -> Table:
  """A row for each group: the mean of every result ± its standard error over seeds."""
  rows = [
    [label, f"{len(runs)}", *(_mean(map(f, runs), signed) for f, signed in RESULTS.values())]
    for label, runs in groups.items()
  ]
  return ("algorithm", "seeds", *RESULTS), rows


def pairs(groups: Groups) -> Table:
  """A row for each pair of groups with a seed in common: differences between equal seeds."""
  rows = []
  for first, second in itertools.combinations(groups, 2):
    runs, others = ({run.seed: run for run in groups[label]} for label in (first, second))
    seeds = sorted(runs.keys() & others.keys())
    if seeds:
      differences = (
        _mean((_minus(f, runs[seed], others[seed]) for seed in seeds), signed=True)
        for f, _ in (RESULTS[column] for column in PAIRED)
      )
      rows.append([f"{first} − {second}", f"{len(seeds)}", *differences])
  return ("difference", "common seeds", *PAIRED), rows


def results(groups: Groups) -> Table:
  """A row for each run: its results, how often it was clipped and the r of its baseline."""
  rows = [
    [
      *(label, f"{run.seed}"),
      *(_number(f(run), signed) for f, signed in RESULTS.values()),
      "" if (share := clipped([run])) is None else f"{share:.2f}",
      value.r_of_ceiling(_second_half(run), "baseline"),
    ]
    for label, runs in groups.items()
    for run in runs
  ]
  return ("algorithm", "seed", *RESULTS, "clipped", "r of the baseline"), rows


def costs(groups: Groups) -> Table:
  """A row for each run: what it sampled, and how long it took."""
  rows = []
  for label, run in ((label, run) for label, runs in groups.items() for run in runs):
    times = [run.series(f"time/{part}")[1] for part in ("rollout", "estimate", "update")]
    rows.append(
      [
        *(label, f"{run.seed}", f"{run.step}"),
        *(f"{run.positions(axis)[-1]:.0f}" for axis in ("rollouts", "tokens")),
        f"{run.positions('minutes')[-1]:.1f}",
        *(f"{np.median(seconds):.2f}" if len(seconds) else "" for seconds in times),
      ]
    )
  return COSTS_HEADER, rows


def probes(runs: Mapping[str, Run]) -> Table:
  """A row for each domain of every run with a probe for each domain."""
  lines = []
  for name, run in runs.items():
    metrics = dict.fromkeys(metric for row in run.rows for metric in row)
    for metric in metrics:
      if not metric.startswith("probe/mae/"):
        continue
      domain = metric.removeprefix("probe/mae/")
      series = [run.series(f"probe/{metric}/{domain}")[1] for metric in PROBE_METRICS]
      _, accuracy = run.series(f"eval/accuracy/{domain}")
      ends = [f"{accuracy[i]:.3f}" for i in (0, -1)] if len(accuracy) else ["", ""]
      lines.append([name, domain, *(f"{values[-LAST:].mean():.3f}" for values in series), *ends])
  return PROBE_HEADER, lines


def standard_error(values: Float[np.ndarray, "runs ..."]) -> Float[np.ndarray, "..."]:
  """The standard error of the mean over the first axis, which has at least two entries."""
  return values.std(0, ddof=1) / np.sqrt(len(values))


def _second_half(run: Run) -> list[dict[str, float]]:
  """The metrics of the steps in the second half of a run."""
  return [row for row in run.rows if row["step"] > run.step / 2]


def _minus(number: Callable[[Run], float | None], run: Run, other: Run) -> float | None:
  """The difference of a result between two runs; None if one of them lacks it."""
  a, b = number(run), number(other)
  return None if a is None or b is None else a - b


def _mean(numbers, signed: bool) -> str:
  """The mean ± its standard error, without an error for one number; "" if one is missing."""
  numbers = list(numbers)
  if None in numbers:
    return ""
  mean = _number(np.mean(numbers), signed)
  return f"{mean} ± {standard_error(np.array(numbers)):.3f}" if len(numbers) > 1 else mean


def _number(number: float | None, signed: bool) -> str:
  return "" if number is None else f"{number:{'+' if signed else ''}.3f}"
