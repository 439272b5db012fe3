"""Provenance of numbers: command, commit, machine and library versions."""

import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

# What commands write themselves: it changes no number, and would mark every later run.
WRITTEN = (
  ":(exclude,top)*.md",
  ":(exclude,top)docs",
  ":(exclude,top)experiments/claims/*/results/*",
)
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint")

Start = dict[str, Any]  # an entry of provenance.jsonl: what `provenance` returns, and more


class Started(NamedTuple):
  """When this process started, and from which files."""

  time: str
  commit: str | None
  changed: bool


@functools.cache
def started() -> Started:
  """The time and commit of the first call. Commands call this before their work, since files may
  change meanwhile."""
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  return Started(now, _git("rev-parse", "HEAD"), _changed())


def provenance() -> Start:
  """What is needed to reproduce a number; `commit` is None outside of a git checkout."""
  import jax  # here, as commands note their start before they load it

  return {
    "started": started().time,
    "command": [pathlib.Path(sys.executable).name, *sys.orig_argv[1:]],
    "commit": started().commit,
    "uncommitted_changes": started().changed,
    "cpu": _cpu(),
    "cpus": os.cpu_count(),
    "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    "python": platform.python_version(),
    "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
  }


def commit() -> str:
  """The commit of this code, and whether code or configs differ from it."""
  changed = " with uncommitted changes" if _changed() else ""
  return f"{_git('rev-parse', 'HEAD')}{changed}"


def _changed() -> bool:
  """Whether files differ from the commit, other than pages and results, which commands write."""
  return bool(_git("status", "--porcelain", "--untracked-files=no", "--", ":/", *WRITTEN))


def _git(*arguments: str) -> str | None:
  folder = pathlib.Path(__file__).parent
  try:
    run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
  except FileNotFoundError:  # git is not installed
    return None
  return run.stdout.strip() if run.returncode == 0 else None


def _cpu() -> str:
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor()


def origin(starts: Sequence[Start]) -> tuple[list[str], list[str]]:
  """Commands as a shell reads them, and sentences about commits and machines.

  None is repeated.
  """
  commands = dict.fromkeys(shlex.join(start["command"]) for start in starts)
  machines = dict.fromkeys(map(_machine, starts))
  commits = dict.fromkeys(
    f"{start['commit']}{' with uncommitted changes' if start['uncommitted_changes'] else ''}"
    for start in starts
  )
  return list(commands), [f"Commit {'; '.join(commits)}.", f"Machine: {'; '.join(machines)}."]


def _machine(start: Start) -> str:
  libraries = ", ".join(f"{name} {version}" for name, version in start["libraries"].items())
  return (
    f"{start['cpu']}, {start['cpus']} CPUs, devices {', '.join(start['devices'])}, "
    f"Python {start['python']}, {libraries}"
  )


def describe(starts: Sequence[Start]) -> str:
  """Commands, commits and machines in Markdown."""
  commands, sentences = origin(starts)
  return "\n".join(["```", *commands, "```", "", *sentences])
