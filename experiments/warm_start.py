"""The supervised warm start of a config alone, as a model that runs can start from:

python -m experiments.warm_start --config=FILE.py --workdir=DIR [--config.FIELD=VALUE ...]

Leaves a Hugging Face folder with its tokenizer in DIR; `--config.model.source=DIR
--config.warm_start.steps=0` starts from it. experiments.sweep does so once a seed.
"""

import functools
import os
import pathlib
import tempfile

from experiments import cli
from experiments import train as command


def warm_start(config, folder: str):
  """Trains and writes; does nothing where the model is there already or the config has none."""
  from poise_jax import models
  from poise_jax.training import train  # here: a mistyped flag does not wait for jax

  folder = pathlib.Path(folder)
  if not config.warm_start.steps or (folder / "config.json").exists():
    return
  run = train.setup(config)
  if run.made_tokenizer is None:
    raise ValueError(
      f"model.source={config.model.source!r}: only a model made from scratch has a warm start of "
      "its own"
    )

  def report(step, loss):
    print(f"warm start {step:4d}/{run.warm_start.steps}  loss {loss:.3f}", flush=True)

  params = train.warmed_up(run, run.params, report)
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
    file.write(run.made_tokenizer)
  os.replace(file.name, folder / "tokenizer.model")
  models.save_hf(folder, run.model, params)  # its config.json comes last and says: complete


if __name__ == "__main__":
  cli.run(functools.partial(command.main, work=warm_start))
