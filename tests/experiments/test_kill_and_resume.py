"""kill -9 while sampling and while updating, then resume (more in docs/results/kill_and_resume)."""

import json
import os
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_killed_run_equals_an_uninterrupted_one(tmp_path):
  root = pathlib.Path(__file__).parents[2]
  command = [sys.executable, "-m", "experiments.kill_and_resume", "--algorithm=poise", "--kills=2"]
  env = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [*command, f"--out={tmp_path}"], cwd=root, env=env, capture_output=True, text=True, timeout=900
  )
  assert done.returncode == 0, done.stdout + done.stderr
  result = json.loads((tmp_path / "poise" / "result.json").read_text())
  assert result["differences"] == []
  assert [record["phase"] for record in result["kills"]] == ["sampling", "updating"]
  # The work is ragged: responses wait for slots, and end before others do.
  assert result["responses_a_slot"] == 4
  assert 2 * result["lengths"][0] <= result["lengths"][1]
  assert max(result["useful_rows"]) < 1 and len(set(result["useful_positions"])) > 3
  starts = (tmp_path / "poise" / "killed" / "provenance.jsonl").read_text().count("\n")
  assert starts == 3  # it was started again after each kill
  assert "| poise | 18 |" in (tmp_path / "README.md").read_text()
