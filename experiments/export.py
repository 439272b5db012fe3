"""A run's model as a Hugging Face folder, with its tokenizer and a model card:

python -m experiments.export --workdir=RUN --out=DIR [--step=last|best|N]
"""

import pathlib

from absl import flags

from experiments import cli

WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder")
OUT = flags.DEFINE_string("out", None, "where the Hugging Face folder goes")
STEP = flags.DEFINE_string("step", "last", "last, best (held-out accuracy), or a step's number")


def main(argv):
  """Exports and says what."""
  if len(argv) > 1:
    raise cli.UsageError(f"unexpected argument {argv[1]!r}")
  for flag in (WORKDIR, OUT):
    if not flag.value:
      raise cli.UsageError(f"--{flag.name} is missing: {flags.FLAGS[flag.name].help}")
  from poise_jax.training.export import export  # here: a mistyped flag does not wait for jax

  step = export(pathlib.Path(WORKDIR.value), pathlib.Path(OUT.value), STEP.value)
  print(f"step {step} of {WORKDIR.value} is in {OUT.value}")


if __name__ == "__main__":
  cli.run(main)
