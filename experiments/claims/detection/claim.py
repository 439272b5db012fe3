"""What dynamic sampling and GRESO spend on groups without mixed rewards; POISE discards none."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.claims import costs, intervals
from experiments.claims.claim import Check, Claim, Outcome
from experiments.claims.lab import LATE, Arm, Lab, final_accuracy, mean_series
from experiments.claims.runner import Unit
from poise_jax.reports import comparison, markdown, svg
from poise_jax.reports.run_log import Run

# So few that prompts come back: GRESO knows nothing about a prompt at its first visit.
PROBLEMS = {"task.train": 1000}
POISE = Arm("poise, 1000 problems", "poise", PROBLEMS)
DAPO = Arm("dapo, 1000 problems", "dapo", PROBLEMS)
GRESO = Arm("dapo_greso, 1000 problems", "dapo_greso", PROBLEMS)
ARMS = (POISE, DAPO, GRESO)
NOTABLE = 0.1  # of the sampled tokens


def units(lab: Lab) -> list[Unit]:
  """The runs of every seed."""
  made = []
  for seed in lab.seeds:
    made += [lab.start(seed), *(lab.train(arm, seed) for arm in ARMS)]
  return made


def total(run: Run, metric: str) -> float:
  """The sum of a metric over the steps of a run."""
  return float(run.series(metric)[1].sum())


def unused_tokens(run: Run) -> float:
  """The share of the sampled tokens that no update has seen."""
  return 1 - total(run, "rollout/tokens") / total(run, "collect/tokens")


def unused_time(run: Run) -> float:
  """The share of the time of all steps that went into sampling and judging rollouts that no update
  has seen, in proportion to their number: a batch takes as long as its longest answer. Steps that
  compile a program are left out."""
  n, rollouts = run.config["rollout"]["n"], run.config["rollouts"]
  rows = [row for row, counts in zip(run.rows, costs.steady(run), strict=True) if counts]
  used = sum(n * row.get("collect/groups", rollouts // n) for row in rows)
  sampled = sum(row["collect/generated"] for row in rows)
  spent = sum(row["time/rollout"] + row["time/reward"] for row in rows)
  return (1 - used / sampled) * spent / sum(row["time/step"] for row in rows)


def sampled_per_step(runs: Sequence[Run], part: int) -> str:
  """Rollouts sampled per step in one of LATE parts of the steps."""
  counts = [np.array_split(run.series("collect/generated")[1], LATE)[part] for run in runs]
  return f"{np.concatenate(counts).mean():.0f}"


def analyse(lab: Lab, seeds: tuple[int, ...]) -> Outcome:
  """What was sampled and discarded."""
  return outcome({arm.name: [lab.read(arm, seed) for seed in seeds] for arm in ARMS})


def outcome(runs: Mapping[str, Sequence[Run]]) -> Outcome:
  """The outcome of runs by arm."""
  tokens = {arm: [unused_tokens(run) for run in members] for arm, members in runs.items()}
  time = {arm: [unused_time(run) for run in members] for arm, members in runs.items()}
  saved = intervals.difference(tokens[DAPO.name], tokens[GRESO.name])
  rows = [
    [
      arm,
      intervals.mean(tokens[arm]),
      intervals.mean(time[arm]),
      f"{np.mean([run.positions('rollouts')[-1] for run in members]):,.0f}",
      sampled_per_step(members, 0),
      sampled_per_step(members, -1),
      f"{np.mean([total(run, 'collect/tokens') for run in members]):,.0f}",
      _skipped(members),
      f"{mean_series(members, 'collect/groups'):.1f}" if arm != POISE.name else "all",
      intervals.mean([final_accuracy(run) for run in members]),
    ]
    for arm, members in runs.items()
  ]
  header = (
    *("arm", "share of sampled tokens unused", "share of time for them", "rollouts sampled"),
    *("per step, first third", "per step, last third"),
    *("tokens sampled", "prompts skipped per step", "groups trained on per step"),
    "held-out accuracy",
  )
  panels = list(comparison.panels(runs, ["rollouts", "tokens"], {"eval/accuracy": "Accuracy"}))
  return Outcome(
    checks=[
      Check.above(
        f"DAPO discards more than {NOTABLE:.0%} of the tokens that it samples (share)",
        "not given",
        intervals.mean(tokens[DAPO.name]),
        NOTABLE,
      ),
      Check.above(
        "GRESO discards a smaller share (DAPO's minus GRESO's)",
        "2.4 times faster rollouts (GRESO's source)",
        saved,
      ),
      Check.below(
        "POISE discards nothing (share below 0.001)",
        "none by construction (v2)",
        intervals.mean(tokens[POISE.name]),
        0.001,
      ).as_control(),
    ],
    tables={"Sampled and discarded": markdown.table(header, rows)},
    figure=svg.picture(panels, list(runs), 2),
    numbers={"unused tokens by seed": tokens, "time for unused tokens by seed": time},
  )


def _skipped(runs):
  skipped = mean_series(runs, "collect/skipped")
  return "none" if np.isnan(skipped) else f"{skipped:.1f}"


CLAIM = Claim(
  folder=pathlib.Path(__file__).parent,
  title="POISE discards no rollouts to find groups with mixed rewards",
  source="DAPO samples groups again until enough differ, and GRESO predicts which will; POISE "
  "trains on all that it samples (v2 sections 1 and 4.2, no number)",
  seeds=(0, 1, 2, 3, 4),
  units=units,
  analyse=analyse,
)
