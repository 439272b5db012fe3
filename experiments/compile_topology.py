r"""What a run takes on hardware you do not have: compiles the sampler and the update for a TPU
slice, or estimates them for GPUs, and says whether the run fits.

python -m experiments.compile_topology --config=FILE.py[:ALGORITHM] --topology=v5p:4x4x4 \
  [--lengths=lognormal:0.3,0.8] [--out=DIR]

TPUs need libtpu, which compiles without a TPU. GPUs (--topology=h100:8) are estimated by
arithmetic.
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
LENGTHS = flags.DEFINE_string(
  "lengths",
  "",
  "lengths of responses: lognormal:MEAN,SIGMA with the mean as a share of the limit, such as "
  "lognormal:0.3,0.8, or a file with a length in each line or a run's samples.jsonl; default: all "
  "at the limit",
)
OUT = flags.DEFINE_string("out", None, "folder whose README.md and results.json get a row")


def prepare():
  """Sets the environment for compiling without a TPU, before jax is imported: JAX computes on the
  CPU; libtpu does not look for a TPU, does not log, and does not lock out other processes."""
  os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
  os.environ.update(TPU_ACCELERATOR_TYPE="v5litepod-1", TPU_WORKER_HOSTNAMES="localhost")
  os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main(argv):
  """Prints the report and, with --out, writes its row."""
  cli.refuse_arguments(argv, "set fields with --config.FIELD=VALUE")
  if CONFIG.value is None:
    raise cli.UsageError("--config=FILE.py is missing, such as configs/qwen3_4b_dapo_math.py:poise")
  if not TOPOLOGY.value:
    raise cli.UsageError("--topology=CHIP:SHAPE is missing, such as v5p:4x4x4 or h100:8")
  from poise_jax.planning import topology, topology_results

  console = rich.console.Console(highlight=False, soft_wrap=True)
  with console.status("setting up") as status:

    def on_phase(phase):
      status.update(phase)
      if not console.is_terminal:
        print(f"{phase} ...", file=sys.stderr, flush=True)

    report = topology.report(CONFIG.value, TOPOLOGY.value, on_phase, LENGTHS.value)
  cli.show_plan(console, report.memory)
  console.print(f"\n{topology_results.text(report)}")
  if OUT.value:
    arguments = [a for a in sys.argv[1:] if not a.startswith(("--out", "--debug"))]
    name = next(a for a in arguments if a.startswith("--config=")).partition("=")[2]
    name = name.partition(":")[0] + f":{CONFIG.value.algorithm}"
    folder = pathlib.Path(OUT.value)
    topology_results.write_row(folder, arguments, name, TOPOLOGY.value, report)
  if not report.memory.fits:
    raise cli.UsageError(report.memory.verdict)
  console.print(f"\n{report.memory.verdict}")


if __name__ == "__main__":
  prepare()
  cli.run(main)
