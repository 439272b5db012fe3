"""Makes a run's report.html again from its files: python -m experiments.report --workdir=RUN."""

import pathlib

from absl import flags

from experiments import cli
from poise_jax.reports import run as report

WORKDIR = flags.DEFINE_string("workdir", None, "the folder of a run, finished or not")


def main(argv):
  """Writes RUN/report.html and prints where it is."""
  if len(argv) > 1:
    raise cli.UsageError(f"unexpected argument {argv[1]!r}; name one run: --workdir=RUN")
  if not WORKDIR.value:
    raise cli.UsageError("--workdir=RUN is missing: the folder of a run")
  print(report.write(pathlib.Path(WORKDIR.value)))


if __name__ == "__main__":
  cli.run(main)
