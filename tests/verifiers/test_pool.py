"""The pool: what an answer does to its verifier costs that answer alone."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from poise_jax import verifiers
from poise_jax.verifiers import Check, UnusableError, Verdict
from poise_jax.verifiers.pool import Pool

ROOT = pathlib.Path(__file__).parents[2]
FOLLOW = Check("user_rewards:follow", "right")
INTEGER = Check("last_integer", "5")


@pytest.fixture(scope="module")
def pool():
  with Pool(2, time_limit=1.5) as pool:
    yield pool


def processes(group=None):
  """Ids of the verifiers' processes of this very process, the main one first."""
  found = []
  for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      if b"poise_jax.verifiers.pool.worker" in (entry / "cmdline").read_bytes():
        found.append((int(entry.name), int((entry / "stat").read_text().split()[3])))
    except OSError:
      pass
  main = [pid for pid, parent in found if parent == (group or os.getpid())]
  return main + [pid for pid, parent in found if parent in main]


def gone(pids, seconds=5):
  """Whether all processes have ended, or do within some seconds."""
  end = time.monotonic() + seconds
  while any(os.path.exists(f"/proc/{pid}") for pid in pids):
    if time.monotonic() > end:
      return False
    time.sleep(0.02)
  return True


def test_the_same_verdicts_as_in_this_process_in_order(pool):
  texts = [f"it is {i % 7}" if i % 5 else "" for i in range(300)]
  checks = [Check("last_integer", str(i % 3)) for i in range(300)]
  assert pool.score(checks, texts) == verifiers.score(checks, texts)
  assert pool.score([], []) == []
  with pytest.raises(ValueError, match="1 checks for 2 responses"):
    pool.score([INTEGER], ["5", "5"])


def test_workers_do_not_import_jax(pool):
  """Every verifier's libraries are loaded in the worker that is looked at."""
  pool.load([Check(name, []) for name in verifiers.VERIFIERS])
  verdict = pool.score([FOLLOW], ["jax"])[0]
  assert verdict.score == 0
  assert {"math_verify", "reasoning_gym", "sympy"} <= set(verdict.note.split(","))
  assert not {"jax", "jaxlib", "flax"} & set(verdict.note.split(","))


def test_hanging_answers_end_with_the_time_limit_and_all_others_are_scored(pool):
  """Of 12 hanging answers on 2 workers each gets its time."""
  responses = ["right", "wrong"] * 50
  bad = {3: "hang", 4: "sleep", 50: "hang", 99: "sleep"} | {i: "hang" for i in range(60, 68)}
  for i, what in bad.items():
    responses[i] = what
  start = time.monotonic()
  verdicts = pool.score([FOLLOW] * 100, responses)
  assert time.monotonic() - start < pool.time_limit + 2
  for i, verdict in enumerate(verdicts):
    if i in bad:
      assert verdict == Verdict(0.0, "timed_out")
    else:
      assert verdict == Verdict(float(i % 2 == 0))


def test_whatever_else_goes_wrong_is_counted_as_a_crash(pool):
  responses = ["raise", "right", "die", "memory", "too much", "right"]
  verdicts = pool.score([FOLLOW] * 6, responses)
  assert [v.status for v in verdicts] == ["crashed", "ok", "crashed", "crashed", "crashed", "ok"]
  assert [v.score for v in verdicts] == [0, 1, 0, 0, 0, 1]
  assert "KeyError('missing')" in verdicts[0].note
  assert "signal 9" in verdicts[2].note
  assert "MemoryError" in verdicts[3].note
  assert "scores are numbers in [0, 1]" in verdicts[4].note


def test_an_answer_whose_worker_was_killed_from_outside_is_asked_again(pool, tmp_path):
  check = Check("user_rewards:follow", str(tmp_path / "died"))
  assert pool.score([check], ["die once"]) == [Verdict(0.0)]  # "ok": the second time it was judged
  assert (tmp_path / "died").exists()


@pytest.mark.parametrize("which", ["workers", "all"])
def test_killed_processes_are_replaced(pool, which):
  assert pool.score([INTEGER] * 20, ["5"] * 20) == [Verdict(1.0)] * 20
  main, *workers = processes()
  assert workers
  for pid in workers if which == "workers" else [main, *workers]:
    try:
      os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
      pass  # workers die with the main process
  assert pool.score([INTEGER] * 20, ["5"] * 20) == [Verdict(1.0)] * 20


@pytest.mark.parametrize(
  "verifier,message",
  [
    ("maths", "'maths' is unknown; known are math, choice"),
    ("nowhere:reward", "'nowhere:reward' does not load: ModuleNotFoundError"),
    ("user_rewards:nothing", "does not load: AttributeError"),
    ("user_rewards:os", "is not a function"),
  ],
)
def test_a_verifier_that_is_not_there_is_an_error_not_a_zero(pool, verifier, message):
  for call in (lambda c: pool.score([c], ["x"]), lambda c: pool.load([c])):
    with pytest.raises(UnusableError, match=message):
      call(Check(verifier, "5"))
  assert pool.score([INTEGER], ["5"]) == [Verdict(1.0)]  # and the pool goes on


def test_a_check_that_cannot_judge_is_an_error_not_a_zero(pool):
  with pytest.raises(UnusableError, match="'five' is not a number"):
    pool.score([INTEGER, Check("numeric", "five")], ["5", "5"])
  with pytest.raises(UnusableError, match="TypeError"):
    pool.score([INTEGER, Check("weighted", None)], ["5", "5"])
  assert pool.score([INTEGER], ["5"]) == [Verdict(1.0)]


def test_workers_that_do_not_start_are_an_error(monkeypatch):
  monkeypatch.setattr(sys, "executable", "/bin/false")
  with pytest.raises(OSError, match="does not start .exit code 1."):
    Pool(1)


def test_closing_ends_every_process():
  with Pool(2, time_limit=1) as pool:
    pool.score([INTEGER] * 20, ["5"] * 20)
    mine = [pid for pid in processes() if pid == pool._process.pid]
    assert mine
  assert gone(mine)
  pool.close()
  assert pool.score([INTEGER], ["5"]) == [Verdict(1.0)]  # starts anew
  pool.close()


def test_no_process_outlives_the_one_that_made_the_pool():
  """Not even one whose answer hangs."""
  program = (
    "from poise_jax.verifiers import Check; from poise_jax.verifiers.pool import Pool\n"
    "p = Pool(1, time_limit=100); print('go', flush=True)\n"
    "p.score([Check('user_rewards:follow', 'x')], ['hang'])"
  )
  env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
  command = [sys.executable, "-c", program]
  with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
    assert process.stdout.readline() == b"go\n"
    end = time.monotonic() + 10
    while len(started := processes(process.pid)) < 2 and time.monotonic() < end:
      time.sleep(0.05)
    process.kill()
  assert len(started) == 2
  assert gone(started)
