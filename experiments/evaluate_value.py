"""Evaluates the values that a run's probe or critic predicts, on its held-out prompts:

python -m experiments.evaluate_value --run=DIR [--samples=k] [--out=DIR]

Samples k + 1 answers to each held-out prompt with the policy of the newest checkpoint, predicts the
prompt's value from each answer as training does, and compares with avg@k of the others: MAE, r,
its noise ceiling, variance reduction and calibration by decile, in all and by domain. A run without
a probe or critic, or whose probe is not fitted yet, gets the spread of the values alone. --run may
also name one checkpoint, RUN/checkpoints/STEP. If the run's mesh does not fit the devices, the
default mesh is used. --out gets README.md, results.json and values.svg.
"""

import os
import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments import cli, overrides

RUN = flags.DEFINE_string("run", None, "workdir of a run, or one of its checkpoints")
SAMPLES = flags.DEFINE_integer("samples", 8, "k of avg@k, with which predictions are compared")
OUT = flags.DEFINE_string("out", None, "output folder; an earlier evaluation in it is replaced")


def run_config(stored: dict[str, Any]) -> ConfigDict:
  """The config of a run from its JSON, which an earlier version may have written.

  Fields that the run's version did not have get their defaults; fields that are gone are dropped,
  also those of sections.
  """
  from configs import common
  from poise_jax.data.tasks.config import task_of_run

  config = common.default(stored["algorithm"])
  stored = _with_tuples(stored)
  task = task_of_run(stored.pop("task"))
  with config.unlocked():
    config.update(_known(stored, config))
    config.task = task
  return config


def _known(stored, config, section=""):
  """The fields of `stored` that `config` has; mappings whose keys are free are taken whole."""
  fields = {}
  for name, value in stored.items():
    path = section + name
    if path in (*overrides.mappings(), "model.shape"):
      fields[name] = value
    elif name in config:
      inside = isinstance(config[name], ConfigDict)
      fields[name] = _known(value, config[name], f"{path}.") if inside else value
  return fields


def with_mesh(config: ConfigDict) -> ConfigDict:
  """The config with the default mesh if its own does not fit the devices, which is printed."""
  from configs import common
  from poise_jax.distributed.sharding import make_mesh
  from poise_jax.errors import UserError

  try:
    make_mesh(**config.mesh)
  except UserError as error:
    print(f"The run's {error}; using the default mesh.")
    config.mesh = common.default(config.algorithm).mesh
  return config


def _with_tuples(tree):
  """A JSON tree whose lists are tuples, as in configs."""
  if isinstance(tree, dict):
    return {name: _with_tuples(value) for name, value in tree.items()}
  return tuple(_with_tuples(x) for x in tree) if isinstance(tree, list) else tree


def evaluate(run: pathlib.Path, samples: int, out: pathlib.Path | None) -> str:
  """Evaluates a run and returns the tables.

  Raises:
    UserError, OSError: `run` holds no run or no checkpoint, a checkpoint is damaged, the data is
      not that of the run, a value is out of range, or `out` holds something else.
  """
  from rich.progress import track

  from poise_jax.errors import UserError
  from poise_jax.evaluation import value_table
  from poise_jax.models.io import run_checkpoint
  from poise_jax.provenance import provenance
  from poise_jax.training.values import measure

  if out and out.exists() and any(out.iterdir()) and not (out / value_table.FIGURE).exists():
    raise UserError(f"{out} is not empty and holds no evaluation of values; choose another --out")
  checkpoint = run_checkpoint.find(run)
  if checkpoint is None:
    raise UserError(f"--run={run} is neither the workdir of a run nor a checkpoint of one")
  config = with_mesh(run_config(run_checkpoint.about(checkpoint)["config"]))

  def progress(batches, total):
    return track(batches, "sampling", total)

  values, step = measure(config, checkpoint, samples, progress)
  about = {"run": str(run), "step": step, "samples": samples, "provenance": provenance()}
  return value_table.report(values, config.estimator, about, out)


def main(argv: list[str]):
  """Evaluates and prints the tables."""
  cli.refuse_arguments(argv)
  if not RUN.value:
    raise cli.UsageError(f"--run=DIR is missing: {flags.FLAGS['run'].help}")
  if "JAX_COORDINATOR_ADDRESS" in os.environ:  # every process would write the same files
    raise cli.UsageError(
      "experiments.evaluate_value runs in one process: unset JAX_COORDINATOR_ADDRESS"
    )
  out = pathlib.Path(OUT.value) if OUT.value else None
  print(evaluate(pathlib.Path(RUN.value), SAMPLES.value, out))


if __name__ == "__main__":
  cli.run(main)
