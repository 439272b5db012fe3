"""Trains a language model with reinforcement learning, or resumes the run in --workdir:

python -m experiments.train --config=FILE.py[:ALGORITHM] --workdir=DIR [--config.FIELD=VALUE ...]
"""

from collections.abc import Callable

from absl import flags
from ml_collections import ConfigDict

from experiments import cli

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; the same folder resumes it")
ALLOW_CONFIG_CHANGE = flags.DEFINE_bool(
  "allow_config_change", False, "resume with another config than the one the run started with"
)
OVERWRITE = flags.DEFINE_string(
  "overwrite", "", "name of the workdir: deletes the run in it and starts again"
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "show the config and its memory, compile a step, write nothing"
)
DISTRIBUTED = cli.define_distributed()


def train(config: ConfigDict, workdir: str):
  """Trains. Imports jax only now, so that a mistyped flag is reported at once."""
  from poise_jax.distributed import processes
  from poise_jax.training import loop

  with processes.started(DISTRIBUTED.value, cli.sentence):
    loop.train(config, workdir, ALLOW_CONFIG_CHANGE.value, OVERWRITE.value)


def main(argv: list[str], work: Callable[[ConfigDict, str], None] = train):
  """Runs work(config, workdir), or shows the memory that it needs."""
  cli.refuse_arguments(argv, "fields are set as --config.field=value")
  if CONFIG.value is None:
    raise cli.UsageError("--config=FILE.py is missing, such as --config=configs/quickstart.py")
  if DRY_RUN.value:
    return cli.dry_run(CONFIG.value)
  if not WORKDIR.value:
    raise cli.UsageError("--workdir=DIR is missing: the folder of the run")
  work(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
  cli.run(main)
