"""Units of work: each is a command in a process of its own, and is done once.

A finished unit leaves a mark in DIR/units, with its command and its seconds; the same units on the
same folder continue with those that have none. Units run side by side, each on cores of its own.
One that fails does not stop the others; at the end the failed ones are named.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import rich.console
from rich import progress

from poise_jax import files, provenance
from poise_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
POLL = 0.2  # seconds between looks at the running units
TAIL = 3  # last lines of a failed unit's log that are shown


@dataclasses.dataclass(frozen=True)
class Unit:
  """A command whose finished result is kept."""

  name: str  # path below the folder of all units, without suffix
  # arguments behind python -m, or a function that finds them in the results of `needs`
  command: Sequence[str] | Callable[[], Sequence[str]]
  kind: str  # units of a kind take about as long
  needs: tuple[str, ...] = ()  # names of units that must be finished before
  seed: int | None = None  # the seed that it belongs to; None: all

  def arguments(self) -> list[str]:
    """The command, once `needs` are finished."""
    return list(self.command() if callable(self.command) else self.command)


class Running(NamedTuple):
  """A process of a unit."""

  unit: Unit
  command: list[str]
  process: subprocess.Popen
  start: float
  commit: str  # of the code that it reads

  def seconds(self) -> float:
    """Since its start."""
    return time.monotonic() - self.start


class Marks:
  """What is known about finished and interrupted units."""

  def __init__(self, workdir: pathlib.Path):
    """workdir: folder of all units."""
    self.folder = workdir / "units"
    self.known: dict[str, dict] = {}

  def log(self, name: str) -> pathlib.Path:
    """The file with a unit's output."""
    return self.folder / f"{name}.log"

  def read(self, unit: Unit) -> dict:
    """{"command", "seconds", "finished", "commit" of the newest attempt}, or {}."""
    if unit.name not in self.known:
      path = self.folder / f"{unit.name}.json"
      self.known[unit.name] = json.loads(path.read_text()) if path.exists() else {}
    return self.known[unit.name]

  def write(self, unit: Unit, command: Sequence[str], seconds: float, finished: bool, commit: str):
    """Adds the seconds of an attempt."""
    path = self.folder / f"{unit.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = self.read(unit)
    if before.get("command") == list(command):
      seconds += before["seconds"]
    content = {"command": list(command), "seconds": round(seconds, 1), "finished": finished}
    content["commit"] = commit
    files.write_whole(path, json.dumps(content, indent=2) + "\n")
    self.known[unit.name] = content

  def finished(self, units: Sequence[Unit]) -> set[str]:
    """Names of the units that are finished, with the command that they have now."""
    done = set()
    for unit in units:  # in order: units come after those that they need
      mark = self.read(unit)
      if mark.get("finished") and done.issuperset(unit.needs):
        if mark["command"] == unit.arguments():
          done.add(unit.name)
    return done

  def commits(self, units: Sequence[Unit]) -> list[str]:
    """The commits of the finished units."""
    marks = [self.read(unit) for unit in units]
    return list(dict.fromkeys(mark["commit"] for mark in marks if mark.get("finished")))

  def seconds(self, units: Sequence[Unit]) -> dict[str, float]:
    """Mean seconds of the finished units of each kind."""
    by_kind = {}
    for unit in units:
      if (mark := self.read(unit)).get("finished"):
        by_kind.setdefault(unit.kind, []).append(mark["seconds"])
    return {kind: sum(seconds) / len(seconds) for kind, seconds in by_kind.items()}


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[int]:
  """Keeps other runs out of a folder. Units inherit the lock, so that it outlives a killed run for
  as long as one of its units does.

  Raises:
    UserError: another run or a unit of one works in the folder.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / "lock").open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f"another run of experiments.claims works in {workdir}, or a unit that outlived one; wait "
        "for its end, or choose another --workdir"
      ) from error
    yield file.fileno()


def check(units: Sequence[Unit]) -> list[Unit]:
  """The units without repetitions.

  Raises:
    ValueError: two units of a name differ, or one comes before a unit that it needs.
  """
  unique = {}
  for unit in units:
    if missing := set(unit.needs) - unique.keys():
      raise ValueError(f"unit {unit.name} comes before {', '.join(sorted(missing))}")
    if unique.setdefault(unit.name, unit) != unit:
      raise ValueError(f"two different units are named {unit.name}")
  return list(unique.values())


def duration(seconds: float) -> str:
  """Seconds in words."""
  for unit, size in (("h", 3600.0), ("min", 60.0)):
    if seconds >= size:
      return f"{seconds / size:.1f} {unit}"
  return f"{seconds:.0f} s"


class Run:
  """Runs units side by side."""

  def __init__(
    self,
    units: Sequence[Unit],
    workdir: pathlib.Path,
    cores: Sequence[Sequence[int]],
    earlier: Mapping[str, float],
    console: rich.console.Console,
    estimates: Mapping[str, float] | None = None,
  ):
    """Reads the marks.

    Args:
      units: in order, each after those that it needs.
      workdir: folder of all units.
      cores: the cores of each unit that runs at the same time.
      earlier: seconds of a unit by kind, from a run elsewhere, until one here is finished.
      console: for progress.
      estimates: seconds of a unit by kind where none was measured.
    """
    self.estimates = estimates or {}
    self.units, self.marks = check(units), Marks(workdir)
    self.cores, self.earlier, self.console = cores, earlier, console
    self.done = self.marks.finished(self.units)
    self.failed: dict[str, str] = {}  # name -> the end of its log
    self.running: dict[int, Running] = {}  # by place
    self.lock = -1

  @property
  def left(self) -> str:
    """How long the unfinished units take, in words."""
    measured = {**self.earlier, **self.marks.seconds(self.units)}
    seconds = {**self.estimates, **measured}
    total, guessed, unknown = 0.0, {}, {}
    now = {one.unit.name: one.seconds() for one in self.running.values()}
    for unit in self.units:
      if unit.name in self.done or unit.name in self.failed:
        continue
      if unit.kind in seconds:
        spent = self.marks.read(unit).get("seconds", 0.0) + now.get(unit.name, 0.0)
        total += max(seconds[unit.kind] - spent, 0.0)
        if unit.kind not in measured:
          guessed[unit.kind] = None
      else:
        unknown[unit.kind] = None
    about = f"about {duration(total / len(self.cores))} left" if total else ""
    if guessed:
      about += f" (none measured yet, estimated: {', '.join(guessed)})"
    if unknown:
      about += f"{' and ' if about else ''}an unknown time for: {', '.join(unknown)}"
    return about or "nothing left"

  def plan(self) -> str:
    """How many units there are and how long they take, in a sentence."""
    total, done = len(self.units), len(self.done)
    return (
      f"{total} runs, {done} of them finished; {total - done} to do, {len(self.cores)} at a time: "
      f"{self.left}"
    )

  def run(self):
    """Runs all units that are not finished.

    Raises:
      UserError: some failed; the message names them.
      KeyboardInterrupt: SIGINT or SIGTERM; the running units were stopped.
    """
    with (
      locked(self.marks.folder.parent) as self.lock,
      _interrupted_by(signal.SIGTERM),
      progress.Progress(
        progress.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        progress.BarColumn(),
        progress.TextColumn("{task.description}"),
        console=self.console,
      ) as bar,
    ):
      self.marks.known.clear()  # another claim may have finished some of them
      self.done = self.marks.finished(self.units)
      task = bar.add_task("", total=len(self.units), completed=len(self.done))
      try:
        while self._start() or self.running:
          time.sleep(POLL)
          for line in self._collect():
            about = f"{len(self.done)}/{len(self.units)} {line}; {self.left}"
            bar.console.print(about, markup=False, highlight=False, soft_wrap=True)
          names = ", ".join(one.unit.name for one in self.running.values())
          now = f"{self.left}; now {names}" if names else self.left
          bar.update(task, completed=len(self.done), description=now)
      finally:
        self._stop()
    if self.failed:
      lines = [f"{name} ({self.marks.log(name)}): {end}" for name, end in self.failed.items()]
      waiting = len(self.units) - len(self.done) - len(self.failed)
      more = f"; {waiting} runs that need them were not started" if waiting else ""
      raise UserError(
        f"{len(lines)} of {len(self.units)} runs failed{more}. The same command tries them again:\n"
        + "\n".join(lines)
      )

  def _start(self) -> bool:
    """Starts units on free cores; returns whether it started one."""
    taken = {one.unit.name for one in self.running.values()}
    started = False
    for place in set(range(len(self.cores))) - self.running.keys():
      ready = (
        unit
        for unit in self.units
        if unit.name not in self.done | self.failed.keys() | taken
        and self.done.issuperset(unit.needs)
      )
      if not (unit := next(ready, None)):
        break
      taken.add(unit.name)
      self.running[place] = self._process(unit, self.cores[place])
      started = True
    return started

  def _process(self, unit, cores) -> Running:
    command = unit.arguments()
    log = self.marks.log(unit.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **{name: str(len(cores)) for name in THREADS}}
    with log.open("a") as output, _on(cores):
      process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=[self.lock],
        start_new_session=True,  # Ctrl-C reaches it once, from `_stop`
      )
    return Running(unit, command, process, time.monotonic(), provenance.commit())

  def _collect(self) -> Iterator[str]:
    """Takes note of units that ended; yields a line for each."""
    for place, one in list(self.running.items()):
      if (code := one.process.poll()) is None:
        continue
      del self.running[place]
      unit, seconds = one.unit, one.seconds()
      self.marks.write(unit, one.command, seconds, code == 0, one.commit)
      if code == 0:
        self.done.add(unit.name)
        yield f"{unit.name}: {duration(seconds)}"
      else:
        text = self.marks.log(unit.name).read_text(errors="replace")
        end = " | ".join(text.strip().splitlines()[-TAIL:]) or f"exit code {code}"
        self.failed[unit.name] = end
        yield f"{unit.name} failed after {duration(seconds)}: {end}"

  def _stop(self):
    """Stops what still runs: runs save themselves at SIGTERM."""
    for one in self.running.values():
      one.process.terminate()
    for one in self.running.values():
      one.process.wait()
      self.marks.write(one.unit, one.command, one.seconds(), False, one.commit)
    self.running.clear()


@contextlib.contextmanager
def _on(cores: Sequence[int]) -> Iterator[None]:
  """Gives the cores to the processes that start inside; where the system cannot, nothing."""
  if not hasattr(os, "sched_setaffinity"):
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _interrupted_by(number: int) -> Iterator[None]:
  """Turns a signal into KeyboardInterrupt."""

  def interrupt(*_):
    raise KeyboardInterrupt

  before = signal.signal(number, interrupt)
  try:
    yield
  finally:
    signal.signal(number, before)


def places(cores: int, threads: int) -> list[list[int]]:
  """The cores of each of cores // threads units that run at the same time.

  Args:
    cores: cores to use; 0: all that this process may use.
    threads: cores of a unit.

  Raises:
    UserError: not so many cores are available.
  """
  affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))
  available = sorted(affinity(0))
  if not 0 <= cores <= len(available):
    raise UserError(f"--cores must be at most the {len(available)} available ones, got {cores}")
  cores = cores or len(available)
  if not 1 <= threads <= cores:
    raise UserError(f"--threads must be between 1 and the {cores} cores in use, got {threads}")
  return [available[i : i + threads] for i in range(0, cores - threads + 1, threads)]
