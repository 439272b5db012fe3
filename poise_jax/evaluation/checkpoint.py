"""Evaluates a checkpoint in a folder of its own, which an interrupted evaluation goes on in.

The folder gets protocol.json (what is asked of whom, and how), provenance.jsonl (one entry a start)
and answers.jsonl (one row an answer, in order); scorecard.py makes the rest of these.
"""

import contextlib
import functools
import json
import pathlib
import zlib
from collections.abc import Callable

import jax
import rich.console
import rich.progress
from jax.sharding import Mesh
from ml_collections import ConfigDict

from poise_jax import files, models
from poise_jax.data import tasks
from poise_jax.distributed import processes, sharding
from poise_jax.errors import UserError
from poise_jax.evaluation import answer as evaluate
from poise_jax.evaluation import table as scorecard
from poise_jax.evaluation.judge import Judge, VerifierConfig
from poise_jax.learner.update import check_dtype
from poise_jax.models.io import run_checkpoint
from poise_jax.models.layouts import sampling_layout, training_shardings
from poise_jax.provenance import provenance
from poise_jax.rollout import RolloutConfig
from poise_jax.verifiers.pool import Pool


def load(checkpoint: str, mesh: Mesh):
  """What to evaluate.

  Args:
    checkpoint: what models.load takes, a run's workdir included.
    mesh: for its parameters.

  Returns:
    The model's shape, its parameters in the training layout, its tokenizer, what identifies it,
    and the questions that it was trained on as far as that is known.

  Raises:
    UserError, OSError: there is no such checkpoint, or it is broken.
  """
  step, trained = None, set()
  if found := run_checkpoint.find(pathlib.Path(checkpoint)):
    about = run_checkpoint.about(found)
    step, run = about["step"], ConfigDict(about["config"])
    trained = {example.question for example in tasks.make(run.task, run.seed).train}
  model, params = models.load(found or checkpoint, shardings=training_shardings(mesh))
  tokenizer = models.load_tokenizer(found or checkpoint)
  models.check_fits(tokenizer, model)
  crc = 0
  for leaf in jax.tree.leaves(params):
    crc = zlib.crc32(sharding.fetch(leaf), crc)
  identity = {"source": checkpoint, "step": step, "crc32": f"{crc:08x}"}
  return model, params, tokenizer, identity, trained


def run(
  config: ConfigDict,
  checkpoint: str,
  out: str,
  against: str | None = None,
  score: Callable | None = None,
) -> str:
  """Samples what is still missing in `out`, writes the report and returns its table.

  Args:
    config: as configs/common.py describes it.
    checkpoint: see `load`.
    out: the evaluation's folder.
    against: the folder of another, finished one.
    score: (checks, responses) -> verdicts, one each; None: workers, as config.verifier says.

  Raises:
    UserError, OSError: what was asked for cannot work, or `out` belongs to something else.
  """
  out = pathlib.Path(out)
  other = scorecard.read(pathlib.Path(against)) if against else None
  options = evaluate.EvalConfig(**{k: v for k, v in config.eval.items() if k != "tasks"})
  verifier = VerifierConfig(**config.verifier)
  check_dtype("model.dtype", config.model.dtype)
  mesh = sharding.make_mesh(**config.mesh)
  batch, shards = config.eval_batch, sharding.batch_shards(mesh)
  if batch < 1 or batch % shards:
    raise UserError(f"eval_batch={batch} is not a positive multiple of the batch shards={shards}")
  model, params, tokenizer, identity, trained = load(checkpoint, mesh)
  sets = evaluate.make_sets(config, tokenizer)
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
    "tasks": {test.name: describe(test, trained) for test in sets},
  }
  processes.check_alike("the evaluation", json.dumps(protocol))
  processes.on_first(files.claim, out, scorecard.PROTOCOL, protocol, "an evaluation", "--out")

  counts = [len(ids) * rollout.n for test in sets for ids, _ in test.batches(batch)]
  done = processes.on_first(keep_whole, out / scorecard.ANSWERS, counts)
  if done < len(counts):
    processes.on_first(append, out / scorecard.STARTS, [provenance()])
    params = sampling_layout(mesh, model, config.model.dtype)(params)
    with contextlib.ExitStack() as stack:
      if score is None:
        judge = Judge(stack.enter_context(Pool(verifier.workers, verifier.time_limit)), verifier)
        judge.load(example.check for test in sets for example in test.examples)
        score = functools.partial(judge.score, training=False)
      progress = stack.enter_context(Progress(counts, done, rollout.n))
      stack.enter_context(jax.set_mesh(mesh))
      for test in sets:
        answers = evaluate.answer(
          model, params, test, rollout, options.seed, batch, mesh, score, start=done
        )
        done = max(0, done - len(test.batches(batch)))
        for rows in answers:
          processes.on_first(append, out / scorecard.ANSWERS, rows)
          progress.batch(test.name, rows)
  return processes.on_first(scorecard.report, out, options.ks, other)


def append(path: pathlib.Path, rows: list[dict]):
  """Adds rows to a JSONL file."""
  with path.open("a") as file:
    file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def describe(test, trained: set[str]) -> dict:
  """What is asked: the task's fields, how many prompts, how many of them the checkpoint was trained
  on, and a checksum of the prompts' tokens and of the checks."""
  crc = 0
  for example in test.examples:
    crc = zlib.crc32(repr((test.encoder.encode(example), example.check)).encode(), crc)
  return {
    "config": test.config,
    "prompts": len(test.examples),
    "left_out": dict(test.left_out),
    "trained_on": sum(example.question in trained for example in test.examples),
    "crc32": f"{crc:08x}",
  }


def keep_whole(path: pathlib.Path, counts: list[int]) -> int:
  """How many batches, of so many lines each, are there as a whole; cuts off what comes after."""
  lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
  whole = sum(line.endswith(b"\n") for line in lines)
  done = kept = 0
  while done < len(counts) and kept + counts[done] <= whole:
    kept, done = kept + counts[done], done + 1
  if kept < len(lines):
    with path.open("r+b") as file:
      file.truncate(sum(len(line) for line in lines[:kept]))
  return done


class Progress:
  """A bar over prompts on a terminal, elsewhere a line a batch; use as a context manager."""

  def __init__(self, counts: list[int], done: int, n: int):
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
      self.console.print(f"going on after {self.completed} of {self.total} prompts")

  def __enter__(self):
    self.bar.start()
    return self

  def __exit__(self, *_):
    self.bar.stop()

  def batch(self, name: str, rows: list[dict]):
    """Shows that a batch of rows is done."""
    self.completed += len(rows) // self.n
    self.bar.update(self.task, completed=self.completed, description=name)
    if not self.console.is_terminal:
      mean = sum(row["reward"] for row in rows) / len(rows)
      self.console.print(f"{self.completed}/{self.total} prompts  {name}  reward {mean:.3f}")
