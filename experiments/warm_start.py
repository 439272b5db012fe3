"""Runs the supervised warm start of a config alone, for runs that start from its model:

python -m experiments.warm_start --config=FILE.py --workdir=DIR [--config.FIELD=VALUE ...]

DIR becomes a Hugging Face folder with a tokenizer; --config.model.source=DIR
--config.warm_start.steps=0 starts a run from it. experiments.sweep does so for every seed.
"""

import functools
import os
import pathlib
import tempfile

from ml_collections import ConfigDict

from experiments import cli
from experiments import train as command


def warm_start(config: ConfigDict, folder: str):
  """Trains and writes the model. Does nothing if it exists or the config has no warm start.

  Raises:
    UserError: the config starts from an existing model.
  """
  # Imported here, so that a mistyped flag does not wait for jax.
  from poise_jax import models
  from poise_jax.errors import UserError
  from poise_jax.training import build

  folder = pathlib.Path(folder)
  if not config.warm_start.steps or (folder / "config.json").exists():
    return
  experiment = build.build(config)
  if experiment.made_tokenizer is None:
    raise UserError(
      f"model.source={config.model.source!r} is an existing model; only a model made from scratch "
      "can have a warm start of its own. Leave model.source empty"
    )

  def report(step, loss):
    print(f"warm start {step:4d}/{experiment.warm_start.steps}  loss {loss:.3f}", flush=True)

  params = build.warmed_up(experiment, build.initial_params(experiment), report)
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
    file.write(experiment.made_tokenizer)
  os.replace(file.name, folder / "tokenizer.model")
  models.save_hf(
    folder, experiment.model, params
  )  # writes config.json, the mark of completion, last


if __name__ == "__main__":
  cli.run(functools.partial(command.main, work=warm_start))
