"""Several real processes (gloo on this machine) train as one process does, and end together."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny_run import TINY, lines

from poise_jax.models.io import run_checkpoint

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 5
CHANGES = {
  "steps": STEPS,
  "eval_batch": 8,
  "warm_start.steps": 0,
  "train.loss.kl_coef": 0.0,
  "train.microbatch_size": 4,
  "verifier.function": "user_rewards:odd",
  "verifier.workers": 1,
  "loggers": (),
}


def start(
  workdir,
  processes,
  index=0,
  port=0,
  devices=2,
  algorithm="poise",
  flags=(),
  checkpoint=None,
  **changes,
):
  """Starts one process of a run, or of an evaluation, on `devices` devices in total."""
  config = {**TINY, **CHANGES, **{k.replace("__", "."): v for k, v in changes.items()}}
  program = ["experiments.train", f"--workdir={workdir}"]
  if checkpoint:
    program = ["experiments.evaluate", f"--checkpoint={checkpoint}", f"--out={workdir}"]
  command = [sys.executable, "-m", *program, *flags]
  command += [f"--config=configs/quickstart.py:{algorithm}"]
  command += [f"--config.{name}={value}" for name, value in config.items()]
  if processes > 1:
    command += [f"--distributed=127.0.0.1:{port},{processes},{index}"]
  local = devices // processes
  environment = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={local}",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # every process compiles everything
  }
  log = pathlib.Path(f"{workdir}.{index}.log").open("w")
  return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def free_port():
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def start_all(workdir, processes, **options):
  port = free_port()
  return [start(workdir, processes, i, port, **options) for i in range(processes)]


def log_text(workdir, index):
  return pathlib.Path(f"{workdir}.{index}.log").read_text()


def finish(workdir, running):
  codes = [process.wait(500) for process in running]
  assert codes == [0] * len(running), log_text(workdir, 0)[-3000:]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """A run by two processes, the second of which is killed: (workdir, seconds until the first one
  ends, its exit code); and the workdir of the same run by one process, which is trained in the
  meantime."""
  workdir, alone = (tmp_path_factory.mktemp(name) / "run" for name in ("killed", "single"))
  first, second = start_all(workdir, 2)
  wait_until(lambda: len(metrics(workdir)) >= 3, first)
  second.send_signal(signal.SIGKILL)
  before = time.monotonic()
  running = start_all(alone, 1)
  code = first.wait(120)
  seconds = time.monotonic() - before
  finish(alone, running)
  return (workdir, seconds, code), alone


@pytest.fixture(scope="module")
def killed(both):
  return both[0]


@pytest.fixture(scope="module")
def single(both):
  return both[1]


def metrics(workdir):
  path = workdir / "metrics.jsonl"
  return lines(path) if path.exists() else []


def wait_until(condition, process, seconds=400):
  limit = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None and time.monotonic() < limit
    time.sleep(0.1)


def assert_same_run(a, b, steps=STEPS):
  """Tokens are the same, metrics and parameters up to the order of sums."""
  for x, y in zip(metrics(a), metrics(b), strict=True):
    assert x.keys() == y.keys()
    for name in x:
      if not name.startswith("time/"):
        # r divides by the spread of predictions, which is small here and amplifies rounding.
        atol = 1e-4 if name.endswith("/pearson") else 1e-5
        np.testing.assert_allclose(x[name], y[name], rtol=1e-5, atol=atol, err_msg=name)
  assert len(metrics(a)) == steps + 1
  for x, y in zip(lines(a / "samples.jsonl"), lines(b / "samples.jsonl"), strict=True):
    assert x["tokens"] == y["tokens"]
  for file in (a / "answers").iterdir():
    texts = [[row["response"] for row in lines(p / "answers" / file.name)] for p in (a, b)]
    assert texts[0] == texts[1]
  checkpoints = (run_checkpoint.path_of(workdir, steps) for workdir in (a, b))
  params = (run_checkpoint.load(path, np.float32)[1] for path in checkpoints)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), *params)


def test_the_other_processes_end_within_a_minute_and_name_the_lost_one(killed):
  workdir, seconds, code = killed
  assert code != 0
  assert seconds < 60
  text = log_text(workdir, 0)
  assert "error in process 0 of 2" in text or "stopped sending heartbeats" in text
  names = re.findall(r"(?:stopped sending heartbeats\)|timed out task names):\s+(\S+)", text)
  assert set(names) == {"1"}, text[-3000:]


def test_saved_by_two_processes_and_resumed_by_one(single, killed):
  workdir, _, _ = killed
  finish(workdir, start_all(workdir, 1))
  assert "resuming" in log_text(workdir, 0)
  assert len(lines(workdir / "provenance.jsonl")) == 2
  assert_same_run(single, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["poise", "dapo", "ppo", "spo"])
def test_four_processes_train_as_one(tmp_path, algorithm):
  options = dict(devices=4, algorithm=algorithm)
  if algorithm == "dapo":
    options["rollout__n"] = 2  # 8 rollouts at n=8 would be one prompt for four devices
  for processes in (1, 4):
    workdir = tmp_path / str(processes)
    finish(workdir, start_all(workdir, processes, **options))
  assert_same_run(tmp_path / "1", tmp_path / "4")


@pytest.mark.slow
def test_two_processes_evaluate_as_one(single, tmp_path):
  options = dict(checkpoint=single, eval__n=2, eval__temperature=1.0)
  for processes in (1, 2):
    workdir = tmp_path / str(processes)
    finish(workdir, start_all(workdir, processes, **options))
  texts = [(tmp_path / name / "answers.jsonl").read_text() for name in ("1", "2")]
  assert texts[0] == texts[1] and texts[0].count("\n") == 2 * TINY["task.test"]
  assert "avg@2" in log_text(tmp_path / "2", 0) and "avg@2" not in log_text(tmp_path / "2", 1)


@pytest.mark.slow
def test_processes_with_different_configs_are_an_error(tmp_path):
  workdir = tmp_path / "run"
  port = free_port()
  running = [start(workdir, 2, i, port, seed=i) for i in range(2)]
  assert all(process.wait(120) for process in running)
  assert "config is not the same in process 1 as in process 0" in log_text(workdir, 0)
  assert not workdir.exists()


@pytest.mark.slow
def test_saved_by_one_process_and_resumed_by_two(single, tmp_path):
  workdir = tmp_path / "run"
  finish(workdir, start_all(workdir, 1, steps=2))
  finish(workdir, start_all(workdir, 2, flags=["--allow_config_change"]))
  assert_same_run(single, workdir)
