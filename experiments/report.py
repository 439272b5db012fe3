"""Writes the report.html of a run again: python -m experiments.report --workdir=RUN."""

import pathlib

from absl import flags

from experiments import cli
from poise_jax.reports import run

WORKDIR = flags.DEFINE_string("workdir", None, "folder of a run, finished or not")


def main(argv: list[str]):
  """Writes RUN/report.html and prints its path."""
  cli.refuse_arguments(argv, "name one run: --workdir=RUN")
  if not WORKDIR.value:
    raise cli.UsageError(f"--workdir=RUN is missing: {flags.FLAGS['workdir'].help}")
  print(run.write(pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  cli.run(main)
