"""The command: mistakes, and a quick run of all claims, which tests the machinery alone."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]


def command(*arguments, **options):
  line = [sys.executable, "-m", "experiments.claims", *arguments]
  return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, **options)


SCRIPT = """
import json, sys
from absl.testing import flagsaver
from experiments import cli
from experiments.claims import __main__ as claims
for arguments in json.loads(sys.argv[1]):
  with flagsaver.flagsaver():
    try:
      cli.guarded(claims.main, cli.parse(["claims", *arguments]))
    except SystemExit as exit:
      print(exit.code)
sys.orig_argv[1:] = ["-m", "experiments.claims", "signal", "--report"]
print(claims.start()["command"][1:])
"""


def test_mistakes_are_found_before_the_first_run_and_a_report_runs_nothing(tmp_path):
  there = f"--workdir={tmp_path / 'x'}"
  expected = [
    ([], "unknown claim ''"),
    (["algorithm"], "did you mean 'algorithms'?"),
    (["signal", "tracking"], "unknown claim 'signal tracking'"),
    (["signal", "--seeds=0,x", there], "--seeds must be whole numbers of at least 0"),
    (["signal", "--seeds=1,2,1", there], "--seeds=1,2,1 has a seed twice"),
    (["signal", "--cores=999", there], "--cores must be at most the"),
    (["signal", "--threads=0", there], "--threads must be between 1 and"),
  ]
  reported = ["all", "--quick", "--report", f"--workdir={tmp_path / 'empty'}"]
  arguments = json.dumps([*(arguments for arguments, _ in expected), reported])
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, arguments], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0 and not done.stderr, done.stderr
  *lines, made = done.stdout.splitlines()
  assert made == "['-m', 'experiments.claims', 'signal']"
  for (_, part), line in zip(expected, lines, strict=False):
    assert line.startswith("error: ") and part in line
  assert not (tmp_path / "x").exists()
  text = "\n".join(lines[len(expected) :])
  assert "signal: no seed is finished yet" in text
  assert "detection: 4 runs, 0 of them finished; 4 to do" in text
  units = int(re.search(r"^all: (\d+) runs", text, re.MULTILINE)[1])  # shared ones once
  each = [int(count) for count in re.findall(r"^(?!all)\w+: (\d+) runs", text, re.MULTILINE)]
  assert len(each) == 7 and max(each) < units < sum(each)
  overview = (tmp_path / "empty" / "RESULTS.md").read_text()
  assert overview.count("not run yet") == 7
  assert [path.name for path in (tmp_path / "empty").iterdir()] == ["RESULTS.md"]


@pytest.mark.slow  # about forty commands, each of which compiles a run
def test_all_claims_run_quickly_and_are_reported(tmp_path):
  results = {path: path.read_bytes() for path in (ROOT / "experiments" / "claims").rglob("*.md")}
  environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  arguments = ("all", "--quick", f"--workdir={tmp_path}")
  done = command(*arguments, env=environment, timeout=900)
  output = done.stdout + done.stderr
  assert done.returncode == 0 and "Warning" not in output, output
  text = (tmp_path / "RESULTS.md").read_text()
  assert "not run yet" not in text and "tests the machinery" in text
  for name in ("algorithms", "cross_rollout", "detection", "diversity", "signal", "tracking"):
    folder = tmp_path / "claims" / name / "results"
    found = json.loads((folder / "metrics.json").read_text())
    assert "machinery" in found["note"] and found["seeds"] == [0] and found["checks"]
    assert "<svg" in (folder / "figure.svg").read_text() and (folder / "table.md").exists()
  again = command(*arguments, env=environment, timeout=120)
  text = again.stdout + again.stderr
  assert again.returncode == 0 and "Warning" not in text, text
  assert again.stdout.count("; 0 to do") == 8, text  # of each claim, and of all together
  for path, content in results.items():  # the committed pages are those of full runs
    assert path.read_bytes() == content
