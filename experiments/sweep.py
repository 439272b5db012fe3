"""Trains every algorithm with every seed of a config, and compares the runs:

python -m experiments.sweep --config=FILE.py --algorithms=A,B --seeds=0,1 --workdir=DIR
  [--config.FIELD=VALUE ...]

Runs take turns, each by experiments.train in DIR/ALGORITHM-SEED. After an interruption the same
command continues. All algorithms of a seed start from the same weights: a warm start, if the config
has one, is made once per seed, in DIR/start-SEED. The comparison (see experiments.compare) is in
DIR/comparison.
"""

import pathlib
import subprocess
import sys

from absl import flags

from experiments import cli, overrides
from poise_jax.reports import comparison

CONFIG = flags.DEFINE_string("config", None, "FILE.py")
ALGORITHMS = flags.DEFINE_list("algorithms", None, "algorithms of the config")
SEEDS = flags.DEFINE_list("seeds", ["0"], "values of config.seed")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of all runs")


def main(argv: list[str]):
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


def check(options: list[str]):
  """Finds mistakes before the first run rather than hours later.

  Raises:
    UsageError: a flag is missing, or a seed, algorithm or field is invalid.
  """
  for flag in (CONFIG, ALGORITHMS, WORKDIR):
    if not flag.value:
      raise cli.UsageError(f"--{flag.name} is missing: {flags.FLAGS[flag.name].help}")
  for option in options:
    if not option.startswith("--config."):
      raise cli.UsageError(f"unexpected argument {option!r}")
  for seed in SEEDS.value:
    if not seed.isdecimal():
      raise cli.UsageError(f"--seeds must be whole numbers of at least 0, got {seed!r}")
  for algorithm in ALGORITHMS.value:
    config = cli.load_config(f"{CONFIG.value}:{algorithm}")
    overrides.check(config, options)


def run(program: str, config: str, folder: pathlib.Path, seed: str, options: list[str]):
  """Runs experiments.PROGRAM in a process of its own; exits if it fails."""
  print(f"== {folder.name}", flush=True)
  command = [sys.executable, "-m", f"experiments.{program}", f"--config={config}"]
  command += [f"--workdir={folder}", f"--config.seed={seed}", *options]
  if subprocess.run(command).returncode:
    sys.exit(f"error: {folder.name} failed; run the same command again to continue there")


if __name__ == "__main__":
  cli.run(main, passed_on="--config.")  # to experiments.train
