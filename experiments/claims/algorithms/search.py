"""The search for each arm's learning rate and clipping: the same trials for all, on one seed.

The results of a search can stand for its runs, for example where seeds are divided among machines:
DIR/search.json is read if it is there. Its content is that of "search" in results/metrics.json.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.claims.lab import Arm, Lab, sampled_accuracy
from experiments.claims.runner import Unit
from poise_jax.errors import UserError
from poise_jax.reports import markdown, run_log

LEARNING_RATES = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)
CLIPPED = {"train.max_grad_norm": 0.2}  # tried with the best learning rate
SEED = 100
RECORD = "search.json"


@dataclasses.dataclass(frozen=True)
class Trial:
  """A run of the search."""

  unit: Unit
  fields: Callable[[], dict[str, object]]  # the changes that it tries, once its needs are finished


def rates(lab: Lab) -> tuple[float, ...]:
  """The learning rates that are tried; a quick run tries fewer."""
  return LEARNING_RATES[:2] if lab.quick else LEARNING_RATES


def trials(lab: Lab, arm: Arm) -> list[Trial]:
  """The trials of an arm: learning rates, then the best of them with CLIPPED."""
  made = []
  for rate in rates(lab):
    fields = {"train.learning_rate": rate}
    trial = Arm(f"{arm.name} {rate:g}", arm.algorithm, fields)
    made.append(Trial(lab.train(trial, SEED, "search"), functools.partial(dict, fields)))
  by_rate = list(made)

  def clipped():
    return best(lab, arm, by_rate) | CLIPPED

  trial = Arm(f"{arm.name} clipped", arm.algorithm)
  needs = [trial.unit.name for trial in by_rate]
  return [*by_rate, Trial(lab.train(trial, SEED, "search", clipped, needs), clipped)]


def best(lab: Lab, arm: Arm, tried: Sequence[Trial]) -> dict[str, object]:
  """The fields of the trial with the highest sampled accuracy; of equal ones the first."""
  return tried[int(np.argmax(scores(lab, arm, tried)))].fields()


def scores(lab: Lab, arm: Arm, tried: Sequence[Trial]) -> list[float]:
  """The sampled accuracy of finished trials."""
  if known := recorded(lab):
    return known["sampled accuracy"][arm.name][: len(tried)]
  return [sampled_accuracy(run_log.read(lab.path(trial.unit.name))) for trial in tried]


def units(lab: Lab, arms: Sequence[Arm]) -> tuple[list[Unit], dict[str, list[str]]]:
  """The runs that are needed, and by arm the names of those that its choice waits for."""
  if recorded(lab):
    return [], {arm.name: [] for arm in arms}
  made = {arm.name: [trial.unit for trial in trials(lab, arm)] for arm in arms}
  searched = [lab.start(SEED), *(unit for found in made.values() for unit in found)]
  needs = {arm: [unit.name for unit in found] for arm, found in made.items()}
  # They belong to all seeds.
  return [dataclasses.replace(unit, seed=None) for unit in searched], needs


def recorded(lab: Lab) -> Mapping[str, Any] | None:
  """The search in DIR/search.json, if there is one.

  Raises:
    UserError: it is that of other trials, or with another base experiment.
  """
  path = lab.path(RECORD)
  if not path.exists():
    return None
  known = json.loads(path.read_text())
  if known.get("trials") != _trials(lab):
    raise UserError(
      f"{path} has the search {known.get('trials')}, but this command has {_trials(lab)}; delete "
      "the file to search again"
    )
  return known


def record(lab: Lab, searched: Mapping[str, Sequence[float]]) -> dict[str, Any]:
  """The content of DIR/search.json."""
  return {"trials": _trials(lab), "sampled accuracy": dict(searched)}


def _trials(lab):
  """What the search tries and with which base experiment, as JSON."""
  plan = {"learning rates": rates(lab), "then": CLIPPED, "seed": SEED, "fields": lab.fields}
  return json.loads(json.dumps(plan))


def table(searched: Mapping[str, Sequence[float]]) -> str:
  """The sampled accuracy of every arm's trials."""
  rows = []
  for arm, found in searched.items():
    cells = [f"{x:.3f}" for x in found]
    chosen = int(np.argmax(found))
    cells[chosen] = f"**{cells[chosen]}**"
    rows.append([arm, *cells])
  (count,) = {len(found) - 1 for found in searched.values()}  # a quick run tries fewer rates
  tried = [f"{rate:g}" for rate in LEARNING_RATES[:count]]
  (norm,) = CLIPPED.values()
  return markdown.table(("arm", *tried, f"the best, max_grad_norm={norm}"), rows)
