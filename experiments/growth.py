"""How time grows with response length, samples and prompts, and compile time with layers:

python -m experiments.growth --out=DIR [--repeats=3]

Random weights of a small decoder, on whatever devices there are; one mesh of them all. Every row is
the median of --repeats calls after one that compiles; a compile time is what a first call takes
beyond a second one, the median of --repeats too. DIR gets
README.md, growth.png and results.json.
"""

import json
import pathlib

import jax
from absl import flags

from experiments import cli
from poise_jax import growth
from poise_jax.provenance import describe, provenance

OUT = flags.DEFINE_string("out", None, "where the table goes")
REPEATS = flags.DEFINE_integer("repeats", 3, "timed calls of every row")
WIDTH = flags.DEFINE_integer("width", 256, "hidden size of the decoder, a multiple of 64")


def main(argv):
  """Measures, prints the tables and writes them."""
  if len(argv) > 1:
    raise cli.UsageError(f"unexpected argument {argv[1]!r}")
  if WIDTH.value < 64 or WIDTH.value % 64:
    raise cli.UsageError(f"--width={WIDTH.value} must be a multiple of 64")
  if REPEATS.value < 1:
    raise cli.UsageError(f"--repeats={REPEATS.value} must be at least 1")
  # What compiles must compile here and now.
  jax.config.update("jax_enable_compilation_cache", False)
  results = growth.measure(WIDTH.value, REPEATS.value)
  text = growth.table(results)
  print(text)
  if OUT.value:
    out = pathlib.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    start = provenance()
    (out / "results.json").write_text(json.dumps({**start, "results": results}, indent=2) + "\n")
    growth.draw(results, out / "growth.png")
    base = ", ".join(f"{name}={value}" for name, value in growth.BASE.items())
    what = (
      f"A decoder of 4 layers and width {WIDTH.value}, prompts of {growth.PROMPT} tokens; what is "
      f"not varied is {base} (T response tokens, n samples a prompt, P prompts). Layers: what the "
      "first call takes, nearly all of it compiling, of tiny ones. Training scans over the layers; "
      "sampling unrolls them."
    )
    parts = [f"# {out.name}", what, text, "![growth](growth.png)", describe([start])]
    (out / "README.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
  cli.run(main)
