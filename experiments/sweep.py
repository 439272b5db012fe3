"""Algorithms x seeds of one config, one after the other, and their comparison:

python -m experiments.sweep --config=FILE.py --algorithms=A,B --seeds=0,1 --workdir=DIR
  [--config.FIELD=VALUE ...]

Every run is one of experiments.train, in DIR/ALGORITHM-SEED; the same command goes on where it was
interrupted. All algorithms of a seed begin with the same weights: a warm start, if the config has
one, is made once, in DIR/start-SEED. The comparison (see experiments.compare) goes to
DIR/comparison.
"""

import pathlib
import subprocess
import sys

from absl import flags

from experiments import cli
from poise_jax.reports import comparison

CONFIG = flags.DEFINE_string("config", None, "FILE.py")
ALGORITHMS = flags.DEFINE_list("algorithms", None, "names that the config knows")
SEEDS = flags.DEFINE_list("seeds", ["0"], "values of config.seed")
WORKDIR = flags.DEFINE_string("workdir", None, "the folder of all runs")


def main(argv):
  """Trains, then compares; stops at the first run that fails."""
  check(argv[1:])
  folders = []
  for seed in SEEDS.value:
    start = pathlib.Path(WORKDIR.value, f"start-{seed}")
    run("warm_start", f"{CONFIG.value}:{ALGORITHMS.value[0]}", start, seed, argv[1:])
    options = argv[1:]
    if (start / "config.json").exists():
      options = [*options, f"--config.model.source={start}", "--config.warm_start.steps=0"]
    for algorithm in ALGORITHMS.value:
      folder = pathlib.Path(WORKDIR.value, f"{algorithm}-{seed}")
      run("train", f"{CONFIG.value}:{algorithm}", folder, seed, options)
      folders.append(folder)
  print(comparison.report(folders, pathlib.Path(WORKDIR.value, "comparison")))


def check(options):
  """Raises UsageError for what would only be found after hours of other runs."""
  for flag in (CONFIG, ALGORITHMS, WORKDIR):
    if not flag.value:
      raise cli.UsageError(f"--{flag.name} is missing: {flags.FLAGS[flag.name].help}")
  for option in options:
    if not option.startswith("--config."):
      raise cli.UsageError(f"unexpected argument {option!r}")
  for seed in SEEDS.value:
    if not seed.isdecimal():
      raise cli.UsageError(f"--seeds has {seed!r}; a seed is a whole number, not negative")
  for algorithm in ALGORITHMS.value:
    config = cli.load_config(f"{CONFIG.value}:{algorithm}")
    for name in cli.overrides(options):
      cli.check_field(config, name)


def run(program, config, folder, seed, options):
  """One of experiments.*, in a process of its own; exits if it fails."""
  print(f"== {folder.name}", flush=True)
  command = [sys.executable, "-m", f"experiments.{program}", f"--config={config}"]
  command += [f"--workdir={folder}", f"--config.seed={seed}", *options]
  if subprocess.run(command).returncode:
    sys.exit(f"error: {folder.name} failed; the same command goes on there")


if __name__ == "__main__":
  cli.run(main, passed_on="--config.")  # to experiments.train
