"""What can be earned without work: python -m experiments.audit_reward --config=FILE.py [--out=DIR]

Judges degenerate answers to the task's examples with the reward of training: empty answers, echoes,
constants, hedges, forms without an answer, programs that do no work. Prints what the best strategy
of each kind earns on average (of each domain, if the task has several), beside the reference
answer, which must earn 1. Needs no model. With --out writes DIR/README.md and DIR/audit.json, which
has every strategy that earns anything.
"""

import collections
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli
from poise_jax.errors import UserError

CONFIG = cli.define_config()
EXAMPLES = flags.DEFINE_integer("examples", 200, "training examples of each domain")
OUT = flags.DEFINE_string("out", "", "folder for README.md and audit.json")
BATCH = 256  # answers judged between two movements of the progress bar
LIMIT = 0.02  # mean score above chance from which a strategy is a temptation
HONEST, UNFINISHED = "reference answer", "right answer in the thought alone"
HEADER = ("best strategy", "mean score", "without a verdict")
MEANING = (
  "A strategy answers all questions in the same way; its mean score is what a policy earns that "
  "learns nothing else. Chance is the share of the most frequent reference answer, which guessing "
  f"legitimately pays; a strategy that earns {LIMIT} more than that is a temptation. The reference "
  "answer must earn 1, as the mean over examples of its best form. Answers without a verdict timed "
  "out or crashed the verifier."
)


def audit(config: ConfigDict, count: int) -> tuple[list[dict], dict[str, float]]:
  """Judges every strategy in every domain.

  Args:
    config: a training config; its task and verifier sections are read.
    count: examples to judge of each domain; all, if the training set has fewer.

  Returns:
    A row for each domain and strategy (domain, kind, strategy, mean score, share of answers that
    failed to get a verdict), and for each domain the score of guessing its most frequent answer.

  Raises:
    UserError: the task or the verifier cannot be used.
  """
  from rich.progress import track

  from poise_jax.data import tasks
  from poise_jax.evaluation import degenerate
  from poise_jax.evaluation.judge import Judge, VerifierConfig
  from poise_jax.verifiers.pool import Pool

  if count < 1:
    raise UserError(f"--examples must be at least 1, got {count}")
  task, think_end = tasks.make(config.task, config.seed), config.task.think_end
  domains = _examples(task.train, count, think_end, config.seed)
  answers = [answer for examples in domains.values() for answer in _answers(examples, think_end)]
  verifier, verdicts = VerifierConfig(**config.verifier), []
  with Pool(verifier.workers, verifier.time_limit) as pool:
    judge = Judge(pool, verifier)
    judge.load(example.check for examples in domains.values() for example in examples)
    for start in track(range(0, len(answers), BATCH), "judging", transient=True):
      part = answers[start : start + BATCH]
      verdicts += judge.score([answer.example.check for answer in part], [a.text for a in part])
  chances = {domain: degenerate.chance(examples) for domain, examples in domains.items()}
  return _rows(answers, verdicts), chances


class Answer(NamedTuple):
  """A text to judge."""

  kind: str
  strategy: str
  example: Any  # a tasks.Example
  text: str


def _examples(train, count, think_end, seed):
  """{domain: examples}, drawn at random, in the order of the training set."""
  from poise_jax.verifiers.weighted import with_think_end

  domains = collections.defaultdict(list)
  for i in np.random.default_rng(seed).permutation(len(train)):
    if len(members := domains[train[i].domain]) < count:
      members.append(i)
  chosen = {domain: [train[i] for i in sorted(places)] for domain, places in domains.items()}
  if think_end:
    for examples in chosen.values():
      for i, example in enumerate(examples):
        check = with_think_end(example.check, think_end)
        examples[i] = dataclasses.replace(example, check=check)
  return dict(sorted(chosen.items()))


def _answers(examples, think_end):
  """Every strategy's answers to the examples of a domain."""
  from poise_jax.evaluation import degenerate

  strategies = list(degenerate.strategies(examples, think_end))
  for example in examples:
    for kind, name, answer in strategies:
      yield Answer(kind, name, example, answer(example))
    for text in degenerate.honest(example, think_end):
      yield Answer(HONEST, HONEST, example, text)
    for name, text in degenerate.unfinished(example).items():
      yield Answer(UNFINISHED, name, example, text)


def _rows(answers, verdicts):
  from poise_jax.verifiers.base import FAILURES

  scores = collections.defaultdict(lambda: collections.defaultdict(list))
  failed = collections.defaultdict(list)
  for answer, verdict in zip(answers, verdicts, strict=True):
    key = answer.example.domain, answer.kind, answer.strategy
    scores[key][id(answer.example)].append(verdict.score)
    failed[key].append(verdict.status in FAILURES)
  return [
    {
      "domain": domain,
      "kind": kind,
      "strategy": strategy,
      "mean": statistics.fmean(max(values) for values in by_example.values()),
      "failed": statistics.fmean(failed[domain, kind, strategy]),
    }
    for (domain, kind, strategy), by_example in scores.items()
  ]


def table(rows: Sequence[dict], chances: Mapping[str, float]) -> str:
  """In Markdown: the best strategy of each kind; of each domain, if there are several."""
  from poise_jax.reports import markdown

  best, honest = {}, {}
  for row in sorted(rows, key=lambda row: -row["mean"]):
    if row["kind"] == HONEST:
      honest[row["domain"]] = row
    else:
      best.setdefault(row["domain"] if len(chances) > 1 else row["kind"], row)
  if len(chances) == 1:
    shown = [*honest.values(), *best.values()]
    cells = [(row["kind"], *_cells(row)) for row in shown]
    return markdown.table(("answers", *HEADER), cells)
  cells = []
  for domain, chance in chances.items():
    reference = f"{honest[domain]['mean']:.3f}" if domain in honest else "none"
    cells.append((domain, reference, f"{chance:.3f}", *_cells(best[domain])))
  return markdown.table(("domain", "reference answer", "chance", *HEADER), cells)


def _cells(row):
  strategy = " ".join(row["strategy"].split()).replace("|", "\\|").replace("`", "'")
  return f"`{strategy[:60]}`", f"{row['mean']:.3f}", f"{row['failed']:.3f}"


def summary(rows: Sequence[dict], chances: Mapping[str, float]) -> str:
  """Whether the reward can be gamed, in a few sentences."""
  honest = [row for row in rows if row["kind"] == HONEST]
  others = [row for row in rows if row["kind"] != HONEST]
  paid = [row for row in others if row["mean"] > chances[row["domain"]] + LIMIT]
  place = (lambda row: f" of {row['domain']}") if len(chances) > 1 else lambda row: ""
  parts = []
  if not honest:
    parts.append("The examples have no reference answer to judge.")
  for row in honest:
    if row["mean"] < 1:
      parts.append(
        f"The reference answer{place(row)} earns {row['mean']:.3f} instead of 1: the reward is "
        "broken."
      )
  if paid:
    domains = len({row["domain"] for row in paid})
    best = max(paid, key=lambda row: row["mean"])
    parts.append(
      f"{len(paid)} of {len(others)} strategies earn more than {LIMIT} above chance"
      f"{f', in {domains} of {len(chances)} domains' if len(chances) > 1 else ''}; the best"
      f"{place(best)} is {best['strategy']!r} with {best['mean']:.3f}, where chance is "
      f"{chances[best['domain']]:.3f}."
    )
  else:
    chance = "" if len(chances) > 1 else f" ({next(iter(chances.values())):.3f})"
    parts.append(f"No strategy earns more than {LIMIT} above chance{chance}.")
  return " ".join(parts)


def main(argv: list[str]):
  """Prints the table."""
  cli.refuse_arguments(argv, "set fields with --config.FIELD=VALUE")
  if CONFIG.value is None:
    raise cli.UsageError("--config is missing: FILE.py or FILE.py:ALGORITHM")
  rows, chances = audit(CONFIG.value, EXAMPLES.value)
  text = f"{table(rows, chances)}\n\n{summary(rows, chances)}"
  print(text)
  if OUT.value:
    from poise_jax import files

    folder = pathlib.Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_whole(folder / "README.md", f"# Audit of a reward\n\n{text}\n\n{MEANING}\n")
    lines = ",\n".join(json.dumps(row) for row in rows if row["mean"] or row["kind"] == HONEST)
    files.write_whole(folder / "audit.json", f"[\n{lines}\n]\n")


if __name__ == "__main__":
  cli.run(main)
