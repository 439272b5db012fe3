"""Evaluation of a checkpoint in a folder of its own, where it resumes after an interruption.

The folder holds protocol.json (the checkpoint, the questions and the sampling options),
provenance.jsonl (one entry a start) and answers.jsonl (one row an answer, in order); table.py
derives the rest from these.
"""

import contextlib
import functools
import json
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import rich.console
import rich.progress
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from poise_jax import files, models
from poise_jax.data import tasks
from poise_jax.data.tasks.config import task_of_run
from poise_jax.distributed import processes, sharding
from poise_jax.errors import UserError
from poise_jax.evaluation import table
from poise_jax.evaluation.answer import EvalConfig, answer, prompts_per_call
from poise_jax.evaluation.held_out import EvalSet, make_sets
from poise_jax.evaluation.judge import Judge, VerifierConfig
from poise_jax.learner.config import check_dtype
from poise_jax.models.io import run_checkpoint
from poise_jax.models.layouts import sampling_layout, training_shardings
from poise_jax.provenance import provenance
from poise_jax.rollout import RolloutConfig
from poise_jax.verifiers.pool import Pool


def load(
  checkpoint: str, mesh: Mesh
) -> tuple[models.ModelConfig, PyTree, models.Tokenizer, dict[str, Any], set[str]]:
  """Loads a checkpoint.

  Args:
    checkpoint: what models.load takes, including a run's workdir.
    mesh: the parameters are placed on it.

  Returns:
    The model's shape, its parameters in the training layout, its tokenizer, the protocol's entry
    about it, and the questions it was trained on (empty if it is not a checkpoint of a run).

  Raises:
    UserError, OSError: there is no such checkpoint, or it is damaged.
  """
  step, trained_questions = None, set()
  if path := run_checkpoint.find(pathlib.Path(checkpoint)):
    about = run_checkpoint.about(path)
    step, run = about["step"], about["config"]
    task = tasks.make(task_of_run(run["task"]), run["seed"])
    trained_questions = {example.asked for example in task.train}
  model, params = models.load(path or checkpoint, shardings=training_shardings(mesh))
  tokenizer = models.load_tokenizer(path or checkpoint)
  models.check_fits(tokenizer, model)
  crc = 0
  for leaf in jax.tree.leaves(params):
    crc = zlib.crc32(sharding.fetch(leaf), crc)
  identity = {"source": checkpoint, "step": step, "crc32": f"{crc:08x}"}
  return model, params, tokenizer, identity, trained_questions


def run(
  config: ConfigDict,
  checkpoint: str,
  out: str,
  against: str | None = None,
  score: Callable | None = None,
) -> str:
  """Samples the answers that `out` lacks, writes the report and returns its table.

  Args:
    config: see configs/common.py.
    checkpoint: see `load`.
    out: the evaluation's folder.
    against: folder of a finished evaluation to compare with.
    score: maps (checks, responses) to verdicts; None: workers as set in config.verifier.

  Raises:
    UserError, OSError: a value is invalid, or `out` holds something else.
  """
  out = pathlib.Path(out)
  other = table.read(pathlib.Path(against)) if against else None
  options = EvalConfig(**config.eval)
  verifier = VerifierConfig(**config.verifier)
  check_dtype("model.dtype", config.model.dtype)
  mesh = sharding.make_mesh(**config.mesh)
  batch, shards = config.eval_batch, sharding.batch_shards(mesh)
  if batch < 1 or batch % shards:
    raise UserError(
      f"eval_batch must be a positive multiple of the mesh's {shards} batch shards, got {batch}"
    )
  model, params, tokenizer, identity, trained_questions = load(checkpoint, mesh)
  sets = make_sets(config, tokenizer)
  base = RolloutConfig(
    max_new_tokens=config.rollout.max_new_tokens,
    eos_ids=tuple(tokenizer.eos_ids),
    pad_id=tokenizer.pad_id,
  )
  rollout = options.rollout(base)
  protocol = {
    "checkpoint": identity,
    "dtype": config.model.dtype,
    "seed": config.seed,
    "sampling": {
      "n": rollout.n,
      "temperature": rollout.temperature,
      "top_p": rollout.top_p,
      "top_k": rollout.top_k,
      "max_new_tokens": rollout.max_new_tokens,
      "seed": options.seed,
    },
    "eval_batch": batch,
    "verifier": {k: v for k, v in config.verifier.items() if k != "workers"},
    "tasks": {test.name: describe(test, trained_questions) for test in sets},
  }
  processes.check_alike("the evaluation", json.dumps(protocol))
  processes.on_first(files.claim, out, table.PROTOCOL, protocol, "an evaluation", "--out")

  calls = [test.batches(prompts_per_call(test, batch, mesh)) for test in sets]
  counts = [len(ids) * rollout.n for batches in calls for ids, _ in batches]
  done = processes.on_first(truncate_to_batches, out / table.ANSWERS, counts)
  if done < len(counts):
    processes.on_first(append, out / table.STARTS, [provenance()])
    params = sampling_layout(mesh, model, config.model.dtype)(params)
    with contextlib.ExitStack() as stack:
      if score is None:
        judge = Judge(stack.enter_context(Pool(verifier.workers, verifier.time_limit)), verifier)
        judge.load(example.check for test in sets for example in test.examples)
        score = functools.partial(judge.score, training=False)
      progress = stack.enter_context(Progress(counts, done, rollout.n))
      stack.enter_context(jax.set_mesh(mesh))
      for test, batches in zip(sets, calls, strict=True):
        answers = answer(model, params, test, rollout, options.seed, batch, mesh, score, start=done)
        done = max(0, done - len(batches))
        for rows in answers:
          processes.on_first(append, out / table.ANSWERS, rows)
          progress.batch(test.name, rows)
  return processes.on_first(table.report, out, options.ks, other)


def append(path: pathlib.Path, rows: list[dict]):
  """Appends rows to a JSONL file."""
  with path.open("a") as file:
    file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def describe(test: EvalSet, trained_questions: set[str]) -> dict[str, Any]:
  """The protocol's entry about a held-out set: the fields of its task, the number of prompts, how
  many of them the checkpoint was trained on, and a checksum of prompt tokens and checks."""
  crc = 0
  for example in test.examples:
    crc = zlib.crc32(repr((test.encoder.encode(example), example.check)).encode(), crc)
  return {
    "config": test.config,
    "prompts": len(test.examples),
    "left_out": dict(test.left_out),
    "trained_on": sum(example.asked in trained_questions for example in test.examples),
    "crc32": f"{crc:08x}",
  }


def truncate_to_batches(path: pathlib.Path, counts: list[int]) -> int:
  """Truncates a JSONL file after its last complete batch and returns the number of those batches.

  Args:
    path: the file; it may be missing.
    counts: lines of each batch.
  """
  lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
  complete_lines = sum(line.endswith(b"\n") for line in lines)
  done = lines_done = 0
  while done < len(counts) and lines_done + counts[done] <= complete_lines:
    lines_done, done = lines_done + counts[done], done + 1
  if lines_done < len(lines):
    with path.open("r+b") as file:
      file.truncate(sum(len(line) for line in lines[:lines_done]))
  return done


class Progress:
  """A progress bar over prompts on a terminal, otherwise one line a batch; a context manager."""

  def __init__(self, counts: list[int], done: int, n: int):
    """Args:
    counts: answers of each batch.
    done: number of finished batches.
    n: answers a prompt.
    """
    quiet = not processes.is_first()
    self.console = rich.console.Console(highlight=False, soft_wrap=True, quiet=quiet)
    self.bar = rich.progress.Progress(
      *rich.progress.Progress.get_default_columns(),
      rich.progress.MofNCompleteColumn(),
      console=self.console,
      disable=not self.console.is_terminal,
    )
    self.n, self.total, self.completed = n, sum(counts) // n, sum(counts[:done]) // n
    self.task = self.bar.add_task("prompts", total=self.total, completed=self.completed)
    if done:
      self.console.print(f"resuming after {self.completed} of {self.total} prompts")

  def __enter__(self):
    self.bar.start()
    return self

  def __exit__(self, *_):
    self.bar.stop()

  def batch(self, name: str, rows: list[dict]):
    """Shows a finished batch of the held-out set `name`."""
    self.completed += len(rows) // self.n
    self.bar.update(self.task, completed=self.completed, description=name)
    if not self.console.is_terminal:
      mean = sum(row["reward"] for row in rows) / len(rows)
      self.console.print(f"{self.completed}/{self.total} prompts  {name}  reward {mean:.3f}")
