"""Tests a claim of the paper, or all of them, and writes what came out:

python -m experiments.claims NAME|all [--quick] [--seeds=0,1] [--workdir=DIR]
  [--cores=N] [--threads=N] [--report]

Says how many runs there are and how long they take, makes those that are not finished, and writes
the claim's results, its page and RESULTS.md. The same command continues after an interruption.
--quick makes tiny runs, which test the machinery alone, and writes to DIR instead.
--report makes no runs: it writes what the finished ones say.
"""

import importlib
import json
import pathlib
from typing import Any

import rich.console
from absl import flags

from experiments import cli
from experiments.claims import report, runner
from experiments.claims.claim import Claim
from experiments.claims.lab import Lab, seeds_of
from poise_jax import files
from poise_jax.errors import UserError, unknown_name
from poise_jax.provenance import provenance

QUICK = flags.DEFINE_bool("quick", False, "tiny runs that test the machinery, with seed 0 alone")
SEEDS = flags.DEFINE_string("seeds", "", "seeds, if not those that the claim was planned with")
WORKDIR = flags.DEFINE_string("workdir", "", "folder of the runs; default: runs/claims[-quick]")
CORES = flags.DEFINE_integer("cores", 0, "cores to use; 0: all that this process may use")
THREADS = flags.DEFINE_integer("threads", 1, "cores of a run; --cores / --threads run side by side")
REPORT = flags.DEFINE_bool("report", False, "no runs; report those that are finished")

HERE = pathlib.Path(__file__).parent
NAMES = (
  "value_estimation",
  "signal",
  "algorithms",
  "cross_rollout",
  "diversity",
  "tracking",
  "detection",
)


def load() -> dict[str, Claim]:
  """All claims by name, in order."""
  modules = (importlib.import_module(f"experiments.claims.{name}.claim") for name in NAMES)
  return {module.CLAIM.name: module.CLAIM for module in modules}


def lab_of(claim: Claim, workdir: pathlib.Path) -> Lab:
  """Where and how large the runs of a claim are."""
  planned = (0,) if QUICK.value else claim.seeds
  seeds = seeds_of(SEEDS.value) if SEEDS.value else planned
  return Lab(workdir, seeds, QUICK.value)


def results(claim: Claim, workdir: pathlib.Path) -> pathlib.Path:
  """The page of a claim: the committed one, or for quick runs a copy in the workdir."""
  page = claim.folder / "page.md"
  if not QUICK.value:
    return page
  copy = workdir / "claims" / claim.name / "page.md"
  copy.parent.mkdir(parents=True, exist_ok=True)
  plan, _, _ = page.read_text().partition(report.END)  # conclusions are those of the real runs
  copy.write_text(f"{plan}{report.END}\n")
  return copy


def start() -> dict[str, Any]:
  """The provenance of this command, as one that makes the runs, too: without --report."""
  found = provenance()
  return found | {"command": [x for x in found["command"] if x.strip("-") != "report"]}


def write(claim: Claim, lab: Lab, run: runner.Run) -> str:
  """Writes the results of the finished seeds; returns where they are in a sentence."""
  finished = lab.finished(run.units)
  if not finished:
    return f"{claim.name}: no seed is finished yet"
  outcome = claim.analyse(lab, finished)
  planned = lab.seeds if QUICK.value else claim.seeds
  about = {
    "seeds": finished,
    "planned": planned,
    "seconds": run.marks.seconds(run.units),
    "commits": run.marks.commits(run.units),
    "provenance": start(),
  }
  page = results(claim, lab.workdir)
  note = report.QUICK if QUICK.value else ""
  report.write(claim, outcome, about, page, note)
  return f"{claim.name}: results of {len(finished)} of {len(planned)} seeds are in {page}"


def earlier(claim: Claim) -> dict[str, float]:
  """Seconds of a unit by kind, from the committed results."""
  if QUICK.value:
    return {}
  path = claim.folder / "results" / "metrics.json"
  return json.loads(path.read_text())["seconds"] if path.exists() else {}


def main(argv: list[str]):
  """Runs and reports the claim named on the command line."""
  claims = load()
  if len(argv) != 2 or argv[1] not in (*claims, "all"):
    raise unknown_name("claim", " ".join(argv[1:]), [*claims, "all"])
  chosen = list(claims.values()) if argv[1] == "all" else [claims[argv[1]]]
  default = f"runs/claims{'-quick' * QUICK.value}"
  workdir = pathlib.Path(WORKDIR.value or default).resolve()
  places = runner.places(CORES.value, THREADS.value)
  console = rich.console.Console(highlight=False)

  def run_of(lab, units, earlier):
    return runner.Run(units, workdir, places, earlier, console, lab.estimates)

  def say(text):
    console.print(text, markup=False, soft_wrap=True)

  runs = []
  for claim in chosen:
    lab = lab_of(claim, workdir)
    runs.append((claim, lab, run_of(lab, claim.units(lab), earlier(claim))))
    say(f"{claim.name}: {runs[-1][-1].plan()}")
  if len(runs) > 1:  # they share some
    units = [unit for *_, run in runs for unit in run.units]
    together = {kind: x for *_, run in runs for kind, x in run.earlier.items()}
    say(f"all: {run_of(lab, units, together).plan()}")
  errors = []
  for claim, lab, run in runs:
    try:
      if not REPORT.value:
        run.run()
    except UserError as error:
      errors.append(f"{claim.name}: {error}")
    finally:  # also what an interrupted run has finished
      say(write(claim, lab, run))
      write_overview(list(claims.values()), workdir)
  if errors:
    raise UserError("\n".join(errors))


def write_overview(claims: list[Claim], workdir: pathlib.Path):
  """Writes RESULTS.md."""
  if QUICK.value:
    workdir.mkdir(parents=True, exist_ok=True)
    text = report.overview(claims, workdir / "claims", "claims")
    files.write_whole(workdir / "RESULTS.md", text)
  else:
    files.write_whole(cli.ROOT / "RESULTS.md", report.overview(claims, HERE, "experiments/claims"))


if __name__ == "__main__":
  cli.run(main)
