"""Evaluates a checkpoint on held-out problems: avg@k, pass@k and maj@k with standard errors:

python -m experiments.evaluate --config=FILE.py[:ALGORITHM] --checkpoint=PATH --out=DIR
  [--against=DIR] [--config.eval.FIELD=VALUE ...]

config.eval says how answers are sampled, config.task (or config.eval.tasks, by name) what is asked.
DIR gets every answer with its verdict (answers.jsonl), the protocol, and README.md, scores.png and
results.json. Interrupted, the same command goes on after the last whole batch.
"""

from absl import flags

from experiments import cli

CONFIG = cli.define_config()
CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "a run's workdir, a Hugging Face folder or hub id, *.gguf, or package:NAME/FILE",
)
OUT = flags.DEFINE_string("out", None, "the evaluation's folder; the same one resumes")
AGAINST = flags.DEFINE_string(
  "against", None, "the folder of a finished evaluation to compare with"
)
DISTRIBUTED = cli.define_distributed()


def main(argv):
  """Evaluates and prints the table."""
  if len(argv) > 1:
    raise cli.UsageError(f"unexpected argument {argv[1]!r}; fields are set as --config.field=value")
  for flag in (CONFIG, CHECKPOINT, OUT):
    if not flag.value:
      raise cli.UsageError(f"--{flag.name} is missing")
  from poise_jax.distributed import processes
  from poise_jax.evaluation import (
    checkpoint as evaluation,  # here: a mistyped flag does not wait for jax
  )

  with processes.started(DISTRIBUTED.value, cli.sentence):
    table = evaluation.run(CONFIG.value, CHECKPOINT.value, OUT.value, AGAINST.value)
    if processes.is_first():
      print(table)


if __name__ == "__main__":
  cli.run(main)
