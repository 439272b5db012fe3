"""Algorithms x seeds of one config, one after the other, and their comparison:

python -m experiments.sweep --config=FILE.py --algorithms=A,B --seeds=0,1 --workdir=DIR
  [--config.FIELD=VALUE ...]

Every run is one of experiments.train, in DIR/ALGORITHM-SEED; the same command goes on where it was
interrupted. The comparison (see experiments.compare) goes to DIR/comparison.
"""

import pathlib
import subprocess
import sys

from absl import app, flags

from poise_jax import comparison

CONFIG = flags.DEFINE_string("config", None, "FILE.py")
ALGORITHMS = flags.DEFINE_list("algorithms", None, "names that the config knows")
SEEDS = flags.DEFINE_list("seeds", ["0"], "values of config.seed")
WORKDIR = flags.DEFINE_string("workdir", None, "the folder of all runs")


def main(argv):
  """Trains, then compares; stops at the first run that fails."""
  folders = []
  for seed in SEEDS.value:
    for algorithm in ALGORITHMS.value:
      folder = pathlib.Path(WORKDIR.value, f"{algorithm}-{seed}")
      command = [sys.executable, "-m", "experiments.train", f"--config={CONFIG.value}:{algorithm}"]
      command += [f"--workdir={folder}", f"--config.seed={seed}", *argv[1:]]
      print(f"== {algorithm}, seed {seed}", flush=True)
      code = subprocess.run(command).returncode
      if code:
        sys.exit(f"error: {algorithm} with seed {seed} failed; the same command goes on there")
      folders.append(folder)
  print(comparison.report(folders, pathlib.Path(WORKDIR.value, "comparison")))


def parse_flags(argv):
  """Leaves --config.field=value to experiments.train."""
  ours = [a for a in argv if not a.startswith("--config.")]
  return [*flags.FLAGS(ours), *(a for a in argv if a.startswith("--config."))]


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "algorithms", "workdir"])
  app.run(main, flags_parser=parse_flags)
