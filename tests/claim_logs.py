"""Synthetic logs of the runs of claims."""

import pathlib

import numpy as np

from poise_jax.reports.run_log import Run

SEEDS = (0, 1, 2, 3, 4)
NOISE = 0.01  # of an evaluation


def run(arm, seed, gain, tokens_per_step=100.0, steps=20, start=0.2):
  """A log whose accuracy rises by `gain` in all and depends on the seed, too."""
  rng = np.random.default_rng([seed, sum(map(ord, arm))])
  level = start + 0.1 * np.random.default_rng(seed).normal()  # what all arms of a seed share
  config = {"algorithm": arm, "seed": seed, "rollouts": 16, "rollout": {"n": 2}}
  config["train"] = {"learning_rate": 2e-4, "max_grad_norm": 1.0}
  rows = []
  for step in range(steps + 1):
    row = {"step": step, "time/elapsed": 60.0 * step}
    if step:
      row |= {"collect/tokens": tokens_per_step, "policy/grad_clipped": 0.25}
      row |= {"collect/generated_total": 16 * step, "collect/generated": 16}
      noise_of = np.random.default_rng([seed, step, sum(map(ord, arm))])
      row["collect/score"] = level + gain * min(step / 15, 1.0) + NOISE * noise_of.normal() / 3
    if step % 5 == 0:
      row["eval/accuracy"] = level + gain * min(step / 15, 1.0) + NOISE * rng.normal()
    rows.append(row)
  return Run(pathlib.Path("unused"), config, rows, [])


def runs_of(gains, **options):
  return {arm: [run(arm, seed, gain, **options) for seed in SEEDS] for arm, gain in gains.items()}


def outcomes(outcome):
  return [check.holds for check in outcome.checks]


def controls(outcome):
  return [number for number, check in enumerate(outcome.checks, 1) if check.control]


def ablation(seed, quality, families=("a", "b", "c", "d", "e"), seconds=(0.01, 10.0), within=None):
  """Results of experiments.probe_ablation.

  quality: name -> r, or name -> {family: r}; within: name -> r within a level, by default 0.1.
  """
  rng = np.random.default_rng(seed)
  rows = []
  for domain in (None, *families):
    for name, r in quality.items():
      r = r[domain] if isinstance(r, dict) else r
      numbers = {"MAE": 0.5 * (1 - r), "r": r, "variance reduction": r * r, "ceiling": 0.95}
      numbers["r within a level"] = (within or {}).get(name, 0.1)
      rows.append(
        {"name": name, "domain": domain, "prompts": 9}
        | {k: x + NOISE * rng.normal() for k, x in numbers.items()}
      )
  costs = {"probe": {"seconds": seconds[0], "bytes": 1e3}}
  critics = ("sppo", "ppo", "sppo, longer")
  costs |= {name: {"seconds": seconds[1], "bytes": 1e6, "passes": 7} for name in critics}
  return {"results": rows, "costs": costs}
