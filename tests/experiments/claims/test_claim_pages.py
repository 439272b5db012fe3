"""Verdicts, the pages of claims, and what all claims have in common."""

import dataclasses
import json
import re

import numpy as np
import pytest
from claim_logs import SEEDS
from commands import load

from experiments.claims import claim as claims
from experiments.claims import report, runner
from experiments.claims.claim import Check
from experiments.claims.lab import Lab
from poise_jax.errors import UserError

main = load("claims.__main__")


def check(holds):
  return Check("h", "s", "o", holds)


@pytest.mark.parametrize(
  "holds, finished, expected",
  (
    ((True, True), 5, claims.HOLDS),
    ((True, None), 5, claims.PART),
    ((True, False), 5, claims.PART),
    ((False, False), 5, claims.FAILS),
    ((None, False), 5, claims.FAILS),
    ((None, None), 5, claims.UNKNOWN),
    ((True, True), 3, claims.UNKNOWN),
    ((True, True), 0, claims.UNKNOWN),
  ),
)
def test_verdicts(holds, finished, expected):
  assert claims.verdict([check(x) for x in holds], finished, 5) == expected
  certain = check(True).as_control()
  assert claims.verdict([certain, *(check(x) for x in holds)], finished, 5) == expected


@pytest.fixture
def filled(tmp_path):
  """A page whose results are written twice, the folder of all claims, and what writes results."""
  (claim,) = (x for x in main.load().values() if x.name == "cross_rollout")
  page = tmp_path / claim.name / "page.md"
  page.parent.mkdir()
  page.write_text((claim.folder / "page.md").read_text())
  start = {"command": ["python", "-m", "x"], "commit": "abc", "uncommitted_changes": False}
  start |= {"cpu": "c", "cpus": 2, "devices": ["cpu"], "python": "3", "libraries": {}}
  about = {"planned": SEEDS, "seconds": {"k": 1.0}, "commits": ["def"], "provenance": start}

  def write(seeds, note="", numbers=None):
    numbers = numbers or {"accuracy by seed": {"poise": [0.1, 0.2, 0.3, 0.4, 0.5]}}
    outcome = claims.Outcome([check(True)], {"Accuracy": "| poise |"}, "<svg/>", numbers)
    report.write(claim, outcome, {**about, "seeds": seeds}, page, note)
    return page.read_text()

  write((0, 1))
  write(SEEDS)
  return page, tmp_path, write


def test_pages_are_filled_between_their_marks(filled):
  page, *_ = filled
  text = page.read_text()
  assert text.startswith("# The baseline must come from another rollout")
  assert text.count(report.BEGIN) == text.count(report.END) == 1
  assert ", 5 of 5 seeds." in text and "2 of 5 seeds" not in text and report.NOTHING not in text
  assert "Runs at commit def." in text
  assert sorted(p.name for p in (page.parent / "results").iterdir()) == [
    *("figure.svg", "metrics.json", "table.md")
  ]
  page.write_text("no marks")
  with pytest.raises(UserError, match="must have the lines"):
    report.fill(page, "x")


@pytest.mark.parametrize(
  "seeds, label",
  (
    ((0, 1, 2), ", partial: 3 of 5 seeds."),
    ((3,), ", partial: 1 of 5 seeds."),
    ((0, 1, 2, 3, 7), ", partial: 4 of 5 seeds and 1 more."),
    ((5, 6, 7, 8, 9), ", partial: 0 of 5 seeds and 5 more."),
  ),
)
def test_missing_seeds_are_named_and_nothing_is_told(filled, seeds, label):
  """Neither of the claim nor of a hypothesis; seeds that were not planned replace none."""
  page, folder, write = filled
  assert claims.HOLDS in write(SEEDS).partition(report.BEGIN)[2]
  found = write(seeds).partition(report.BEGIN)[2]
  assert f"**{claims.UNKNOWN}**{label}" in found
  assert claims.HOLDS not in found and claims.PART not in found and claims.FAILS not in found
  outcomes = json.loads((page.parent / "results" / "metrics.json").read_text())["checks"]
  assert {x["outcome"] for x in outcomes} == {claims.UNKNOWN}
  assert label[2:-1] in report.overview(list(main.load().values()), folder, "there")


@pytest.mark.parametrize(
  "values, expected",
  (
    ([0.1, np.nan, 0.3], "r, all (seed 4)"),
    ([np.nan, 0.2, np.nan], "r, all (seed 2, 7)"),
    ([0.1, 0.2, np.inf], None),
    ([{"poise": 0.1}, {"poise": 0.2}, {"poise": np.nan}], "r, all, poise (seed 7)"),
  ),
)
def test_what_is_nan_is_named_with_its_seed(values, expected):
  numbers = {"r by seed": {"all": values, "b": [1, 2, 3]}, "mean": np.nan, "x": {"y": [np.nan]}}
  assert report.unknown(numbers, (2, 4, 7)) == ([f"NaN: {expected}."] if expected else [])
  window = {"r by seed and window": {"0.5": [0.1, np.nan, 0.3]}}
  assert report.unknown(window, (2, 4, 7)) == ["NaN: r and window, 0.5 (seed 4)."]


def test_the_page_says_what_is_nan_below_the_checks(filled):
  page, _, write = filled
  assert "NaN" not in page.read_text()
  text = write(SEEDS, numbers={"accuracy by seed": {"poise": [0.1, 0.2, 0.3, np.nan, 0.5]}})
  checks, _, rest = text.partition("NaN: accuracy, poise (seed 3).")
  assert "| outcome |" in checks and rest and "## " not in checks.partition(report.BEGIN)[2]


def test_the_overview_has_every_claim_run_or_not(filled):
  _, folder, _ = filled
  text = report.overview(list(main.load().values()), folder, "there")
  lines = [line for line in text.splitlines() if line.startswith("| [")]
  assert len(lines) == len(main.NAMES)
  run, *others = sorted(lines, key=lambda line: claims.NOT_RUN in line)
  assert "there/cross_rollout/page.md" in run and claims.NOT_RUN not in run
  assert all(claims.NOT_RUN in line for line in others)
  assert "![The baseline must come from another rollout](there/cross_rollout/results" in text


def test_the_overview_quotes_what_a_page_concludes(filled):
  page, folder, _ = filled
  plan, _, _ = page.read_text().partition(report.END)
  page.write_text(f"{plan}{report.END}\n")
  before = report.overview(list(main.load().values()), folder, "there")
  page.write_text(f"{page.read_text()}\n{report.CONCLUSION}\n\nIt does not.\n\nWhy: noise.\n")
  text = report.overview(list(main.load().values()), folder, "there")
  figure = "![The baseline must come"
  assert text == before.replace(figure, f"It does not.\n\nWhy: noise.\n\n{figure}")


def test_the_units_of_all_claims_agree(tmp_path):
  """Claims share runs, so units of a name are equal; and each claim's units can be planned."""
  known = {}
  for claim in main.load().values():
    lab = Lab(tmp_path, claim.seeds)
    units = runner.check(claim.units(lab))
    assert {unit.seed for unit in units} >= set(claim.seeds)
    for unit in units:
      if not callable(unit.command):
        assert known.setdefault(unit.name, unit.command) == unit.command, unit.name


def test_every_kind_of_run_has_an_estimate(tmp_path):
  for claim in main.load().values():
    lab = Lab(tmp_path, claim.seeds)
    assert all(lab.estimates[unit.kind] > 0 for unit in claim.units(lab))


def test_quick_runs_are_labelled(tmp_path, filled):
  note = report.QUICK
  page, folder, write = filled
  assert note not in write(SEEDS)
  assert note in write(SEEDS, note) and f"# Results\n\n{note}\n" in report.overview(
    list(main.load().values()), folder, "there"
  )


def test_pages_state_their_plan_before_the_results():
  for claim in main.load().values():
    text = (claim.folder / "page.md").read_text()
    plan = text.partition(report.BEGIN)[0]
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    for heading in ("Claim", "Hypotheses, fixed before the runs", "Arms", "Metric", "Seeds"):
      assert f"**{heading}." in plan, (claim.name, heading)
    assert f"{len(claim.seeds)}: " in plan.partition("**Seeds.**")[2]


def test_controls_are_marked_on_the_pages():
  """Those that each claim's outcome has."""
  expected = {"tracking": [3], "detection": [3], "signal": [4], "diversity": [4]}
  for claim in main.load().values():
    plan = (claim.folder / "page.md").read_text().partition(report.BEGIN)[0]
    marked = [int(x) for x in re.findall(r"^(\d)\. \(control\)", plan, re.MULTILINE)]
    assert marked == expected.get(claim.name, []), claim.name


def test_a_headline_is_no_control():
  certain = dataclasses.replace(check(True), control=True)
  with pytest.raises(ValueError, match="the headline is a control"):
    claims.Outcome([certain, check(True)], {}, "", {})
  claims.Outcome([check(True), certain], {}, "", {})
