"""A sweep of two tiny runs, interrupted between them."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
  folder = tmp_path_factory.mktemp("sweep")
  shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, head_dim=16)
  changes = {f"model.shape.{k}": v for k, v in shape.items()} | {
    "rollouts": 16,
    "eval_batch": 10,
    "task.train": 100,
    "task.test": 10,
    "warm_start.steps": 1,
    "rollout.feature_layers": "(0,)",
    "rollout.n": 2,
    "train.minibatch_size": 16,
    "train.microbatch_size": 16,
  }
  return folder, [
    *(sys.executable, "-m", "experiments.sweep", "--config=configs/quickstart.py"),
    *("--seeds=0,3", f"--workdir={folder}", "--config.steps=1"),
    *(f"--config.{name}={value}" for name, value in changes.items()),
  ]


def run(command, algorithms):
  return subprocess.run(
    [*command, f"--algorithms={algorithms}"], cwd=ROOT, capture_output=True, text=True
  )


@pytest.mark.slow  # seven commands, each of which compiles a run
def test_an_interrupted_sweep_continues_and_compares(command):
  folder, command = command
  done = run(command, "rloo,spo")  # the config has rollout.n=2, and SPO takes one
  assert done.returncode == 1
  assert (
    done.stderr.splitlines()[-1]
    == "error: spo-0 failed; run the same command again to continue there"
  )
  first = (folder / "rloo-0" / "metrics.jsonl").read_bytes()
  done = run(command, "rloo")
  assert done.returncode == 0, done.stderr
  assert (folder / "rloo-0" / "metrics.jsonl").read_bytes() == first
  start = (folder / "start-0" / "model.safetensors").read_bytes()
  assert start != (folder / "start-3" / "model.safetensors").read_bytes()
  source = json.loads((folder / "rloo-0" / "config.json").read_text())["model"]["source"]
  assert source == str(folder / "start-0")
  seeds = [json.loads((folder / f"rloo-{s}" / "config.json").read_text())["seed"] for s in (0, 3)]
  assert seeds == [0, 3]
  readme = (folder / "comparison" / "README.md").read_text()
  assert "| rloo | 0 | 1 | 16 |" in readme and "| rloo | 3 | 1 | 16 |" in readme


def test_mistakes_are_found_before_the_first_run(tmp_path):
  """In a process of its own, since other commands define the same flags."""
  quick, there = "--config=configs/quickstart.py", f"--workdir={tmp_path / 'sweep'}"
  expected = [
    ([there, "--algorithms=rloo"], "--config is missing: FILE.py"),
    ([quick, there], "--algorithms is missing"),
    ([quick, "--algorithms=rloo"], "--workdir is missing"),
    ([quick, there, "--algorithms=rloo,rlo"], "did you mean 'rloo'?"),
    ([quick, there, "--algorithms=rloo", "--seeds=0,two"], "at least 0, got 'two'"),
    ([quick, there, "--algorithms=rloo", "--config.stpes=3"], "did you mean --config.steps?"),
    ([quick, there, "--algorithms=rloo", "stray"], "unexpected argument 'stray'"),
  ]
  code = """
import json, sys
from absl.testing import flagsaver
from experiments import cli, sweep
for arguments in json.loads(sys.argv[1]):
  with flagsaver.flagsaver():
    try:
      cli.guarded(sweep.main, cli.parse(["sweep", *arguments], "--config."))
    except SystemExit as exit:
      print(exit.code)
"""
  arguments = json.dumps([arguments for arguments, _ in expected])
  done = subprocess.run(
    [sys.executable, "-c", code, arguments], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0 and not done.stderr, done.stderr
  for (_, part), line in zip(expected, done.stdout.splitlines(), strict=True):
    assert line.startswith("error: ") and part in line
  assert not list(tmp_path.iterdir())
