"""The audit of a reward: one that cannot be earned without work, and one that can."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def audit(*arguments):
  environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
  command = [sys.executable, "-m", "experiments.audit_reward", *arguments]
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
  """A data set of multiple-choice questions, three of four with the answer B."""
  path = tmp_path_factory.mktemp("data") / "letters.jsonl"
  rows = [{"question": f"Which of {i} and {i + 1}?", "answer": "BBBD"[i % 4]} for i in range(40)]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return [
    *("--config.task.name=dataset", "--config.task.dataset.train_on=own", "--config.task.test=8"),
    *(f"--config.task.dataset.own.train={path}", "--config.task.dataset.own.verifier=choice"),
  ]


def test_a_sound_reward(letters, tmp_path):
  done = audit("--config=configs/quickstart.py", *letters, f"--out={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  rows = json.loads((tmp_path / "out" / "audit.json").read_text())
  means = collections.defaultdict(float)  # the file has no strategy that earns nothing
  for row in rows:
    assert row["domain"] == "own"
    means[row["kind"]] = max(means[row["kind"]], row["mean"])
  assert means["reference answer"] == 1
  assert means["most frequent answer"] == means["constant"] == pytest.approx(0.75, abs=0.1)
  assert means["form without an answer"] == means["right answer in the thought alone"] == 0
  assert "No strategy earns more than 0.02 above chance" in done.stdout
  readme = (tmp_path / "out" / "README.md").read_text()
  assert done.stdout.strip().splitlines()[-1] in readme


def test_domains_are_judged_for_themselves():
  """A guess that is right in one domain only is chance there, and nothing elsewhere."""
  done = audit(
    *("--config=configs/quickstart.py", "--config.task.name=reasoning_gym"),
    "--config.task.reasoning_gym.generators.coin_flip={}",
    "--config.task.reasoning_gym.generators.game_of_life_halting={}",
    *("--config.task.train=40", "--config.task.test=2", "--examples=12"),
  )
  assert done.returncode == 0, done.stderr
  lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
  rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
  assert rows[0][:3] == ["domain", "reference answer", "chance"]
  coins, halting = rows[2:]
  assert coins[0] == "coin_flip" and coins[1] == "1.000" and float(coins[2]) < 0.5
  assert halting[0] == "game_of_life_halting" and halting[1] == "1.000"
  assert halting[4] == halting[2] and float(halting[2]) >= 0.5  # the more frequent of two answers
  assert "No strategy earns more than 0.02 above chance." in done.stdout


def test_a_reward_that_pays_for_nothing(letters):
  """It judges whether the number of characters is odd."""
  function = "--config.verifier.function=user_rewards:odd"
  done = audit("--config=configs/quickstart.py", *letters, function, "--examples=8")
  assert done.returncode == 0, done.stderr
  last = done.stdout.strip().splitlines()[-1]
  assert "strategies earn more than 0.02 above chance" in last and "with 1.000, where" in last


@pytest.mark.parametrize(
  "arguments,message",
  [
    ([], "error: --config is missing: FILE.py"),
    (["--config=configs/quickstart.py", "--examples=0"], "--examples must be at least 1, got 0"),
  ],
)
def test_mistakes_are_named(arguments, message):
  done = audit(*arguments)
  assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
