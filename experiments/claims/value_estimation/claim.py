"""The probe against critics as large as the policy, on the same answers, by task family."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.claims import intervals
from experiments.claims.claim import Check, Claim, Outcome
from experiments.claims.intervals import Interval
from experiments.claims.lab import Lab
from experiments.claims.runner import Unit
from experiments.claims.value_estimation.source_scale import source_bytes
from poise_jax.reports import markdown, svg

PROBE = "POISE: states and entropies of the sibling"
CRITICS = {"prompt-only critic": "critic of sppo", "token critic": "critic of ppo"}
PREDICTORS = {"probe": PROBE, **CRITICS}
SEARCHED = "sppo, longer"  # of experiments/critics.py
LONGER = f"critic of {SEARCHED}"
COSTS = {"probe": "probe", "prompt-only critic": "sppo", "token critic": "ppo"}
ALL = "all"
FAMILIES = 4  # of five, on which the probe is to be better on average; of fewer families all


def units(lab: Lab) -> list[Unit]:
  """A warm start and its probes and critics for every seed."""
  return [unit for seed in lab.seeds for unit in (lab.start(seed), lab.ablation(seed))]


def analyse(lab: Lab, seeds: tuple[int, ...]) -> Outcome:
  """Quality by family, and cost."""
  return outcome([lab.results(lab.ablation(seed).name) for seed in seeds])


def values(results: Sequence[Mapping], name: str, domain: str | None, metric: str) -> list[float]:
  """A metric of a predictor on a family, of each seed; NaN where it is unknown."""
  found = []
  for result in results:
    rows = [x for x in result["results"] if (x["name"], x["domain"]) == (name, domain)]
    value = rows[0][metric] if rows else None
    found.append(np.nan if value is None else value)
  return found


def outcome(results: Sequence[Mapping]) -> Outcome:
  """The outcome of the results of each seed."""
  families = sorted({row["domain"] for result in results for row in result["results"]} - {None})
  prompt = CRITICS["prompt-only critic"]
  better = {
    metric: {
      family: gain(*(values(results, name, family, metric) for name in pair))
      for family in (None, *families)
    }
    # A lower MAE is better, a higher r is.
    for metric, pair in (("MAE", (prompt, PROBE)), ("r", (PROBE, prompt)))
  }
  rows = [
    [
      family or ALL,
      *(
        intervals.mean(values(results, name, family, metric))
        for name in PREDICTORS.values()
        for metric in ("MAE", "r")
      ),
      intervals.mean(values(results, PROBE, family, "ceiling")),
    ]
    for family in (None, *families)
  ]
  header = [
    "family",
    *(f"{m}, {name}" for name in PREDICTORS for m in ("MAE", "r")),
    "ceiling of r",
  ]
  return Outcome(
    checks=[
      Check.above(
        "The probe's MAE is lower than that of the prompt-only critic, over all prompts (gain)",
        "0.141 against 0.262 (v2 Figure 1)",
        better["MAE"][None],
      ),
      Check.above(
        "The probe's r is higher than that of the prompt-only critic, over all prompts (gain)",
        "0.870 against 0.676 (v2 Figure 1)",
        better["r"][None],
      ),
      *(families_better(metric, {f: x[f] for f in families}) for metric, x in better.items()),
    ],
    tables={
      "Values in the test half": markdown.table(header, rows),
      "The prompt-only critic with a longer search": longer_table(results),
      "Cost of a fit, for critics of one pass over the same answers": costs_table(results),
    },
    figure=figure(results, [None, *families]),
    numbers={
      "probe minus prompt-only critic": {
        metric: {family or ALL: x.to_json() for family, x in found.items()}
        for metric, found in better.items()
      },
      "MAE and r by seed": {
        f"{metric}, {title}, {family or ALL}": values(results, name, family, metric)
        for title, name in PREDICTORS.items()
        for family in (None, *families)
        for metric in ("MAE", "r")
      },
      "bytes at the source's sizes": source_bytes(),
    },
  )


def longer_table(results: Sequence[Mapping]) -> str:
  """The probe against the prompt-only critic with more passes and the others, over all prompts."""
  probe = {metric: values(results, PROBE, None, metric) for metric in ("MAE", "r")}
  rows = [["probe", *map(intervals.mean, probe.values()), "", "", ""]]
  for title, name in (*CRITICS.items(), ("prompt-only critic, longer", LONGER)):
    mae, r = (values(results, name, None, metric) for metric in probe)
    cost = COSTS.get(title, SEARCHED)
    passes = ", ".join(str(result["costs"][cost]["passes"]) for result in results)
    gains = gain(mae, probe["MAE"]), gain(probe["r"], r)
    rows.append([title, intervals.mean(mae), intervals.mean(r), *gains, passes])
  header = ("", "MAE", "r", "the probe's gain in MAE", "the probe's gain in r", "passes by seed")
  return markdown.table(header, rows)


def costs_table(results: Sequence[Mapping]) -> str:
  """What was measured, and beside it memory at the source's sizes, which is arithmetic."""
  rows = [
    [
      title,
      intervals.mean([result["costs"][name]["seconds"] for result in results]),
      intervals.mean([result["costs"][name]["bytes"] / 1e6 for result in results]),
      f"{source_bytes()[name] / 1e6:,.0f}",
    ]
    for title, name in COSTS.items()
  ]
  header = ("", "seconds", "MB", "MB at the source's sizes (arithmetic, Qwen3-4B)")
  return markdown.table(header, rows)


def gain(a: Sequence[float], b: Sequence[float]) -> Interval:
  """a - b over the seeds that have both; r is unknown where all rewards of a family are equal."""
  known = np.isfinite(a) & np.isfinite(b)
  if not known.any():
    return Interval(np.nan, np.nan, np.nan, 0)
  return intervals.difference(np.array(a)[known], np.array(b)[known])


def families_better(metric: str, better: Mapping[str, Interval]) -> Check:
  """That the probe is better on at least FAMILIES families, by the means over seeds; on all where
  there are fewer.

  A family has about a hundred prompts, too few for an interval of its own to decide.
  """
  won = [family for family, x in better.items() if x.value > 0]
  known = [family for family, x in better.items() if np.isfinite(x.value)]
  needed, unknown = min(FAMILIES, len(better)), len(better) - len(known)
  holds = True if len(won) >= needed else None if len(won) + unknown >= needed else False
  sides = ", ".join(f"{family} {x}" for family, x in better.items())
  return Check(
    f"The probe's mean {metric} is better than that of the prompt-only critic on at least "
    f"{needed} families (gain)",
    "on all five sets for Qwen3-4B (v2 Table 7)",
    f"better on {len(won)} of {len(known)}: {sides}",
    holds,
  )


def figure(results: Sequence[Mapping], families: Sequence[str | None]) -> str:
  """MAE and r of every predictor by family."""
  panels = []
  for metric in ("MAE", "r"):
    labels, means, errors, colors = [], [], [], []
    for family in families:
      for i, name in enumerate(PREDICTORS.values()):
        found = intervals.mean(values(results, name, family, metric))
        labels.append(family or ALL if i == 0 else "")
        means.append(found.value)
        errors.append(found.half_width)
        colors.append(svg.color_of(i))
    panels.append((f"{metric} against avg@k", svg.bars(labels, means, errors, colors, metric)))
  return svg.picture(panels, list(PREDICTORS), 2)


CLAIM = Claim(
  folder=pathlib.Path(__file__).parent,
  title="A probe predicts values better than a critic as large as the policy",
  source="Qwen3-4B, DAPO-Math: MAE 0.141 and r 0.870 against 0.262 and 0.676 (v2 Figure 1); better "
  "on all five sets for Qwen3-4B (v2 Table 7)",
  seeds=(0, 1, 2, 3, 4),
  units=units,
  analyse=analyse,
)
