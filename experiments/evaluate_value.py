"""Evaluates the values that a run's probe or critic predicts, on its held-out prompts:

python -m experiments.evaluate_value --run=DIR [--samples=k] [--out=DIR]

Samples k + 1 answers to each held-out prompt with the policy of the newest checkpoint, predicts the
prompt's value from each answer as training does, and compares with avg@k of the others: MAE, r,
its noise ceiling, variance reduction and calibration by decile, in all and by domain. A run without
a probe or critic, or before its first fit, gets the spread of the values alone. --run may also name
one checkpoint, RUN/checkpoints/STEP. --out gets README.md, results.json and values.svg.
"""

import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments import cli

RUN = flags.DEFINE_string("run", None, "workdir of a run, or one of its checkpoints")
SAMPLES = flags.DEFINE_integer("samples", 8, "k of avg@k, with which predictions are compared")
OUT = flags.DEFINE_string("out", None, "output folder; an earlier evaluation in it is replaced")


def run_config(stored: dict[str, Any]) -> ConfigDict:
  """The config of a run from its JSON, which an earlier version may have written.

  Fields that the run's version did not have get their defaults; fields that are gone are dropped.
  """
  from configs import common
  from poise_jax.data.tasks.config import task_of_run

  config = common.default(stored["algorithm"])
  stored = _with_tuples(stored)
  task = task_of_run(stored.pop("task"))
  with config.unlocked():
    config.update({name: value for name, value in stored.items() if name in config})
    config.task = task
  return config


def _with_tuples(tree):
  """A JSON tree whose lists are tuples, as in configs."""
  if isinstance(tree, dict):
    return {name: _with_tuples(value) for name, value in tree.items()}
  return tuple(_with_tuples(x) for x in tree) if isinstance(tree, list) else tree


def evaluate(run: pathlib.Path, samples: int, out: pathlib.Path | None) -> str:
  """Evaluates a run and returns the tables.

  Raises:
    UserError, OSError: `run` holds no run or no checkpoint, a checkpoint is damaged, a value is out
      of range, or `out` holds something else.
  """
  from rich.progress import track

  from poise_jax.errors import UserError
  from poise_jax.evaluation import value
  from poise_jax.models.io import run_checkpoint
  from poise_jax.provenance import provenance
  from poise_jax.training.values import measure

  if out and out.exists() and any(out.iterdir()) and not (out / value.RESULTS).exists():
    raise UserError(f"{out} is not empty and holds no evaluation; choose another --out")
  checkpoint = run_checkpoint.find(run)
  if checkpoint is None:
    raise UserError(f"--run={run} is neither the workdir of a run nor a checkpoint of one")
  config = run_config(run_checkpoint.about(checkpoint)["config"])

  def progress(batches, total):
    return track(batches, "sampling", total)

  values, step = measure(config, checkpoint, samples, progress)
  about = {"run": str(run), "step": step, "samples": samples, "provenance": provenance()}
  return value.report(values, config.estimator, about, out)


def main(argv: list[str]):
  """Evaluates and prints the tables."""
  cli.refuse_arguments(argv)
  if not RUN.value:
    raise cli.UsageError(f"--run=DIR is missing: {flags.FLAGS['run'].help}")
  out = pathlib.Path(OUT.value) if OUT.value else None
  print(evaluate(pathlib.Path(RUN.value), SAMPLES.value, out))


if __name__ == "__main__":
  cli.run(main)
