"""Evaluates a checkpoint on held-out problems: avg@n, pass@k and maj@k with standard errors:

python -m experiments.evaluate --config=FILE.py[:ALGORITHM] --checkpoint=PATH --out=DIR
  [--against=DIR] [--config.eval.FIELD=VALUE ...]

config.eval sets how answers are sampled, config.task (or config.eval.tasks, by name) the problems.
DIR gets every answer with its verdict (answers.jsonl), the protocol, README.md, scores.svg and
results.json. After an interruption the same command continues after its last complete batch.
"""

from absl import flags

from experiments import cli

CONFIG = cli.define_config()
CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "workdir of a run, Hugging Face folder or hub id, *.gguf, or package:NAME/FILE",
)
OUT = flags.DEFINE_string("out", None, "folder of the evaluation; an existing one is resumed")
AGAINST = flags.DEFINE_string("against", None, "folder of a finished evaluation to compare with")
DISTRIBUTED = cli.define_distributed()


def main(argv: list[str]):
  """Evaluates and prints the table."""
  cli.refuse_arguments(argv, "fields are set as --config.field=value")
  for flag in (CONFIG, CHECKPOINT, OUT):
    if not flag.value:
      raise cli.UsageError(f"--{flag.name} is missing")
  # Imported here, so that a mistyped flag does not wait for jax.
  from poise_jax.distributed import processes
  from poise_jax.evaluation import checkpoint

  with processes.started(DISTRIBUTED.value, cli.sentence):
    table = checkpoint.run(CONFIG.value, CHECKPOINT.value, OUT.value, AGAINST.value)
    if processes.is_first():
      print(table)


if __name__ == "__main__":
  cli.run(main)
