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
