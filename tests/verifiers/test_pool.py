"""The pool: whatever a response does to its verifier affects that response alone."""

import os
import pathlib
import shutil
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
RIGHT = Verdict(1.0, answer="5")


@pytest.fixture(scope="module")
def pool():
  with Pool(2, time_limit=1.5) as pool:
    yield pool


def processes(parent_pid=None):
  """Ids of the pool processes that a parent, by default this process, started; main ones first."""
  children = []
  for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      if b"poise_jax.verifiers.pool.server" in (entry / "cmdline").read_bytes():
        children.append((int(entry.name), int((entry / "stat").read_text().split()[3])))
    except OSError:
      pass
  main = [pid for pid, parent in children if parent == (parent_pid or os.getpid())]
  return main + [pid for pid, parent in children if parent in main]


def have_ended(pids, seconds=5):
  """Whether all processes end within some seconds."""
  end = time.monotonic() + seconds
  while any(os.path.exists(f"/proc/{pid}") for pid in pids):
    if time.monotonic() > end:
      return False
    time.sleep(0.02)
  return True


def test_verdicts_equal_those_of_this_process_in_order(pool):
  texts = [f"it is {i % 7}" if i % 5 else "" for i in range(300)]
  checks = [Check("last_integer", str(i % 3)) for i in range(300)]
  assert pool.score(checks, texts) == verifiers.score(checks, texts)
  assert pool.score([], []) == []
  with pytest.raises(ValueError, match="got 1 checks for 2 responses"):
    pool.score([INTEGER], ["5", "5"])


def test_workers_do_not_import_jax(pool):
  """Not even a worker that has loaded the libraries of every verifier."""
  pool.load([Check(name, {}) for name in verifiers.VERIFIERS])
  verdict = pool.score([FOLLOW], ["jax"])[0]
  assert verdict.score == 0
  assert {"math_verify", "reasoning_gym", "sympy"} <= set(verdict.note.split(","))
  assert not {"jax", "jaxlib", "flax"} & set(verdict.note.split(","))


def test_hanging_responses_end_at_the_time_limit_and_all_others_are_scored(pool):
  """Each of 12 hanging responses on 2 workers gets its time."""
  responses = ["right", "wrong"] * 50
  hanging = {3: "hang", 4: "sleep", 50: "hang", 99: "sleep"} | dict.fromkeys(range(60, 68), "hang")
  for i, response in hanging.items():
    responses[i] = response
  start = time.monotonic()
  verdicts = pool.score([FOLLOW] * 100, responses)
  assert time.monotonic() - start < pool.time_limit + 2
  for i, verdict in enumerate(verdicts):
    if i in hanging:
      assert verdict == Verdict(0.0, "timed_out")
    else:
      assert verdict == Verdict(float(i % 2 == 0), answer=responses[i])


def test_every_other_failure_counts_as_a_crash(pool):
  notes = {
    "raise": "KeyError('missing')",
    "die": "signal 9",
    "memory": "MemoryError",
    "endless": "returned inf; return a finite number",
    "text": "returned 'right'; return a finite number",
  }
  verdicts = pool.score([FOLLOW] * 7, ["right", *notes, "right"])
  assert [v.status for v in verdicts] == ["ok", *["crashed"] * 5, "ok"]
  assert [v.score for v in verdicts] == [1, *[0] * 5, 1]
  for verdict, note in zip(verdicts[1:-1], notes.values(), strict=True):
    assert note in verdict.note


def test_a_response_whose_worker_is_killed_is_judged_again(pool, tmp_path):
  check = Check("user_rewards:follow", str(tmp_path / "died"))
  assert pool.score([check], ["die once"]) == [Verdict(0.0, answer="die once")]
  assert (tmp_path / "died").exists()


@pytest.mark.parametrize("which", ["workers", "all"])
def test_killed_processes_are_replaced(pool, which):
  assert pool.score([INTEGER] * 20, ["5"] * 20) == [RIGHT] * 20
  main, *workers = processes()
  assert workers
  for pid in workers if which == "workers" else [main, *workers]:
    try:
      os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
      pass  # workers die with the main process
  assert pool.score([INTEGER] * 20, ["5"] * 20) == [RIGHT] * 20


@pytest.mark.parametrize(
  "verifier,message",
  [
    (
      "maths",
      "unknown verifier 'maths'; did you mean 'math'\\? choose from choice, .* of your own",
    ),
    ("nowhere:reward", "'nowhere:reward': nowhere does not load: ModuleNotFoundError.* PYTHONPATH"),
    ("user_rewards:nothing", "user_rewards has no function 'nothing'; its functions are "),
    ("user_rewards:os", "is a module, not a function"),
  ],
)
def test_a_missing_verifier_is_an_error_not_a_zero(pool, verifier, message):
  for call in (lambda c: pool.score([c], ["x"]), lambda c: pool.load([c])):
    with pytest.raises(UnusableError, match=message):
      call(Check(verifier, "5"))
  assert pool.score([INTEGER], ["5"]) == [RIGHT]  # the pool still works


def test_a_check_that_cannot_judge_is_an_error_not_a_zero(pool):
  with pytest.raises(UnusableError, match="must be a number, got 'five'"):
    pool.score([INTEGER, Check("numeric", "five")], ["5", "5"])
  with pytest.raises(
    UnusableError, match="maps the name of each part to .weight, Check., got None"
  ):
    pool.score([INTEGER, Check("weighted", None)], ["5", "5"])
  with pytest.raises(UnusableError, match="TypeError"):
    pool.score([INTEGER, Check("weighted", {"part": None})], ["5", "5"])
  assert pool.score([INTEGER], ["5"]) == [RIGHT]


def test_a_process_that_does_not_start_is_an_error(monkeypatch):
  monkeypatch.setattr(sys, "executable", "/bin/false")
  with pytest.raises(OSError, match="does not start .exit code 1."):
    Pool(1)


def test_closing_ends_every_process():
  others = set(processes())
  with Pool(2, time_limit=1) as pool:
    pool.score([INTEGER] * 20, ["5"] * 20)
    main, workers = pool._process.pid, set(processes()) - others
    assert main in workers and len(workers) > 1
  assert have_ended(workers)
  pool.close()
  assert pool.score([INTEGER], ["5"]) == [RIGHT]  # starts again
  pool.close()


def test_no_process_outlives_the_one_that_made_the_pool():
  """Not even a worker whose response hangs."""
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
  assert have_ended(started)


ZOMBIES = r"""
import pathlib, time
from poise_jax.verifiers import Check
from poise_jax.verifiers.pool import Pool

def zombies():
  stats = [path.read_text() for path in pathlib.Path("/proc").glob("[0-9]*/stat")]
  return sum(stat.rpartition(")")[2].split()[0] == "Z" for stat in stats)

def code(seconds):
  return Check("code", {"tests": ["assert f(2) == 4"]}, {"time_limit": seconds})

right = "```python\ndef f(x): return x * x\n```"
hangs = "```python\nimport os, time\nos.fork()\nos.fork()\ntime.sleep(100)\n```"
follow = Check("user_rewards:follow", "right")
with Pool(2, time_limit=10) as pool:
  checks = [code(0.3), code(5), follow, code(0.3), code(5)]
  scores = [v.score for v in pool.score(checks, [hangs, right, "die", hangs, right])]
  time.sleep(1.1)
  pool.score([follow], ["right"])
  print(scores, zombies())
"""


def test_no_zombies_are_left_to_the_first_process_of_a_container():
  if os.geteuid() or not shutil.which("unshare"):
    pytest.skip("needs root and the command unshare")
  env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
  command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", ZOMBIES]
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  assert done.stdout == "[0.0, 1.0, 0.0, 0.0, 1.0] 0\n", done.stderr
