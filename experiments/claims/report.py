"""The outcome of a claim as files: its results, its page, and the page of all claims.

Every number in them comes from the results, none is written by hand. metrics.json has all that
RESULTS.md needs, so that one claim can be run without the others.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.claims.claim import NOT_RUN, UNKNOWN, Claim, Outcome, verdict
from poise_jax import files
from poise_jax.errors import UserError
from poise_jax.provenance import describe
from poise_jax.reports import markdown

BEGIN, END = "<!-- results: written by the command -->", "<!-- end of results -->"
NOTHING = "Not run yet."
CONCLUSION = "## What we conclude"  # heading behind the results; written by hand
QUICK = "A quick run of tiny models: it tests the machinery, and its numbers say nothing."
CHECKS = ("hypothesis", "source", "ours, 95 % interval", "outcome")
ABOUT = """This page lists the claims of the paper that are tested here, with the source's result
and ours. Hypotheses, arms, metric and seeds were written into the claim's page before the runs;
pages name the hypotheses that were added later. Intervals are 95 % bootstrap intervals over seeds,
paired where arms share the warm start and the problems. A claim *holds* if all of its hypotheses
do, *holds in part* if some do, *does not hold here* if none does and one is refuted, and *cannot be
told* if intervals contain their thresholds or seeds are missing. Hypotheses that are nearly
certain, or that test the measurement, are controls and do not count. The models are tiny, 0.75
million parameters ([configs/lab.py](configs/lab.py), made smaller): what holds here may fail at the
source's scale, and vice versa. This page is written by `python -m experiments.claims`."""


def write(
  claim: Claim, outcome: Outcome, about: Mapping[str, Any], page: pathlib.Path, note: str = ""
):
  """Writes results/ beside a claim's page, and the page's results.

  Args:
    claim: the claim.
    outcome: of its finished seeds.
    about: "seeds" that are finished, "planned" ones, "seconds" by kind of unit, "commits" of the
      runs, and the "provenance" of this report.
    page: the page to fill in; for other runs than those of the lab a copy in another folder.
    note: QUICK for such runs.
  """
  folder = page.parent / "results"
  folder.mkdir(parents=True, exist_ok=True)
  done, planned = _planned(about), len(about["planned"])
  decided = verdict(outcome.checks, done, planned)
  content = {
    "claim": claim.title,
    "source": claim.source,
    "verdict": decided,
    "note": note,
    "checks": [
      {
        "hypothesis": f"(control) {c.hypothesis}" if c.control else c.hypothesis,
        "source": c.source,
        "ours": c.ours,
        "outcome": c.outcome if done >= planned else UNKNOWN,
      }
      for c in outcome.checks
    ],
    **about,
    "numbers": files.known(outcome.numbers),
  }
  text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
  files.write_whole(folder / "metrics.json", text + "\n")
  files.write_whole(folder / "figure.svg", outcome.figure)
  tables = "\n\n".join(f"## {heading}\n\n{table}" for heading, table in outcome.tables.items())
  commits = f"Runs at commit {'; '.join(about['commits'])}."
  origin = f"{describe([about['provenance']])} {commits}"
  files.write_whole(folder / "table.md", f"{tables}\n\n{origin}\n")
  sections = [
    *([note] if note else []),
    f"**{decided}**, {_seeds(content)}.",
    _checks(content),
    *unknown(outcome.numbers, about["seeds"]),
    tables,
    "![figure](results/figure.svg)",
    origin,
  ]
  fill(page, "\n\n".join(sections))


def unknown(numbers: Mapping[str, Any], seeds: Sequence[int]) -> list[str]:
  """A line that names what is NaN and for which seed, since an interval with one tells nothing; []
  if all numbers by seed are known."""
  found = {}
  for name, values in files.flat(numbers).items():
    if "by seed" in name and isinstance(values, list):
      what = name.replace(" by seed", "", 1).replace(".", ", ", 1)
      for seed, value in zip(seeds, values, strict=False):
        for part, x in files.flat(value).items():
          if isinstance(x, float) and math.isnan(x):
            found.setdefault(f"{what}, {part}" if part else what, []).append(seed)
  parts = [f"{what} (seed {', '.join(map(str, missing))})" for what, missing in found.items()]
  return [f"NaN: {'; '.join(parts)}."] if parts else []


def fill(page: pathlib.Path, text: str):
  """Replaces what a page has between its marks.

  Raises:
    UserError: the page lacks a mark.
  """
  content = page.read_text()
  if content.count(BEGIN) != 1 or content.count(END) != 1:
    raise UserError(f"{page} must have the lines {BEGIN!r} and {END!r} once each")
  pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
  filled = re.sub(pattern, lambda _: f"{BEGIN}\n\n{text}\n\n{END}", content, flags=re.DOTALL)
  files.write_whole(page, filled)


def conclusion(page: pathlib.Path) -> str:
  """What a page concludes from its results; "" if that is not written yet."""
  text = page.read_text().partition(END)[2]
  return text.partition(CONCLUSION)[2].strip()


def _planned(content: Mapping[str, Any]) -> int:
  """How many of the planned seeds are finished; others do not replace them."""
  return len(set(content["planned"]) & set(content["seeds"]))


def _seeds(content: Mapping[str, Any]) -> str:
  done, planned = _planned(content), len(content["planned"])
  others = len(content["seeds"]) - done
  more = f" and {others} more" if others else ""
  return f"{'' if done == planned else 'partial: '}{done} of {planned} seeds{more}"


def _checks(content: Mapping[str, Any]) -> str:
  rows = [[c["hypothesis"], c["source"], c["ours"], c["outcome"]] for c in content["checks"]]
  return markdown.table(CHECKS, rows)


def overview(claims: Sequence[Claim], folder: pathlib.Path, link: str) -> str:
  """RESULTS.md: the table of all claims, and a paragraph and a figure of each.

  Args:
    claims: in order.
    folder: has a folder of each claim with its results.
    link: how RESULTS.md reaches that folder.
  """
  rows, sections, notes = [], [], {}
  for claim in claims:
    path = folder / claim.name / "results" / "metrics.json"
    name = f"[{claim.title}]({link}/{claim.name}/page.md)"
    if not path.exists():
      rows.append([name, claim.source, "", "", NOT_RUN])
      continue
    content = json.loads(path.read_text())
    if content["note"]:
      notes[content["note"]] = None
    decided = content["verdict"]
    headline = content["checks"][0]
    ours = f"{headline['hypothesis']}: {headline['ours']}"
    rows.append([name, claim.source, ours, _seeds(content), decided])
    sections += [f"## {claim.title}", f"**{decided}**, {_seeds(content)}.", _checks(content)]
    sections += filter(None, [conclusion(folder / claim.name / "page.md")])
    sections.append(f"![{claim.title}]({link}/{claim.name}/results/figure.svg)")
  header = ("claim", "source", "ours, 95 % interval", "seeds", "verdict")
  about = " ".join(ABOUT.split())
  return "\n\n".join(["# Results", *notes, about, markdown.table(header, rows), *sections]) + "\n"
