"""What a run takes on chips that are not here: compiles its sampler and update for a slice of TPUs,
or works it out for GPUs, and says whether it fits.

python -m experiments.compile_topology --config=FILE.py[:ALGORITHM] --topology=v5p:4x4x4 [--out=DIR]

TPUs need libtpu, which compiles without one. GPUs (--topology=h100:8) are arithmetic.
"""

import os
import pathlib
import sys

import rich.console
from absl import flags

from experiments import cli

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string(
  "topology", None, "CHIP:SHAPE, such as v5e:8x8, v5p:4x4x4, v6e:4x8 or h100:8"
)
OUT = flags.DEFINE_string("out", None, "the folder whose README.md and results.json get a row")


def prepare():
  """Compiling needs no chip: JAX computes on the CPU, and libtpu is told not to look for a TPU, to
  be quiet about it, and that no other process can be in its way."""
  os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
  os.environ.update(TPU_ACCELERATOR_TYPE="v5litepod-1", TPU_WORKER_HOSTNAMES="localhost")
  os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main(argv):
  """Prints the report and, if asked to, writes its row."""
  if len(argv) > 1:
    raise cli.UsageError(f"unexpected argument {argv[1]!r}; fields are set as --config.field=value")
  if CONFIG.value is None:
    raise cli.UsageError("--config=FILE.py is missing, such as configs/qwen3_4b_dapo_math.py:poise")
  if not TOPOLOGY.value:
    raise cli.UsageError("--topology=CHIP:SHAPE is missing, such as v5p:4x4x4 or h100:8")
  from poise_jax.planning import topology

  console = rich.console.Console(highlight=False, soft_wrap=True)
  with console.status("setting up") as status:

    def phase(what):
      status.update(what)
      if not console.is_terminal:
        print(f"{what} ...", file=sys.stderr, flush=True)

    plan, work = topology.report(CONFIG.value, TOPOLOGY.value, phase)
  cli.show_plan(console, plan)
  console.print(f"\n{topology.text(plan, work)}")
  if OUT.value:
    asked = [a for a in sys.argv[1:] if not a.startswith(("--out", "--debug"))]
    name = next(a for a in asked if a.startswith("--config=")).partition("=")[2]
    name = name.partition(":")[0] + f":{CONFIG.value.algorithm}"
    topology.write_row(pathlib.Path(OUT.value), asked, name, TOPOLOGY.value, plan, work)
  if not plan.fits:
    raise cli.UsageError(plan.verdict)
  console.print(f"\n{plan.verdict}")


if __name__ == "__main__":
  prepare()
  cli.run(main)
