"""Which part of the features carries the signal: ablations of the probe on one set of answers."""

import pathlib
from collections.abc import Mapping, Sequence

from experiments.claims import intervals
from experiments.claims.claim import Check, Claim, Outcome
from experiments.claims.lab import Lab
from experiments.claims.runner import Unit
from experiments.claims.value_estimation.claim import PROBE, values
from poise_jax.reports import markdown, svg

WINDOWS = (5, 20)  # beside that of configs/lab.py, 10
WITHIN = "r within a level"
FLAT = 0.05  # of r: a smaller range over layers or windows counts as flat
TABLE_3 = {  # name -> MAE and r in v2 Table 3
  PROBE: ".126 / .838",
  "prompt alone": ".234 / .569",
  "response alone": ".132 / .821",
  "entropy alone": ".152 / .780",
  "length alone": ".251 / .494",
}
LABELS = {  # of the figure, where names are too long
  "a constant: the other half's mean": "a constant",
  "the sibling's reward (RLOO, n = 2)": "the sibling's reward",
  PROBE: "the whole probe",
  "poise_sibling: also its reward": "with the sibling's reward",
  "critic of sppo": "prompt-only critic",
  "critic of sppo, longer": "prompt-only critic, longer",
  "critic of ppo": "token critic",
}
CONTROL = (PROBE, "entropy alone")  # the whole against a part of it
PAIRS = {  # (better, worse) -> r in v2 Table 3
  (PROBE, "prompt alone"): "0.838 against 0.569",
  ("response alone", "prompt alone"): "0.821 against 0.569",
  ("entropy alone", "length alone"): "0.780 against 0.494",
  (PROBE, "entropy alone"): "0.838 against 0.780",
}
Windows = Mapping[int, Sequence[Mapping]]  # window -> results of each seed


def units(lab: Lab) -> list[Unit]:
  """The ablations of every seed, and answers that are read with other windows."""
  made = []
  for seed in lab.seeds:
    made += [lab.start(seed), lab.ablation(seed)]
    made += [lab.ablation(seed, window) for window in WINDOWS]
  return made


def analyse(lab: Lab, seeds: tuple[int, ...]) -> Outcome:
  """Quality of every probe."""
  windows = {
    window: [lab.results(lab.ablation(seed, window).name) for seed in seeds] for window in WINDOWS
  }
  return outcome([lab.results(lab.ablation(seed).name) for seed in seeds], windows)


def outcome(results: Sequence[Mapping], windows: Windows) -> Outcome:
  """The outcome of the ablations of each seed, and of those with other windows."""
  names = list(dict.fromkeys(row["name"] for row in results[0]["results"]))
  r, within = (
    {name: values(results, name, None, metric) for name in names} for metric in ("r", WITHIN)
  )
  mae = {name: values(results, name, None, "MAE") for name in names}
  removed = {name: values(results, name, None, "variance reduction") for name in names}
  layers = [name for name in names if name.startswith("layer ")]
  rows = [
    [name, TABLE_3.get(name, ""), *(intervals.mean(x[name]) for x in (mae, r, within, removed))]
    for name in names
  ]
  other = {window: values(found, PROBE, None, "r") for window, found in windows.items()}
  rows += [
    [
      f"window {window}",
      "",
      intervals.mean(values(found, PROBE, None, "MAE")),
      intervals.mean(other[window]),
      intervals.mean(values(found, PROBE, None, WITHIN)),
      intervals.mean(values(found, PROBE, None, "variance reduction")),
    ]
    for window, found in windows.items()
  ]
  checks = []
  for (better, worse), source in PAIRS.items():
    check = Check.above(
      f"r of {_short(better)} is above that of {_short(worse)} (difference)",
      f"{source} (v2 Table 3)",
      intervals.difference(r[better], r[worse]),
    )
    checks.append(check.as_control() if (better, worse) == CONTROL else check)
  checks += [
    flat("layers", "0.807 to 0.834 (v2 Table 8)", [r[name] for name in layers]),
    flat("windows", "0.822 to 0.834 (v2 Table 10)", [r[PROBE], *other.values()]),
    Check.above(
      "Within a level, r of the response alone is above that of the prompt alone (difference)",
      "not tested",
      intervals.difference(within["response alone"], within["prompt alone"]),
    ),
  ]
  return Outcome(
    checks=checks,
    tables={
      "Probes in the test half": markdown.table(
        ("probe", "v2 Table 3, MAE / r", "MAE", "r", WITHIN, "variance removed"), rows
      )
    },
    figure=figure(r),
    numbers={
      "r by seed": r,
      f"{WITHIN} by seed": within,
      "MAE by seed": mae,
      "r by seed and window": {str(window): x for window, x in other.items()},
    },
  )


def _short(name):
  return (
    "the whole probe"
    if name == PROBE
    else name.replace("response", "the response").replace("prompt", "the prompt")
  )


def flat(what: str, source: str, r: Sequence[Sequence[float]]) -> Check:
  """That r varies little: the range of its means over seeds is below FLAT."""
  hypothesis = f"r depends little on {what} (range below {FLAT})"
  return Check.below(hypothesis, source, intervals.spread(r), FLAT)


def figure(r: Mapping[str, Sequence[float]]) -> str:
  """r of every probe."""
  found = {name: intervals.mean(x) for name, x in r.items()}
  errors = [x.half_width for x in found.values()]
  colors = [svg.color_of(name in TABLE_3) for name in found]
  means = [x.value for x in found.values()]
  labels = [LABELS.get(name, name) for name in found]
  bars = svg.bars(labels, means, errors, colors, "Pearson's r")
  return svg.picture([("r against avg@k; orange: v2 Table 3", bars)], [], 1)


CLAIM = Claim(
  folder=pathlib.Path(__file__).parent,
  title="The response's states and entropies carry the signal",
  source="r 0.838 full, 0.821 response's states, 0.780 entropies, 0.569 prompt's states, 0.494 "
  "length (Qwen3-4B, v2 Table 3)",
  seeds=(0, 1, 2, 3, 4),
  units=units,
  analyse=analyse,
)
