"""Compares runs: python -m experiments.compare RUN [RUN ...] --out=DIR [--samples=K].

DIR gets README.md and report.html (a table; curves against steps, rollouts, generated tokens and
minutes; commands and machines; K answers of every run before and after training), curves.svg,
costs.svg and the metrics of every run. Runs that differ only in their seed are averaged.
"""

import pathlib

from absl import flags

from experiments import cli
from poise_jax.reports import comparison

OUT = flags.DEFINE_string("out", None, "output folder")
SAMPLES = flags.DEFINE_integer("samples", 0, "answers shown per run, before and after training")


def main(argv: list[str]):
  """Compares the runs named on the command line and prints the table."""
  if len(argv) < 2:
    raise cli.UsageError("name at least one run, as in experiments.compare RUN [RUN ...] --out=DIR")
  if not OUT.value:
    raise cli.UsageError(f"--out=DIR is missing: {flags.FLAGS['out'].help}")
  runs = [pathlib.Path(path) for path in argv[1:]]
  print(comparison.report(runs, pathlib.Path(OUT.value), SAMPLES.value))


if __name__ == "__main__":
  cli.run(main)
