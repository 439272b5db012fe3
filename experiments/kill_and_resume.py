"""Kills a small run at random moments, resumes it each time, and compares it with one that nothing
interrupted: every number but times, every sample and answer, every array of the last checkpoint.

python -m experiments.kill_and_resume --algorithm=NAME --out=DIR [--kills=20] [--seed=0]

The moments go round sampling, update, evaluation and saving (which goes on behind the next step);
within each the delay is random. DIR/README.md tells of all algorithms run there so far. Exit code 1
if anything differs.
"""

import collections
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
from absl import app, flags, logging

ALGORITHM = flags.DEFINE_string("algorithm", "poise", "a name of configs/common.py")
KILLS = flags.DEFINE_integer("kills", 20, "how often the run is killed")
SEED = flags.DEFINE_integer("seed", 0, "of the moments")
OUT = flags.DEFINE_string("out", None, "where the runs and the report go")

ROOT = pathlib.Path(__file__).parents[1]
PHASES = ("sampling", "updating", "evaluating", "saving")
TRAIN = 48  # problems: an epoch is 6 steps of poise, 3 of ppo


def config_of(algorithm: str, kills: int):
  """The quickstart, smaller, with steps enough to be killed that often."""
  from configs import quickstart

  config = quickstart.get_config(algorithm)
  config.update_from_flattened_dict(
    {
      "steps": 6 + 6 * kills,
      "rollouts": 16,
      "rollout.n": min(config.rollout.n, 4),
      "rollout.max_new_tokens": 10,
      "eval_every": 4,
      "eval_batch": 16,
      "checkpoint_every": 2,
      "collect.max_generations": 6,
      "model.shape.hidden_size": 64,
      "model.shape.intermediate_size": 96,
      "model.shape.num_attention_heads": 2,
      "model.shape.num_key_value_heads": 1,
      "model.shape.head_dim": 32,
      "task.kinds": ("1+",),
      "task.train": TRAIN,
      "task.test": 16,
      "task.max_prompt_length": 8,
      "warm_start.steps": 150,
      "warm_start.batch_size": 64,
      "probe.bootstrap_steps": 2,
      "probe.buffer_rows": 32,
      "probe.pca_prompt": 4,
      "probe.pca_response": 4,
      "train.minibatch_size": 4,
      "train.microbatch_size": 4,
    }
  )
  return config


def child(algorithm: str, kills: int, workdir: str):
  """Trains and prints the phases of the loop; the process that is killed."""
  from poise_jax.training import logging as metrics
  from poise_jax.training import train

  metrics.Logger.phase = lambda _, name: print(f"PHASE {name}", flush=True)
  train.train(config_of(algorithm, kills), workdir)


def start(algorithm, kills, workdir):
  """The child's process, its stdout a pipe of lines."""
  call = f"child({algorithm!r}, {kills}, {workdir!r})"
  code = f"from experiments import kill_and_resume; kill_and_resume.{call}"
  return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def phases(process):
  """(seconds, step, phase) as the child enters them."""
  for line in process.stdout:
    if line.startswith("PHASE step "):
      _, _, step, phase = line.split()
      yield time.perf_counter(), int(step.rstrip(":")), phase


def straight(algorithm: str, kills: int, workdir: pathlib.Path) -> dict[str, float]:
  """Runs to the end; returns how long each phase takes, in seconds (median)."""
  process = start(algorithm, kills, str(workdir))
  seen = list(phases(process))
  if process.wait():
    sys.exit(f"error: the run that nothing interrupts failed; see {workdir}")
  took = collections.defaultdict(list)
  for (begun, _, phase), (ended, *_) in zip(seen, seen[1:], strict=False):
    took[phase].append(ended - begun)
  return {phase: float(np.median(seconds)) for phase, seconds in took.items()}


def killed(algorithm, kills, seed, workdir, durations):
  """Runs with `kills` kill -9; returns one dict a kill."""
  rng, told = np.random.default_rng(seed), []
  for i in range(kills):
    target = PHASES[i % len(PHASES)]
    countdown = int(rng.integers(1, 4)) if target in PHASES[:2] else 1
    # Writing goes on in the background of the next step: longer than the phase that starts it.
    delay = rng.uniform(0, 0.3 if target == "saving" else durations[target])
    # Every other time the run is to get somewhere first, or all kills would fall on its beginning.
    wanted = last_checkpoint(workdir) + i % 2
    process = start(algorithm, kills, str(workdir))
    for _, step, phase in phases(process):
      countdown -= phase == target and last_checkpoint(workdir) >= wanted
      if not countdown:
        time.sleep(delay)
        process.kill()
        told.append({"phase": phase, "step": step, "delay": round(delay, 4)})
        break
    process.wait()
    if len(told) == i:
      sys.exit(f"error: the run was over, or failed, before kill {i + 1}; see {workdir}")
    folders = [path.name for path in (workdir / "checkpoints").glob("*")]
    told[-1]["unfinished_checkpoints"] = sum(not name.isdigit() for name in folders)
    told[-1]["last_checkpoint"] = last_checkpoint(workdir)
    print(f"kill {i + 1}: {told[-1]}", flush=True)
  process = start(algorithm, kills, str(workdir))
  collections.deque(phases(process), maxlen=0)
  if process.wait():
    sys.exit(f"error: the run could not be finished after its kills; see {workdir}")
  return told


def last_checkpoint(workdir: pathlib.Path) -> int:
  """The step of the newest whole one; -1: none."""
  from poise_jax.models.io import run_checkpoint

  return max(run_checkpoint.steps_of(workdir), default=-1)


def main(argv):
  """Runs, compares, reports."""
  if len(argv) > 1:
    sys.exit(f"error: unexpected argument {argv[1]!r}")
  logging.set_verbosity(logging.WARNING)
  from experiments.run_differences import differences  # here: a mistyped flag does not wait for jax

  name, kills, out = ALGORITHM.value, KILLS.value, pathlib.Path(OUT.value).absolute()
  folder = out / name
  if folder.exists():
    sys.exit(f"error: {folder} is there already; choose another --out")
  out.mkdir(parents=True, exist_ok=True)
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "compiled"))
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
  durations = straight(name, kills, folder / "straight")
  told = killed(name, kills, SEED.value, folder / "killed", durations)
  wrong = differences(folder / "killed", folder / "straight")
  lines = (folder / "straight" / "metrics.jsonl").read_text().split("\n")[:-1]
  last = json.loads(lines[-1])
  result = {
    "algorithm": name,
    "seed": SEED.value,
    "steps": last["step"],
    "kills": told,
    "prompts": int(last["collect/generated_total"]) // config_of(name, kills).rollout.n,
    "carried_over": sum(json.loads(x).get("collect/carried_in", 0) > 0 for x in lines),
    "differences": wrong,
  }
  (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
  (out / "README.md").write_text(report(out))
  if wrong:
    sys.exit(f"error: {len(wrong)} differences: {', '.join(wrong[:5])}")
  print(f"{len(told)} kills, no difference")


def report(out: pathlib.Path) -> str:
  """A Markdown table of the results in `out`."""
  from poise_jax.provenance import provenance

  lines = [
    "# kill_and_resume",
    "",
    "A small run, killed (kill -9) at random moments and resumed each time, against the same run",
    "that nothing interrupted: metrics but for times, samples, held-out answers, and every array",
    "of the last checkpoint (parameters, optimizer, estimator, carried-over groups) bit for bit.",
    "",
    "| algorithm | steps | epochs of the data | steps with carried-over groups | killed while "
    "sampling | updating | evaluating | saving | with a checkpoint half-written | differences |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  results = [json.loads(path.read_text()) for path in sorted(out.glob("*/result.json"))]
  for r in results:
    count = collections.Counter(kill["phase"] for kill in r["kills"])
    half = sum(kill["unfinished_checkpoints"] > 0 for kill in r["kills"])
    cells = [r["algorithm"], r["steps"], round(r["prompts"] / TRAIN, 1), r["carried_over"]]
    cells += [*(count[phase] for phase in PHASES), half, ", ".join(r["differences"]) or "none"]
    lines.append(f"| {' | '.join(map(str, cells))} |")
  lines += ["", "```"]
  lines += [
    f"python -m experiments.kill_and_resume --algorithm={r['algorithm']} --kills={len(r['kills'])} "
    f"--seed={r['seed']} --out=DIR"
    for r in results
  ]
  made = provenance()
  lines += ["```", "", f"Commit {made['commit']}; {made['cpu']}, {made['cpus']} CPUs.", ""]
  return "\n".join(lines)


if __name__ == "__main__":
  flags.mark_flags_as_required(["out"])
  app.run(main)
