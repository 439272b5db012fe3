"""Held-out answers and what they say: accuracy, avg@k, pass@k and maj@k with standard errors.

The same code evaluates during training and, through experiments.evaluate, a checkpoint alone.
"""

import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from poise_jax import rollout as rollouts_lib
from poise_jax import verifiers
from poise_jax.data import order as data
from poise_jax.data import tasks
from poise_jax.data.prompts import PromptEncoder
from poise_jax.distributed.sharding import fetch, put_rows
from poise_jax.errors import UserError
from poise_jax.evaluation.at_k import RIGHT, maj_at_k, pass_at_k, standard_error
from poise_jax.rollout import RolloutConfig

__all__ = ["EvalConfig", "EvalSet", "evaluate", "maj_at_k", "pass_at_k", "standard_error"]

SHOWN = ("question", "answer", "domain", "difficulty")  # of an example, beside its response
LEVELS = ("task", "domain", "difficulty")  # of a row, from coarse to fine
HELD_OUT = "held_out"  # name of the test set of config.task


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """How held-out problems are answered; raises UserError for values without a meaning."""

  n: int = 1  # answers a prompt, at most 1000
  k: tuple[int, ...] = ()  # of pass@k and maj@k, none above n; none: 1, 2, 4 ... and n
  temperature: float = 0.0  # 0 picks the most likely token; training then evaluates nothing else
  top_p: float = 1.0  # keep the smallest set of tokens with at least this mass; 1 keeps all
  top_k: int = 0  # keep the k most likely tokens; 0 keeps all
  seed: int = 0  # of sampling; config.seed is that of the problems
  max_new_tokens: int = 0  # limit of an answer; 0: rollout.max_new_tokens

  def __post_init__(self):
    if not 1 <= self.n <= 1000:
      raise UserError(f"eval.n={self.n} must be in [1, 1000]")
    for k in self.k:
      if not 1 <= k <= self.n:
        raise UserError(
          f"eval.k={self.k} has {k}, but {self.n} answers a prompt say nothing about {k}; raise "
          "eval.n or leave it out"
        )
    if self.n > 1 and self.temperature == 0:
      raise UserError(
        f"eval.n={self.n} answers at eval.temperature=0 would all be the same; set "
        "eval.temperature, or eval.n=1"
      )
    self.rollout(RolloutConfig())

  @property
  def ks(self) -> tuple[int, ...]:
    """The k of pass@k and maj@k, increasing."""
    doubling = (2**i for i in range(self.n.bit_length()))
    return tuple(sorted(set(self.k or (*doubling, self.n))))

  def rollout(self, base: RolloutConfig) -> RolloutConfig:
    """Sampling options for evaluation; ends and padding are those of `base`."""
    try:
      return dataclasses.replace(
        base,
        n=self.n,
        temperature=self.temperature,
        top_p=self.top_p,
        top_k=self.top_k,
        max_new_tokens=self.max_new_tokens or base.max_new_tokens,
        feature_layers=(),
      )
    except ValueError as error:
      raise UserError(str(error).replace("rollout.", "eval.")) from error


@dataclasses.dataclass(frozen=True)
class EvalSet:
  """A test set and how its questions are asked."""

  name: str
  examples: Sequence[tasks.Example]
  encoder: PromptEncoder
  config: dict[str, Any]  # the fields of config.task behind them
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)  # examples, by reason

  def batches(self, size: int) -> list[tuple[list[int], int]]:
    """Numbers of the prompts that are answered at once, and how many tokens wide they are: short
    prompts first, every prompt once."""
    lengths = [len(self.encoder.ids(example)) for example in self.examples]
    limit = self.encoder.max_length
    return [(batch, min(width, limit)) for batch, width in data.by_length(lengths, size)]


def make_sets(config: ConfigDict, tokenizer) -> list[EvalSet]:
  """The test sets of config.eval.tasks, or that of config.task if there are none.

  Raises:
    UserError: a field that config.task does not have, an empty set, or a prompt too long.
  """
  sections = {HELD_OUT: config.task}
  if config.eval.tasks:
    sections = {}
    for name, changes in config.eval.tasks.items():
      section = sections[name] = config.task.copy_and_resolve_references().lock()
      try:
        for field, value in changes.items():
          section[field] = value
      except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"eval.tasks.{name}: {error.args[0]}") from error
  sets = []
  for name, section in sections.items():
    encoder = PromptEncoder.of(section, tokenizer)
    task = tasks.make(section, config.seed)
    task = dataclasses.replace(task, train=task.test)  # may be large, and nobody reads it here
    task = data.fit(task, encoder, section.drop_long)
    left_out = {why: n for why, n in task.left_out.items() if not why.startswith("train")}
    sets.append(EvalSet(name, task.test, encoder, section.to_dict(), left_out))
  return sets


def answer(
  model,
  params,
  test: EvalSet,
  rollout: RolloutConfig,
  seed: int,
  batch_size: int,
  mesh,
  score: Callable = verifiers.score,
  start: int = 0,
) -> Iterator[list[dict[str, Any]]]:
  """Answers to a test set, sampled and judged, a batch of prompts at a time.

  What is drawn for a prompt depends on the seed, the set's name and the prompt's number alone.

  Args:
    model: the decoder's shape.
    params: sampling layout.
    test: the set.
    rollout: sampling options.
    seed: of sampling.
    batch_size: prompts at once, rollout.n answers each.
    mesh: the prompts are spread over its batch axes.
    score: (checks, responses) -> verdicts, one each.
    start: number of the first of EvalSet.batches.

  Yields:
    A batch's rows, rollout.n a prompt: task, prompt (its number), sample, question, answer, domain,
    difficulty, response, tokens, truncated, reward in [0, 1], status (of the verdict), vote (the
    verdict's answer, which counts in a majority; None unless the status is "ok").
  """
  root = jax.random.fold_in(jax.random.key(seed), zlib.crc32(test.name.encode()))
  for batch, width in test.batches(batch_size)[start:]:
    examples = [test.examples[i] for i in batch]
    filled = np.array([*batch, *[batch[-1]] * (batch_size - len(batch))])  # one compiled shape
    prompts = put_rows(
      mesh,
      batch_size,
      lambda rows: test.encoder([test.examples[filled[i]] for i in rows], width),  # noqa: B023
    )
    keys = jax.vmap(functools.partial(jax.random.fold_in, root))(filled)
    out = rollouts_lib.sample(model, params, prompts, keys, rollout)
    tokens, mask, truncated = fetch((out.tokens, out.mask, out.truncated))
    rows = []
    for (p, i), cut in np.ndenumerate(truncated[: len(examples)]):
      row = {"task": test.name, "prompt": batch[p], "sample": i}
      row |= {name: getattr(examples[p], name) for name in SHOWN}
      response = test.encoder.tokenizer.decode(tokens[p, i][mask[p, i]].tolist())
      rows.append(row | {"response": response, "tokens": int(mask[p, i].sum())})
      rows[-1]["truncated"] = bool(cut)
    checks = [example.check for example in examples for _ in range(rollout.n)]
    verdicts = score(checks, [row["response"] for row in rows])
    for row, verdict in zip(rows, verdicts, strict=True):
      row |= {"reward": float(verdict.score), "status": verdict.status}
      row["vote"] = verdict.answer if verdict.status == "ok" else None
    yield rows


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """Rows by task in the order of their appearance, then by prompt and sample."""
  rows = list(rows)
  place = {name: i for i, name in enumerate(dict.fromkeys(row["task"] for row in rows))}
  return sorted(rows, key=lambda row: (place[row["task"]], row["prompt"], row["sample"]))


def per_prompt(rows: Sequence[dict[str, Any]], ks: Sequence[int]) -> dict[str, np.ndarray]:
  """What each prompt's answers say, [P] a metric: avg@n, pass@k and maj@k of each k, truncated,
  tokens, and one for every status of a verdict that occurs: the fraction that has it.

  Args:
    rows: of `answer`, a prompt's together, the same number for every prompt.
    ks: none above that number.
  """
  n = 1 + max(row["sample"] for row in rows)
  groups = [rows[i : i + n] for i in range(0, len(rows), n)]

  def means(value):
    return np.array([np.mean([value(row) for row in group]) for group in groups])

  values = {f"avg@{n}": means(lambda row: row["reward"])}
  for k in ks:
    right = [sum(row["reward"] >= RIGHT for row in group) for group in groups]
    values[f"pass@{k}"] = np.array([pass_at_k(n, c, k) for c in right])
  for k in ks:
    said = [([row["vote"] for row in g], [row["reward"] for row in g]) for g in groups]
    values[f"maj@{k}"] = np.array([maj_at_k(*group, k) for group in said])
  values["truncated"] = means(lambda row: row["truncated"])
  values["tokens"] = means(lambda row: row["tokens"])
  for status in sorted({row["status"] for row in rows} - {"ok"}):
    values[status] = means(lambda row, status=status: row["status"] == status)
  return values


def by_group(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
  """Rows in all (""), and by task, domain and difficulty.

  A level at which all rows are the same has no part in a name: "3+" with one domain, and
  "arithmetic/3+" with several. A difficulty that has its domain's name is not said twice.
  """
  telling = [level for level in LEVELS if len({row[level] for row in rows}) > 1]
  groups = {"": list(rows)}
  for depth in range(1, len(telling) + 1):
    found = {}
    for row in rows:
      parts = dict.fromkeys(str(row[level]) for level in telling[:depth] if row[level])
      name = "/".join(parts)
      found.setdefault(name, []).append(row)
    groups = {**found, **groups}  # a name that a coarser level has is that level's
  return dict(sorted(groups.items()))


def evaluate(
  model,
  params,
  sets: Sequence[EvalSet],
  rollout: RolloutConfig,
  config: EvalConfig,
  batch_size: int,
  mesh,
  score: Callable = verifiers.score,
) -> tuple[dict[str, float], list[dict[str, Any]], list[dict[str, Any]]]:
  """Greedy answers to every held-out problem and, at config.temperature > 0, config.n sampled ones.

  Args: those of `answer`.

  Returns:
    metrics: eval/accuracy in [0, 1], eval/accuracy_se (bootstrap over prompts),
      eval/accuracy/<group>, eval/truncated_fraction and, where a verifier failed, eval/timed_out
      and eval/crashed, of the greedy answers; eval/avg_at_<n>, eval/pass_at_<k> and eval/maj_at_<k>
      with their _se of the sampled ones.
    The rows of the greedy answers, and those of the sampled ones.
  """

  def rows_of(options):
    options = options.rollout(rollout)
    batches = (
      answer(model, params, s, options, config.seed, batch_size, mesh, score) for s in sets
    )
    return in_order(row for test in batches for batch in test for row in batch)

  greedy = rows_of(EvalConfig(max_new_tokens=config.max_new_tokens))
  values = per_prompt(greedy, ())
  failed = Counter(row["status"] for row in greedy)
  metrics = {
    "eval/accuracy": float(values["avg@1"].mean()),
    "eval/accuracy_se": standard_error(values["avg@1"]),
    "eval/truncated_fraction": float(values["truncated"].mean()),
    **{f"eval/{name}": failed[name] for name in ("timed_out", "crashed") if failed[name]},
  }
  for name, group in by_group(greedy).items():
    if name:
      metrics[f"eval/accuracy/{name}"] = float(np.mean([row["reward"] for row in group]))
  if not config.temperature:
    return metrics, greedy, []
  sampled = rows_of(config)
  for name, value in per_prompt(sampled, config.ks).items():
    if "@" in name:
      name = "eval/" + name.replace("@", "_at_")
      metrics |= {name: float(value.mean()), f"{name}_se": standard_error(value)}
  return metrics, greedy, sampled
