"""kill -9 and resume, twice (more often in docs/results/kill_and_resume)."""

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
  assert result["differences"] == [] and len(result["kills"]) == 2
  starts = (tmp_path / "poise" / "killed" / "provenance.jsonl").read_text().count("\n")
  assert starts == 3  # it was started again after each kill
  assert "| poise | 18 |" in (tmp_path / "README.md").read_text()
