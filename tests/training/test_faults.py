"""Real faults: a message, nothing lost, and the same command continues when they are repaired."""

import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import lines, tiny

from experiments import cli
from experiments.run_differences import differences
from poise_jax import files, models
from poise_jax.errors import UserError
from poise_jax.models.io import run_checkpoint
from poise_jax.training import loop, rewards
from poise_jax.training.checkpoints import DAMAGED
from poise_jax.training.logging import Logger


@pytest.fixture
def nan_rewards(monkeypatch):
  """nan_rewards(first, last): a NaN among the rewards of the first prompt in those steps."""
  token_rewards, calls = rewards.token_rewards, []

  def install(first, last):
    def with_nan(*args):
      calls.append(None)
      values = token_rewards(*args)
      return values.at[0, 0, 0].set(jnp.nan) if first <= len(calls) <= last else values

    monkeypatch.setattr(rewards, "token_rewards", with_nan)

  return install


def test_a_step_with_a_nan_is_skipped_and_counted(tmp_path, nan_rewards, capsys):
  nan_rewards(2, 2)
  loop.train(tiny(), str(tmp_path / "run"))
  rows = lines(tmp_path / "run" / "metrics.jsonl")
  # Two mini-batches per step; the NaN is in the first.
  assert [row.get("policy/skipped_updates") for row in rows] == [None, 0, 1, 1]
  # The second mini-batch ends the row of skipped optimizer steps.
  assert "max_skipped_updates" not in capsys.readouterr().out
  assert np.isfinite([row["policy/loss"] for row in rows[1:]]).all()
  checkpoint = run_checkpoint.find(tmp_path / "run")
  for item in ("params", "rest"):  # policy and probe are without NaN
    for leaf in jax.tree.leaves(run_checkpoint.read(checkpoint, item, None)):
      assert np.isfinite(np.asarray(leaf, np.float32)).all()
  assert rows[3]["probe/active"] == 1


def test_too_many_skipped_steps_in_a_row_stop_the_run(tmp_path, nan_rewards, capsys):
  folder = tmp_path / "run"
  nan_rewards(2, 9)
  # One mini-batch per step: steps 2 and 3 are skipped as a whole.
  config = tiny(max_skipped_updates=2, train__minibatch_size=8, train__microbatch_size=8)
  with pytest.raises(UserError, match="2 optimizer steps in a row, up to step 3") as error:
    loop.train(config, str(folder))
  assert str(folder / "post_mortem" / "step_3.txt") in str(error.value)
  out = capsys.readouterr().out
  assert "step 2: loss or gradient not finite" in out
  rows = lines(folder / "metrics.jsonl")
  assert "policy/loss" not in rows[2] and rows[2]["policy/skipped_updates"] == 1
  _, before = models.load(folder / "checkpoints" / "1")
  _, after = models.load(folder / "checkpoints" / "2")
  for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
    np.testing.assert_array_equal(x, y)  # the skipped step changed nothing
  assert run_checkpoint.steps_of(folder)[-2:] == [1, 2]
  batch = np.load(folder / "post_mortem" / "step_3.npz")
  assert np.isnan(batch["experience.token_rewards"][0, 0, 0])
  assert batch["experience.rollouts.tokens"].shape == (4, 2, 10)
  text = (folder / "post_mortem" / "step_3.txt").read_text()
  assert "experience.token_rewards (4, 2, 10): 1 values are not finite, first (0, 0, 0)" in text
  assert text.count('"question"') == 8  # every answer of the batch
  nan_rewards(9, 9)
  loop.train(config, str(folder))  # continues
  assert lines(folder / "metrics.jsonl")[-1]["policy/skipped_updates"] == 1


@pytest.fixture
def small_disk(tmp_path):
  """A disk of 12 MB."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True
  )
  if mounted.returncode:
    pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk):
  """Writes a file until the disk is full."""
  path = disk / "filler"
  with pytest.raises(OSError) as full, path.open("wb", buffering=0) as file:
    while True:
      file.write(bytes(4096))
  assert full.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
  "phase", [pytest.param("step 2: saving", marks=pytest.mark.slow), "step 2: updating"]
)
def test_a_full_disk(finished_run, small_disk, monkeypatch, phase):
  """Either the checkpoint in the background or the metrics fail first."""
  workdir, show = small_disk / "run", Logger.phase

  def fill_there(self, name, *progress):
    show(self, name, *progress)
    if name == phase:
      while 1 not in run_checkpoint.steps_of(workdir):  # it is written in the background
        time.sleep(0.01)
      fill(small_disk)

  monkeypatch.setattr(Logger, "phase", fill_there)
  with pytest.raises(OSError, match="could not .*space.*continue.* after (the last|step 1)"):
    loop.train(tiny(), str(workdir))
  assert run_checkpoint.steps_of(workdir)[-1] == 1
  monkeypatch.setattr(Logger, "phase", show)
  (small_disk / "filler").unlink()
  loop.train(tiny(), str(workdir))
  assert differences(workdir, finished_run) == []
  assert not (workdir / DAMAGED).exists()  # nothing half-written counted as a checkpoint


def test_a_read_only_workdir(finished_run, small_disk):
  def remount(mode):
    subprocess.run(["mount", "-o", f"remount,{mode}", str(small_disk)], check=True)

  subprocess.run(["cp", "-r", str(finished_run), str(small_disk / "run")], check=True)
  for path in (small_disk / "run" / "checkpoints").iterdir():
    if path.name == "3":
      subprocess.run(["rm", "-r", str(path)], check=True)
  before = {p: p.is_file() and p.read_bytes() for p in small_disk.rglob("*")}
  remount("ro")
  try:
    for workdir in ("run", "other"):
      with pytest.raises(OSError, match=f"could not .*{workdir}.*(R|r)ead-only file system"):
        loop.train(tiny(), str(small_disk / workdir))
  finally:
    remount("rw")
  assert {p: p.is_file() and p.read_bytes() for p in small_disk.rglob("*")} == before
  loop.train(tiny(), str(small_disk / "run"))
  assert differences(small_disk / "run", finished_run) == []


# Limits apply to a whole process, pytest's output included: these tests have one of their own.
@pytest.mark.slow  # a full disk is tested above
def test_limits_of_the_process():
  names = "test_the_size_of_files or test_too_little_memory"
  options = ["-n", "0", "-p", "no:cacheprovider", "-m", "slow", "-k", names]
  command = [sys.executable, "-m", "pytest", *options, __file__]
  done = subprocess.run(command, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
  assert "2 passed" in done.stdout


@pytest.mark.slow  # runs in the test above
def test_the_size_of_files(run_copy, monkeypatch):
  """A limit on the size of files acts as a disk quota does."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  show = Logger.phase

  def limit_there(self, name, *progress):
    show(self, name, *progress)
    if name == "step 4: saving":
      resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

  monkeypatch.setattr(Logger, "phase", limit_there)
  try:
    with pytest.raises(OSError, match="could not .*[Ff]ile too large.*continues after step 3"):
      loop.train(tiny(steps=4), str(run_copy), allow_config_change=True)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
  loop.train(tiny(steps=4), str(run_copy), allow_config_change=True)
  assert run_checkpoint.steps_of(run_copy)[-1] == 4


@pytest.mark.slow  # runs in the test above
def test_too_little_memory(tmp_path):
  """A buffer of 16 GB in an address space with 2 GB left."""
  size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
  soft, hard = resource.getrlimit(resource.RLIMIT_AS)
  config = tiny(warm_start__steps=0, probe__buffer_rows=2**26)
  resource.setrlimit(resource.RLIMIT_AS, (size + 2**31, hard))
  try:
    with pytest.raises((MemoryError, jax.errors.JaxRuntimeError)) as error:
      loop.train(config, str(tmp_path / "run"))
  finally:
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
  assert cli.sentence(error.value).startswith("out of memory; lower train.microbatch_size")


def test_other_errors_are_not_explained_as_a_full_disk():
  missing = FileNotFoundError(errno.ENOENT, "No such file", "weights")
  with pytest.raises(FileNotFoundError) as error, files.disk_explained(pathlib.Path("run")):
    raise missing
  assert error.value is missing


def test_verifiers_that_die(run_copy, monkeypatch):
  """The process is killed and cannot be started again: checkpoints stay, and the run continues."""
  show = Logger.phase

  def no_python(self, name, *progress):
    show(self, name, *progress)
    if name == "step 4: sampling":
      children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
      for pid in children:
        if b"poise_jax.verifiers" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
          os.kill(int(pid), signal.SIGKILL)
      monkeypatch.setattr(sys, "executable", "/bin/false")  # no new one starts

  monkeypatch.setattr(Logger, "phase", no_python)
  with pytest.raises(OSError, match="the verifiers' process"):
    loop.train(tiny(steps=4), str(run_copy), allow_config_change=True)
  monkeypatch.undo()
  assert run_checkpoint.steps_of(run_copy)[-1] == 3
  loop.train(tiny(steps=4), str(run_copy), allow_config_change=True)
  assert run_checkpoint.steps_of(run_copy)[-1] == 4
