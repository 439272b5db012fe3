"""How time grows with response length, samples and prompts, and compile time with layers:

python -m experiments.growth --out=DIR [--repeats=3]

The model is a small decoder with random weights, on a mesh of all devices. A row is the median of
--repeats calls after one that compiles. A compile time is what a first call takes beyond a second
one, also the median of --repeats. DIR gets README.md, growth.svg and results.json.
"""

import json
import pathlib

import jax
from absl import flags

from experiments import cli, growth_measure
from poise_jax.provenance import describe, provenance

OUT = flags.DEFINE_string("out", None, "output folder")
REPEATS = flags.DEFINE_integer("repeats", 3, "timed calls per row")
WIDTH = flags.DEFINE_integer("width", 256, "hidden size of the decoder, a multiple of 64")


def main(argv: list[str]):
  """Measures, prints the tables and writes them."""
  cli.refuse_arguments(argv)
  if WIDTH.value < 64 or WIDTH.value % 64:
    raise cli.UsageError(f"--width={WIDTH.value} must be a multiple of 64")
  if REPEATS.value < 1:
    raise cli.UsageError(f"--repeats={REPEATS.value} must be at least 1")
  # A program from the cache on disk would take no time to compile.
  jax.config.update("jax_enable_compilation_cache", False)
  results = growth_measure.measure(WIDTH.value, REPEATS.value)
  print(growth_measure.table(results))
  if OUT.value:
    write(pathlib.Path(OUT.value), results, WIDTH.value)


def write(out: pathlib.Path, results: dict[str, growth_measure.Rows], width: int):
  """Writes README.md, growth.svg and results.json."""
  out.mkdir(parents=True, exist_ok=True)
  start = provenance()
  (out / "results.json").write_text(json.dumps({**start, "results": results}, indent=2) + "\n")
  (out / "growth.svg").write_text(growth_measure.figure(results))
  base = ", ".join(f"{name}={value}" for name, value in growth_measure.BASE.items())
  setting = (
    f"A decoder of 4 layers and width {width}, prompts of {growth_measure.PROMPT} tokens. Unless "
    f"varied, {base} (T response tokens, n samples per prompt, P prompts). Layers: the time of the "
    "first call of a tiny decoder, nearly all of it compilation. Training scans over the layers; "
    "sampling unrolls them."
  )
  table = growth_measure.table(results)
  sections = [f"# {out.name}", setting, table, "![growth](growth.svg)", describe([start])]
  (out / "README.md").write_text("\n\n".join(sections) + "\n")


if __name__ == "__main__":
  cli.run(main)
