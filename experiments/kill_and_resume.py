"""Kills a small run at random moments, resumes it each time, and compares it with a run that was
never interrupted: all metrics except times, all samples and answers, all arrays of the last
checkpoint.

python -m experiments.kill_and_resume --algorithm=NAME --out=DIR [--kills=20] [--seed=0]

Kills fall into sampling, updating, evaluating and saving in turn, after a random delay. (Saving
continues in the background of the next step.) Responses of different lengths take turns in a
quarter as many slots, and fill as many passes of the update as they need. DIR/README.md has a table
of all algorithms run with this DIR. The exit code is 1 if the runs differ.
"""

import collections
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli
from poise_jax.reports import markdown, run_log

ALGORITHM = flags.DEFINE_string("algorithm", "poise", "algorithm of configs/quickstart.py")
KILLS = flags.DEFINE_integer("kills", 20, "number of kills")
SEED = flags.DEFINE_integer("seed", 0, "seed of the moments")
OUT = flags.DEFINE_string("out", None, "output folder for the runs and the report")

ROOT = pathlib.Path(__file__).parents[1]
PHASES = ("sampling", "updating", "evaluating", "saving")
TRAIN = 48  # problems: an epoch is 6 steps of poise, 3 of ppo
HEADER = (
  *("algorithm", "steps", "epochs of the data", "steps with carried-over groups"),
  *("tokens a response", "responses a slot", "useful rows", "useful positions"),
  *("killed while sampling", "updating", "evaluating", "saving"),
  *("with a checkpoint half-written", "differences"),
)
ABOUT = """A small run, killed (kill -9) at random moments and resumed each time, against an
uninterrupted one: metrics except times, samples, held-out answers, and every array of the last
checkpoint (parameters, optimizer, estimator, carried-over groups), bit for bit."""

# phase, step, delay, reached (the phase in which it died), last_checkpoint, unfinished_checkpoints
Kill = dict[str, Any]


def config_of(algorithm: str, kills: int) -> ConfigDict:
  """The quickstart with a smaller model and task, and enough steps for that many kills."""
  from configs import quickstart

  config = quickstart.get_config(algorithm)
  config.update_from_flattened_dict(
    {
      "steps": 6 + 6 * kills,
      "rollouts": 16,
      "rollout.n": min(config.rollout.n, 4),
      "rollout.max_new_tokens": 10,
      "rollout.slots": 4,
      "eval_every": 4,
      "eval_batch": 16,
      "checkpoint_every": 2,
      "collect.max_generations": 6,
      "model.shape.hidden_size": 64,
      "model.shape.intermediate_size": 96,
      "model.shape.num_attention_heads": 2,
      "model.shape.num_key_value_heads": 1,
      "model.shape.head_dim": 32,
      "task.name": "arithmetic",
      "task.think_end": "",
      "task.arithmetic.kinds": ("1+",),
      "task.arithmetic.careless": 0.5,  # guesses are shorter than worked answers
      "task.train": TRAIN,
      "task.test": 16,
      "task.max_prompt_length": 8,
      "warm_start.steps": 150,
      "warm_start.batch_size": 64,
      "probe.bootstrap_steps": 2,
      "probe.buffer_rows": 32,
      "probe.pca_prompt": 4,
      "probe.pca_response": 4,
      "train.minibatch_size": 8,
      "train.microbatch_size": 2,
    }
  )
  return config


def child(algorithm: str, kills: int, workdir: str):
  """Trains and prints the phases of the loop; the process that is killed."""
  from poise_jax.training import logging, loop

  logging.Logger.phase = lambda _, name, *progress: print(f"PHASE {name}", flush=True)
  loop.train(config_of(algorithm, kills), workdir)


def start(algorithm: str, kills: int, workdir: pathlib.Path) -> subprocess.Popen:
  """Starts the child; its stdout is a pipe of lines."""
  call = f"child({algorithm!r}, {kills}, {str(workdir)!r})"
  code = f"from experiments import kill_and_resume; kill_and_resume.{call}"
  return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def phases(process: subprocess.Popen) -> Iterator[tuple[float, int, str]]:
  """(time in seconds, step, phase) whenever the child enters a phase."""
  for line in process.stdout:
    if line.startswith("PHASE step "):
      _, _, step, phase = line.split()
      yield time.perf_counter(), int(step.rstrip(":")), phase


def run_uninterrupted(algorithm: str, kills: int, workdir: pathlib.Path) -> dict[str, float]:
  """Runs to the end; returns the median duration of each phase in seconds."""
  process = start(algorithm, kills, workdir)
  entered = list(phases(process))
  if process.wait():
    sys.exit(f"error: the uninterrupted run failed; see {workdir}")
  durations = collections.defaultdict(list)
  for (begin, _, phase), (end, *_) in zip(entered, entered[1:], strict=False):
    durations[phase].append(end - begin)
  return {phase: float(np.median(seconds)) for phase, seconds in durations.items()}


def run_killed(
  algorithm: str, kills: int, seed: int, workdir: pathlib.Path, durations: dict[str, float]
) -> list[Kill]:
  """Runs with `kills` kill -9 in between, and to the end; returns the kills."""
  rng = np.random.default_rng(seed)
  records = []
  for i in range(kills):
    process = start(algorithm, kills, workdir)
    record = kill(process, PHASES[i % len(PHASES)], i, rng, workdir, durations)
    process.wait()
    if record is None:
      sys.exit(f"error: the run ended or failed before kill {i + 1}; see {workdir}")
    folders = [path.name for path in (workdir / "checkpoints").glob("*")]
    record["unfinished_checkpoints"] = sum(not name.isdigit() for name in folders)
    record["last_checkpoint"] = last_checkpoint(workdir)
    records.append(record)
    print(f"kill {i + 1}: {record}", flush=True)
  process = start(algorithm, kills, workdir)
  collections.deque(phases(process), maxlen=0)
  if process.wait():
    sys.exit(f"error: the run could not be finished after its kills; see {workdir}")
  return records


def kill(
  process: subprocess.Popen,
  target: str,
  index: int,
  rng: np.random.Generator,
  workdir: pathlib.Path,
  durations: dict[str, float],
) -> Kill | None:
  """Kills the process in the target phase; None if it ended before."""
  countdown = int(rng.integers(1, 4)) if target in PHASES[:2] else 1
  # Saving continues in the background of the next step, beyond its own phase.
  delay = rng.uniform(0, 0.3 if target == "saving" else durations[target])
  # Every other time the run has to make progress first, or all kills would fall on its beginning.
  least = last_checkpoint(workdir) + index % 2
  entered = phases(process)
  for _, step, phase in entered:
    countdown -= phase == target and last_checkpoint(workdir) >= least
    if not countdown:
      time.sleep(delay)
      process.kill()
      reached = [phase, *(later for _, _, later in entered)][-1]
      return {"phase": phase, "step": step, "delay": round(delay, 4), "reached": reached}
  return None


def last_checkpoint(workdir: pathlib.Path) -> int:
  """The step of the newest complete checkpoint, or -1."""
  from poise_jax.models.io import run_checkpoint

  return max(run_checkpoint.steps_of(workdir), default=-1)


def main(argv: list[str]):
  """Runs, compares, reports."""
  cli.refuse_arguments(argv)
  if not OUT.value:
    raise cli.UsageError(f"--out=DIR is missing: {flags.FLAGS['out'].help}")
  # Imported here, so that a mistyped flag does not wait for jax.
  from experiments.run_differences import differences

  name, kills, out = ALGORITHM.value, KILLS.value, pathlib.Path(OUT.value).absolute()
  folder = out / name
  if folder.exists():
    raise cli.UsageError(f"{folder} exists already; choose another --out")
  out.mkdir(parents=True, exist_ok=True)
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "compiled"))
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
  durations = run_uninterrupted(name, kills, folder / "straight")
  records = run_killed(name, kills, SEED.value, folder / "killed", durations)
  different = differences(folder / "killed", folder / "straight")
  rows = run_log.metrics(folder / "straight" / "metrics.jsonl")
  samples = run_log.metrics(folder / "straight" / "samples.jsonl")
  busy = json.loads((folder / "straight" / "busy_rows.json").read_text())
  lengths = [len(row["tokens"]) for row in samples]
  result = {
    "algorithm": name,
    "seed": SEED.value,
    "steps": rows[-1]["step"],
    "kills": records,
    "prompts": int(rows[-1]["collect/generated_total"]) // config_of(name, kills).rollout.n,
    "carried_over": sum(row.get("collect/carried_in", 0) > 0 for row in rows),
    "lengths": [min(lengths), max(lengths)],
    "responses_a_slot": config_of(name, kills).rollouts / busy["slots"],
    "useful_rows": [row["rollout/useful_rows"] for row in rows if "rollout/useful_rows" in row],
    "useful_positions": [
      row["update/useful_positions"] for row in rows if "update/useful_positions" in row
    ],
    "differences": different,
  }
  (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
  (out / "README.md").write_text(report(out))
  if different:
    sys.exit(f"error: {len(different)} differences: {', '.join(different[:5])}")
  print(f"{len(records)} kills, no difference")


def report(out: pathlib.Path) -> str:
  """The results in `out` in Markdown."""
  from poise_jax.provenance import provenance

  results = [json.loads(path.read_text()) for path in sorted(out.glob("*/result.json"))]
  commands = [
    f"python -m experiments.kill_and_resume --algorithm={r['algorithm']} --kills={len(r['kills'])} "
    f"--seed={r['seed']} --out=DIR"
    for r in results
  ]
  start = provenance()
  sections = [
    "# kill_and_resume",
    ABOUT,
    markdown.table(HEADER, map(_row, results)),
    "\n".join(["```", *commands, "```"]),
    f"Commit {start['commit']}; {start['cpu']}, {start['cpus']} CPUs.",
  ]
  return "\n\n".join(sections) + "\n"


def _row(result: dict[str, Any]) -> list[object]:
  # Saving goes on in the background of other phases.
  count = collections.Counter(
    record["phase"] if record["phase"] == "saving" else record["reached"]
    for record in result["kills"]
  )
  return [
    result["algorithm"],
    result["steps"],
    round(result["prompts"] / TRAIN, 1),
    result["carried_over"],
    "{} to {}".format(*result["lengths"]),
    f"{result['responses_a_slot']:.0f}",
    *(f"{np.mean(result[name]):.0%}" for name in ("useful_rows", "useful_positions")),
    *(count[phase] for phase in PHASES),
    sum(record["unfinished_checkpoints"] > 0 for record in result["kills"]),
    ", ".join(result["differences"]) or "none",
  ]


if __name__ == "__main__":
  cli.run(main)
