"""Units run once, side by side, on cores of their own; failures are named and the rest goes on."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import rich.console

from experiments.claims import runner
from experiments.claims.runner import Unit
from poise_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[3]
CORE = sorted(os.sched_getaffinity(0))[0]


def unit(folder, name, code, needs=(), kind="unit"):
  """A unit that runs Python code with `out` as a file of its own. `timeit` runs any statement."""
  out = folder / f"{name}.out"
  return Unit(name, ("timeit", "-n1", "-r1", f"out = {str(out)!r}", code), kind, needs)


def write(text):
  return f"open(out, 'a').write({text!r})"


def make(units, folder, places=((CORE,),), earlier=(), estimates=None):
  console = rich.console.Console(file=(folder / "console").open("a"), width=200)
  places = [list(x) for x in places]
  return runner.Run(units, folder / "work", places, dict(earlier), console, estimates)


def text(folder, name):
  path = folder / f"{name}.out"
  return path.read_text() if path.exists() else ""


def test_units_run_once_and_after_those_that_they_need(tmp_path):
  first = unit(tmp_path, "first", write("a"))

  def command():  # found in the result of another unit
    content = text(tmp_path, "first")
    return unit(tmp_path, "second", write(content + "b")).command

  units = [first, Unit("second", command, "other", ("first",))]
  run = make(units, tmp_path)
  assert run.plan().startswith("2 runs, 0 of them finished; 2 to do, 1 at a time: an unknown time")
  run.run()
  assert text(tmp_path, "second") == "ab"
  head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
  assert len(run.marks.commits(units)) == 1 and head.stdout.strip() in run.marks.commits(units)[0]
  again = make(units, tmp_path)
  assert again.plan().startswith("2 runs, 2 of them finished; 0 to do")
  assert again.plan().endswith("nothing left")
  again.run()
  assert text(tmp_path, "first") == "a" and text(tmp_path, "second") == "ab"


def test_a_failed_unit_is_named_and_the_others_go_on(tmp_path):
  units = [
    unit(tmp_path, "good", write("x")),
    unit(tmp_path, "broken", "raise ValueError('no such thing')"),
    unit(tmp_path, "after", write("x"), needs=("broken",)),
    unit(tmp_path, "late", write("x"), needs=("good",)),
  ]
  with pytest.raises(UserError) as error:
    make(units, tmp_path).run()
  message = str(error.value)
  assert message.startswith("1 of 4 runs failed; 1 runs that need them were not started")
  assert "broken" in message and "broken.log" in message and "no such thing" in message
  assert "good (" not in message and "after" not in message
  assert text(tmp_path, "late") == "x" and not text(tmp_path, "after")
  units[1] = unit(tmp_path, "broken", write("mended"))
  make(units, tmp_path).run()
  assert text(tmp_path, "broken") == "mended" and text(tmp_path, "after") == "x"
  assert text(tmp_path, "good") == "x"


def test_a_unit_with_another_command_is_not_the_same(tmp_path):
  make([unit(tmp_path, "a", write("1"))], tmp_path).run()
  make([unit(tmp_path, "a", write("2"))], tmp_path).run()
  assert text(tmp_path, "a") == "12"


def test_units_run_side_by_side_each_on_its_cores(tmp_path):
  """Each waits for the other, and says where it may run and with how many threads."""
  code = (
    "import os, time; open(out, 'w').write(str([sorted(os.sched_getaffinity(0)), "
    "os.environ['OMP_NUM_THREADS']])); "
    "[time.sleep(0.05) for _ in range(400) if not os.path.exists(OTHER)]; "
    "assert os.path.exists(OTHER)"
  )
  other = {"left": "right", "right": "left"}
  units = [
    unit(tmp_path, name, code.replace("OTHER", repr(str(tmp_path / f"{other[name]}.out"))))
    for name in other
  ]
  make(units, tmp_path, places=((CORE,), (CORE,))).run()
  assert text(tmp_path, "left") == text(tmp_path, "right") == str([[CORE], "1"])


def test_time_left_is_measured_by_kind(tmp_path):
  units = [unit(tmp_path, f"u{i}", "pass", kind="short" if i < 3 else "long") for i in range(5)]
  marks = runner.Marks(tmp_path / "work")
  marks.write(units[0], units[0].arguments(), 60.0, finished=False, commit="a")
  marks.write(units[0], units[0].arguments(), 120.0, finished=True, commit="b")  # continued
  assert marks.commits(units) == ["b"]
  run = make(units, tmp_path)
  assert run.plan().endswith(
    "4 to do, 1 at a time: about 6.0 min left and an unknown time for: long"
  )
  run = make(units, tmp_path, places=((0,), (1,)), earlier={"long": 3600.0, "short": 1.0})
  assert run.plan().endswith("2 at a time: about 1.1 h left")
  estimates = {"long": 1800.0, "short": 7200.0}  # what was measured is not estimated
  run = make(units, tmp_path, estimates=estimates)
  assert run.plan().endswith("about 1.1 h left (none measured yet, estimated: long)")


def test_only_one_run_at_a_time_works_in_a_folder(tmp_path):
  with runner.locked(tmp_path / "work"):
    with pytest.raises(UserError, match="another run of experiments.claims works in"):
      make([unit(tmp_path, "a", "pass")], tmp_path).run()
  make([unit(tmp_path, "a", "pass")], tmp_path).run()


SCRIPT = """
import pathlib, signal, sys
import rich.console
from experiments.claims.runner import Run, Unit
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
work, core = pathlib.Path(sys.argv[1]), int(sys.argv[2])
code = "import time; open(out, 'a').write('x'); time.sleep(99 * (open(out).read() == 'x'))"
units = [
  Unit("quick", ("timeit", "-n1", "-r1", f"out = {str(work / 'q')!r}", "open(out, 'a')"), "a"),
  Unit("slow", ("timeit", "-n1", "-r1", f"out = {str(work / 's')!r}", code), "b"),
]
Run(units, work, [[core]], {}, rich.console.Console()).run()
"""


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_an_interrupted_run_stops_its_units_and_continues(tmp_path, number):
  command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(CORE)]
  process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
  for _ in range(600):
    if (tmp_path / "s").exists() and (tmp_path / "s").read_text():
      break
    time.sleep(0.1)
  process.send_signal(number)
  assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
  marks = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "units").glob("*.json")}
  assert marks["quick"]["finished"] and not marks["slow"]["finished"]
  subprocess.run(command, cwd=ROOT, check=True, timeout=120)  # the lock is free: nothing survived
  assert (tmp_path / "s").read_text() == "xx"
  assert json.loads((tmp_path / "units" / "slow.json").read_text())["finished"]


def test_mistakes_in_a_list_of_units(tmp_path):
  a = unit(tmp_path, "a", "pass")
  assert runner.check([a, a]) == [a]
  with pytest.raises(ValueError, match="two different units are named a"):
    runner.check([a, unit(tmp_path, "a", "1")])
  with pytest.raises(ValueError, match="unit b comes before a"):
    runner.check([unit(tmp_path, "b", "pass", needs=("a",)), a])


def test_cores_are_shared_out(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3, 4, 6, 7})
  assert runner.places(0, 1) == [[1], [3], [4], [6], [7]]
  assert runner.places(4, 2) == [[1, 3], [4, 6]]
  assert runner.places(0, 2) == [[1, 3], [4, 6]]
  for cores, threads, message in ((6, 1, "--cores must be at most the 5"), (2, 3, "--threads")):
    with pytest.raises(UserError, match=message):
      runner.places(cores, threads)


def test_durations():
  assert [runner.duration(x) for x in (4.2, 90, 5400)] == ["4 s", "1.5 min", "1.5 h"]
