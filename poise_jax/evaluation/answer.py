"""Answers to held-out questions and their metrics: accuracy, avg@n, pass@k, maj@k.

Training and experiments.evaluate both use this module.
"""

import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from poise_jax import verifiers
from poise_jax.data.tasks import Example
from poise_jax.distributed.sharding import batch_shards, fetch, put_rows
from poise_jax.errors import UserError, check_finite, unknown_name
from poise_jax.evaluation.at_k import RIGHT, maj_at_k, pass_at_k, standard_error
from poise_jax.evaluation.held_out import EvalSet
from poise_jax.models import ModelConfig
from poise_jax.reports.run_log import GREEDY, metric_of
from poise_jax.rollout import RolloutConfig, sample
from poise_jax.types import Rollouts
from poise_jax.verifiers.base import FAILURES

EXAMPLE_FIELDS = ("question", "answer", "domain", "difficulty")  # fields copied into a row
LEVELS = ("task", "domain", "difficulty")  # fields that rows are grouped by, coarse to fine
# Calls of the sampler have a queue of so many times the prompts that it answers at once. What is
# saved between calls is not answered again when an evaluation is resumed.
QUEUE = 8


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """How held-out problems are answered. Raises UserError for values out of range."""

  n: int = 1  # answers a prompt, at most 1000
  k: tuple[int, ...] = ()  # k of pass@k and maj@k, at most n; empty: 1, 2, 4 ... and n
  temperature: float = 0.0  # sampling temperature; 0: greedy, and training evaluates greedily only
  top_p: float = 1.0  # keep the smallest set of tokens with at least this mass; 1 keeps all
  top_k: int = 0  # keep the k most likely tokens; 0 keeps all
  seed: int = 0  # sampling seed; the problems depend on config.seed
  max_new_tokens: int = 0  # tokens an answer may have; 0: rollout.max_new_tokens
  # accuracy by which the best checkpoint is chosen and which console and reports show: of "greedy"
  # answers, or "avg@N", "pass@K" or "maj@K" of sampled ones, with N = eval.n and K one of eval.k
  best_by: str = GREEDY
  # held-out sets, {name: {field of task: value}}; empty: the held-out problems of task itself
  tasks: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    check_finite("eval", self)
    if not 1 <= self.n <= 1000:
      raise UserError(f"eval.n must be in [1, 1000], got {self.n}")
    for k in self.k:
      if not 1 <= k <= self.n:
        raise UserError(f"eval.k={self.k} contains {k}, which is not in [1, eval.n={self.n}]")
    if self.n > 1 and self.temperature == 0:
      raise UserError(
        f"eval.n={self.n} answers at eval.temperature=0 would all be the same; set "
        "eval.temperature above 0, or eval.n=1"
      )
    names = self.names
    if self.best_by not in names:
      hint = (
        "" if self.temperature else "; sampled answers need eval.temperature above 0 and eval.n"
      )
      raise UserError(f"{unknown_name('eval.best_by', self.best_by, names)}{hint}")
    self.rollout(RolloutConfig())

  @property
  def names(self) -> tuple[str, ...]:
    """Choices of best_by."""
    if not self.temperature:
      return (GREEDY,)
    return (GREEDY, f"avg@{self.n}", *(f"{name}@{k}" for name in ("pass", "maj") for k in self.ks))

  @property
  def ks(self) -> tuple[int, ...]:
    """The k of pass@k and maj@k, increasing."""
    powers_of_two = (2**i for i in range(self.n.bit_length()))
    return tuple(sorted(set(self.k or (*powers_of_two, self.n))))

  def rollout(self, base: RolloutConfig) -> RolloutConfig:
    """Sampling options of an evaluation; EOS and padding ids are those of `base`."""
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


def prompts_per_call(test: EvalSet, at_once: int, mesh: Mesh) -> int:
  """Prompts in one call of the sampler: equal parts of the set, of at most QUEUE * at_once prompts,
  rounded up to the mesh's batch shards."""
  prompts, shards = len(test.examples), batch_shards(mesh)
  calls = -(-prompts // (QUEUE * at_once))
  return -(-prompts // (calls * shards)) * shards


def sampled(
  model: ModelConfig,
  params: PyTree,
  test: EvalSet,
  rollout: RolloutConfig,
  seed: int,
  batch_size: int,
  mesh: Mesh,
  start: int = 0,
) -> Iterator[tuple[list[int], list[Example], Rollouts]]:
  """Responses to a held-out set, one batch of prompts at a time.

  The draws for a prompt depend only on the seed, the name of the set and the prompt's index.

  Args: see `answer`; `batch_size` is the number of prompts in a call of the sampler.

  Yields:
    The indices of a batch's prompts, the examples of its `batch_size` rows, in which the last
    prompt is repeated to fill the batch, and their responses on the mesh. Those to repeated prompts
    have one token.
  """
  root = jax.random.fold_in(jax.random.key(seed), zlib.crc32(test.name.encode()))
  for batch, width in test.batches(batch_size)[start:]:
    padded = np.array([*batch, *[batch[-1]] * (batch_size - len(batch))])  # one compiled shape
    examples = [test.examples[i] for i in padded]

    def encode(rows):
      prompts = test.encoder([examples[i] for i in rows], width)  # noqa: B023
      limits = [rollout.max_new_tokens if i < len(batch) else 1 for i in rows]  # noqa: B023
      return prompts.replace(max_tokens=np.array(limits, np.int32))

    prompts = put_rows(mesh, batch_size, encode)
    keys = jax.vmap(functools.partial(jax.random.fold_in, root))(padded)
    yield batch, examples, sample(model, params, prompts, keys, rollout)


def answer(
  model: ModelConfig,
  params: PyTree,
  test: EvalSet,
  rollout: RolloutConfig,
  seed: int,
  batch_size: int,
  mesh: Mesh,
  score: Callable = verifiers.score,
  start: int = 0,
) -> Iterator[list[dict[str, Any]]]:
  """Answers to a held-out set, sampled and verified; see `sampled`.

  The sampler has a queue: a prompt whose answers are complete makes room for the next one.

  Args:
    model: the decoder's shape.
    params: parameters in the sampling layout.
    test: the held-out set.
    rollout: sampling options.
    seed: sampling seed.
    batch_size: prompts that are answered at once, rollout.n answers each.
    mesh: prompts are divided over its batch axes.
    score: maps (checks, responses) to verdicts.
    start: index of the first call's prompts in test.batches(prompts_per_call(...)).

  Yields:
    The rows of a call, rollout.n a prompt: task, prompt (its number), sample, question, answer,
    domain, difficulty, response, tokens, truncated, reward in [0, 1], status (of the verdict), vote
    (the verdict's answer, which counts in a majority; None unless the status is "ok").
  """
  slots = dataclasses.replace(rollout, slots=batch_size * rollout.n)
  size = prompts_per_call(test, batch_size, mesh)
  for batch, _, rollouts in sampled(model, params, test, slots, seed, size, mesh, start):
    examples = [test.examples[i] for i in batch]
    tokens, mask, truncated = fetch((rollouts.tokens, rollouts.mask, rollouts.truncated))
    rows = []
    for (p, i), is_truncated in np.ndenumerate(truncated[: len(examples)]):
      row = {"task": test.name, "prompt": batch[p], "sample": i}
      row |= {name: getattr(examples[p], name) for name in EXAMPLE_FIELDS}
      response = test.encoder.response(tokens[p, i][mask[p, i]].tolist())
      rows.append(row | {"response": response, "tokens": int(mask[p, i].sum())})
      rows[-1]["truncated"] = bool(is_truncated)
    checks = [example.check for example in examples for _ in range(rollout.n)]
    verdicts = score(checks, [row["response"] for row in rows])
    for row, verdict in zip(rows, verdicts, strict=True):
      row |= {"reward": float(verdict.score), "status": verdict.status}
      row["vote"] = verdict.answer if verdict.status == "ok" else None
    yield rows


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """Rows sorted by task (in order of first appearance), prompt and sample."""
  rows = list(rows)
  rank = {name: i for i, name in enumerate(dict.fromkeys(row["task"] for row in rows))}
  return sorted(rows, key=lambda row: (rank[row["task"]], row["prompt"], row["sample"]))


def per_prompt(
  rows: Sequence[dict[str, Any]], ks: Sequence[int]
) -> dict[str, Float[np.ndarray, " P"]]:
  """Metrics of each prompt: avg@n, pass@k and maj@k of each k, truncated, tokens, and the fraction
  of answers with each verdict status that occurs, except "ok".

  Args:
    rows: rows of `answer`, those of a prompt next to each other, equally many for every prompt.
    ks: values of k, at most the answers a prompt.
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
    ballots = [([row["vote"] for row in g], [row["reward"] for row in g]) for g in groups]
    values[f"maj@{k}"] = np.array([maj_at_k(*ballot, k) for ballot in ballots])
  values["truncated"] = means(lambda row: row["truncated"])
  values["tokens"] = means(lambda row: row["tokens"])
  for status in sorted({row["status"] for row in rows} - {"ok"}):
    values[status] = means(lambda row, status=status: row["status"] == status)
  return values


def by_group(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
  """All rows (under ""), and rows by task, domain and difficulty.

  A level whose value is the same in all rows is left out of the names: "3+" if there is one domain,
  "arithmetic/3+" if there are several. So is a difficulty that equals its domain.
  """
  levels = [level for level in LEVELS if len({row[level] for row in rows}) > 1]
  groups = {"": list(rows)}
  for depth in range(1, len(levels) + 1):
    finer = {}
    for row in rows:
      parts = dict.fromkeys(str(row[level]) for level in levels[:depth] if row[level])
      finer.setdefault("/".join(parts), []).append(row)
    groups = {**finer, **groups}  # where names coincide, the coarser level's rows stay
  return dict(sorted(groups.items()))


def evaluate(
  model: ModelConfig,
  params: PyTree,
  sets: Sequence[EvalSet],
  rollout: RolloutConfig,
  config: EvalConfig,
  batch_size: int,
  mesh: Mesh,
  score: Callable = verifiers.score,
) -> tuple[dict[str, float], list[dict[str, Any]], list[dict[str, Any]]]:
  """Greedy answers to every held-out problem and, at config.temperature > 0, config.n sampled ones.

  Args: see `answer`.

  Returns:
    metrics: of the greedy answers eval/accuracy in [0, 1], eval/accuracy_se (bootstrap over
      prompts), eval/accuracy/<group>, eval/truncated_fraction and, if a verifier failed,
      eval/timed_out, eval/crashed and eval/sandbox_failed; of the sampled answers
      eval/avg_at_<n>, eval/pass_at_<k> and eval/maj_at_<k>, each with its _se.
    rows of the greedy answers.
    rows of the sampled answers.
  """

  def rows_of(options):
    options = options.rollout(rollout)
    batches = (
      answer(model, params, s, options, config.seed, batch_size, mesh, score) for s in sets
    )
    return in_order(row for test in batches for batch in test for row in batch)

  greedy = rows_of(EvalConfig(max_new_tokens=config.max_new_tokens))
  values = per_prompt(greedy, ())
  statuses = Counter(row["status"] for row in greedy)
  metrics = {
    "eval/accuracy": float(values["avg@1"].mean()),
    "eval/accuracy_se": standard_error(values["avg@1"]),
    "eval/truncated_fraction": float(values["truncated"].mean()),
    **{f"eval/{name}": statuses[name] for name in FAILURES if statuses[name]},
  }
  for name, group in by_group(greedy).items():
    if name:
      metrics[f"eval/accuracy/{name}"] = float(np.mean([row["reward"] for row in group]))
  if not config.temperature:
    return metrics, greedy, []
  sampled = rows_of(config)
  for name, value in per_prompt(sampled, config.ks).items():
    if "@" in name:
      name = metric_of(name)
      metrics |= {name: float(value.mean()), f"{name}_se": standard_error(value)}
  return metrics, greedy, sampled
