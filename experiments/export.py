"""Exports the model of a run as a Hugging Face folder, with its tokenizer and a model card:

python -m experiments.export --workdir=RUN --out=DIR [--step=last|best|N]
"""

import pathlib

from absl import flags

from experiments import cli

WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run")
OUT = flags.DEFINE_string("out", None, "output folder")
STEP = flags.DEFINE_string(
  "step", "last", "last, best (by config.eval.best_by), or the number of a step"
)


def main(argv: list[str]):
  """Exports a checkpoint and prints its step."""
  cli.refuse_arguments(argv)
  for flag in (WORKDIR, OUT):
    if not flag.value:
      raise cli.UsageError(f"--{flag.name} is missing: {flags.FLAGS[flag.name].help}")
  from poise_jax.training.export import export  # here, so that a mistyped flag needs no jax

  step = export(pathlib.Path(WORKDIR.value), pathlib.Path(OUT.value), STEP.value)
  print(f"exported step {step} of {WORKDIR.value} to {OUT.value}")


if __name__ == "__main__":
  cli.run(main)
