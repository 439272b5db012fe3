"""Where numbers come from: the command, the commit, the machine and the libraries' versions."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax

LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint")


def provenance() -> dict[str, Any]:
  """What one has to know to get a number again; `commit` is None outside of a git checkout."""
  return {
    "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": [pathlib.Path(sys.executable).name, *sys.orig_argv[1:]],
    "commit": _git("rev-parse", "HEAD"),
    "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    "cpu": _cpu(),
    "cpus": os.cpu_count(),
    "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    "python": platform.python_version(),
    "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
  }


def _git(*arguments) -> str | None:
  folder = pathlib.Path(__file__).parent
  try:
    run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
  except FileNotFoundError:  # no git on this machine
    return None
  return run.stdout.strip() if run.returncode == 0 else None


def _cpu() -> str:
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor()


def origin(starts: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
  """Commands, and sentences on commits and machines (see poise_jax.provenance)."""
  commands = dict.fromkeys(" ".join(start["command"]) for start in starts)
  machines = dict.fromkeys(
    f"{start['cpu']}, {start['cpus']} CPUs, devices {', '.join(start['devices'])}, "
    f"Python {start['python']}, "
    + ", ".join(f"{name} {version}" for name, version in start["libraries"].items())
    for start in starts
  )
  commits = dict.fromkeys(
    f"{start['commit']}" + " with uncommitted changes" * start["uncommitted_changes"]
    for start in starts
  )
  return list(commands), [f"Commit {'; '.join(commits)}.", f"Machine: {'; '.join(machines)}."]


def describe(starts: list[dict[str, Any]]) -> str:
  """Commands, commits and machines in Markdown."""
  commands, where = origin(starts)
  return "\n".join(["```", *commands, "```", "", *where])
