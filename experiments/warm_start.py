"""Runs the supervised warm start of a config alone, for runs that start from its model:

python -m experiments.warm_start --config=FILE.py --workdir=DIR [--config.FIELD=VALUE ...]

DIR becomes a Hugging Face folder with a tokenizer; --config.model.source=DIR
--config.warm_start.steps=0 starts a run from it. experiments.sweep does so for every seed. A DIR
with another warm start is an error; what differs in training alone, as the algorithm, is not.
"""

import functools
import json
import os
import pathlib
import tempfile

from ml_collections import ConfigDict

from experiments import cli
from experiments import train as command

SETTINGS = "warm_start.json"  # in DIR: the part of the config that decides the model


def warm_start(config: ConfigDict, folder: str):
  """Trains and writes the model. Does nothing if it exists or the config has no warm start.

  Raises:
    UserError: the config starts from an existing model, or the folder holds another warm start.
  """
  # Imported here, so that a mistyped flag does not wait for jax.
  from poise_jax import files, models
  from poise_jax.errors import UserError
  from poise_jax.training import build

  folder = pathlib.Path(folder)
  if not config.warm_start.steps:
    return
  whole = json.loads(config.copy_and_resolve_references().to_json())
  settings = {name: whole[name] for name in ("seed", "model", "task", "warm_start")}
  settings["rollout"] = {"max_new_tokens": whole["rollout"]["max_new_tokens"]}
  claim = functools.partial(files.claim, folder, SETTINGS, settings, "a warm start", "--workdir")
  if (folder / "config.json").exists():
    return claim()
  experiment = build.build(config)
  if experiment.made_tokenizer is None:
    raise UserError(
      f"model.source={config.model.source!r} is an existing model; only a model made from scratch "
      "can have a warm start of its own. Leave model.source empty"
    )

  claim()  # only now: a mistake in the config claims no folder

  def report(step, loss):
    print(f"warm start {step:4d}/{experiment.warm_start.steps}  loss {loss:.3f}", flush=True)

  params = build.warmed_up(experiment, build.initial_params(experiment), report)
  with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
    file.write(experiment.made_tokenizer)
  os.replace(file.name, folder / "tokenizer.model")
  models.save_hf(
    folder, experiment.model, params
  )  # writes config.json, the mark of completion, last


if __name__ == "__main__":
  cli.run(functools.partial(command.main, work=warm_start))
