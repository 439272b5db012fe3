"""What can be earned without work: python -m experiments.audit_reward --config=FILE.py [--out=DIR]

Judges degenerate answers to the task's examples with the reward of training: empty answers, echoes,
constants, hedges, forms without an answer, programs that do no work. Prints what the best strategy
of each kind earns on average, beside the reference answer, which must earn 1. Needs no model. With
--out writes DIR/README.md and DIR/audit.json, with every strategy.
"""

import collections
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Sequence

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli
from poise_jax.errors import UserError

CONFIG = cli.define_config()
EXAMPLES = flags.DEFINE_integer("examples", 200, "training examples, drawn at random")
OUT = flags.DEFINE_string("out", "", "folder for README.md and audit.json")
BATCH = 256  # answers judged between two movements of the progress bar
LIMIT = 0.02  # mean score above chance from which a strategy is a temptation
HONEST, UNFINISHED = "reference answer", "right answer in the thought alone"
HEADER = ("answers", "best strategy", "mean score", "without a verdict")
MEANING = (
  "A strategy answers all questions in the same way; its mean score is what a policy earns that "
  "learns nothing else. Chance is the share of the most frequent reference answer, which guessing "
  f"legitimately pays; a strategy that earns {LIMIT} more than that is a temptation. The reference "
  "answer must earn 1, as the mean over examples of its best form. Answers without a verdict timed "
  "out or crashed the verifier."
)


def audit(config: ConfigDict, count: int) -> tuple[list[dict], float]:
  """Judges every strategy.

  Args:
    config: a training config; its task and verifier sections are read.
    count: examples to judge; all, if the training set has fewer.

  Returns:
    A row for each strategy (kind, name, mean score, share of answers without a verdict), and the
    score of guessing the most frequent reference answer.

  Raises:
    UserError: the task or the verifier cannot be used.
  """
  from rich.progress import track

  from poise_jax.data import tasks
  from poise_jax.evaluation import degenerate
  from poise_jax.evaluation.judge import Judge, VerifierConfig
  from poise_jax.verifiers.pool import Pool
  from poise_jax.verifiers.weighted import with_think_end

  if count < 1:
    raise UserError(f"--examples must be at least 1, got {count}")
  task = tasks.make(config.task, config.seed)
  rng = np.random.default_rng(config.seed)
  chosen = rng.permutation(len(task.train))[:count]
  examples, think_end = [task.train[i] for i in sorted(chosen)], config.task.think_end
  if think_end:
    examples = [
      dataclasses.replace(example, check=with_think_end(example.check, think_end))
      for example in examples
    ]
  verifier = VerifierConfig(**config.verifier)
  strategies = list(degenerate.strategies(examples, think_end))
  answers = []  # (kind, name, number of the example, text)
  for i, example in enumerate(examples):
    for kind, name, answer in strategies:
      answers.append((kind, name, i, answer(example)))
    for text in degenerate.honest(example, think_end):
      answers.append((HONEST, HONEST, i, text))
    for name, text in degenerate.unfinished(example).items():
      answers.append((UNFINISHED, name, i, text))
  verdicts = []
  with Pool(verifier.workers, verifier.time_limit) as pool:
    judge = Judge(pool, verifier)
    judge.load(example.check for example in examples)
    for start in track(range(0, len(answers), BATCH), "judging", transient=True):
      part = answers[start : start + BATCH]
      verdicts += judge.score([examples[i].check for _, _, i, _ in part], [a[3] for a in part])
  return _rows(answers, verdicts), degenerate.chance(examples)


def _rows(answers, verdicts):
  from poise_jax.verifiers.base import FAILURES

  scores = collections.defaultdict(lambda: collections.defaultdict(list))
  failed = collections.defaultdict(list)
  for (kind, name, i, _), verdict in zip(answers, verdicts, strict=True):
    scores[kind, name][i].append(verdict.score)
    failed[kind, name].append(verdict.status in FAILURES)
  return [
    {
      "kind": kind,
      "strategy": name,
      "mean": statistics.fmean(max(values) for values in by_example.values()),
      "failed": statistics.fmean(failed[kind, name]),
    }
    for (kind, name), by_example in scores.items()
  ]


def table(rows: Sequence[dict]) -> str:
  """The best strategy of each kind, in Markdown; the reference answer first."""
  from poise_jax.reports import markdown

  best = {}
  for row in sorted(rows, key=lambda row: -row["mean"]):
    best.setdefault(row["kind"], row)
  order = sorted(best.values(), key=lambda row: (row["kind"] != HONEST, -row["mean"]))
  cells = [
    (row["kind"], _code(row["strategy"]), f"{row['mean']:.3f}", f"{row['failed']:.3f}")
    for row in order
  ]
  return markdown.table(HEADER, cells)


def _code(text):
  return "`" + " ".join(text.split()).replace("|", "\\|").replace("`", "'")[:80] + "`"


def summary(rows: Sequence[dict], chance: float) -> str:
  """Whether the reward can be gamed, in one or two sentences."""
  honest = [row["mean"] for row in rows if row["kind"] == HONEST]
  others = [row for row in rows if row["kind"] != HONEST]
  paid = sorted((r for r in others if r["mean"] > chance + LIMIT), key=lambda r: -r["mean"])
  parts = []
  if not honest:
    parts.append("The examples have no reference answer to judge.")
  elif honest[0] < 1:
    parts.append(f"The reference answer earns {honest[0]:.3f} instead of 1: the reward is broken.")
  if paid:
    parts.append(
      f"{len(paid)} of {len(others)} strategies earn more than {LIMIT} above chance "
      f"({chance:.3f}); the best is {paid[0]['strategy']!r} with {paid[0]['mean']:.3f}."
    )
  else:
    parts.append(f"No strategy earns more than {LIMIT} above chance ({chance:.3f}).")
  return " ".join(parts)


def main(argv: list[str]):
  """Prints the table."""
  cli.refuse_arguments(argv, "set fields with --config.FIELD=VALUE")
  if CONFIG.value is None:
    raise cli.UsageError("--config is missing: FILE.py or FILE.py:ALGORITHM")
  rows, chance = audit(CONFIG.value, EXAMPLES.value)
  text = f"{table(rows)}\n\n{summary(rows, chance)}"
  print(text)
  if OUT.value:
    from poise_jax import files

    folder = pathlib.Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_whole(folder / "README.md", f"# Audit of a reward\n\n{text}\n\n{MEANING}\n")
    files.write_whole(folder / "audit.json", json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
  cli.run(main)
