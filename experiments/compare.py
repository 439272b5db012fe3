"""Compares runs: python -m experiments.compare RUN [RUN ...] --out=DIR [--samples=K].

Writes into DIR README.md and report.html (a table, curves against steps, rollouts, generated tokens
and minutes, the commands and the machine they ran on, K answers of every run before and after),
curves.svg, costs.svg and every run's metrics. Runs that differ in their seed alone are averaged.
"""

import pathlib

from absl import flags

from experiments import cli
from poise_jax.reports import comparison

OUT = flags.DEFINE_string("out", None, "the folder to write")
SAMPLES = flags.DEFINE_integer("samples", 0, "answers shown of every run, before and after")


def main(argv):
  """Compares the runs that are named on the command line."""
  if len(argv) < 2:
    raise cli.UsageError("name at least one run, as in experiments.compare RUN [RUN ...] --out=DIR")
  if not OUT.value:
    raise cli.UsageError("--out=DIR is missing: the folder to write")
  runs = [pathlib.Path(path) for path in argv[1:]]
  print(comparison.report(runs, pathlib.Path(OUT.value), SAMPLES.value))


if __name__ == "__main__":
  cli.run(main)
