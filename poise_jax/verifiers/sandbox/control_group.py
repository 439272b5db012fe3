"""A limit on the memory of all processes of a program together, by a Linux control group.

Limits of processes count each process alone. Control groups need root, or a hierarchy that was
delegated to this user, and a mounted file system that may be written to; without, `create` returns
None and the other limits hold.
"""

import contextlib
import functools
import os
import re
import tempfile
import time

_PREFIX = "poise_jax_"  # of a group's name; the id of the process that made it follows
_FILES = {  # version -> file of the limit, and files of limits on swap
  1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
  2: ("memory.max", "memory.swap.max"),
}


def create(memory: int) -> str | None:
  """Folder of a new group whose processes hold `memory` bytes at most; None where none can be had.

  A process joins by writing to the folder's cgroup.procs; `remove` removes the group.
  """
  found = _parent()
  if not found:
    return None
  parent, version = found
  limit, swap = _FILES[version]
  try:
    group = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}_", dir=parent)
  except OSError:
    return None
  try:
    _write(group, limit, memory)
  except OSError:
    remove(group, 0)
    return None
  with contextlib.suppress(OSError):  # not every machine counts swap
    _write(group, swap, memory if version == 1 else 0)
  return group


def remove(group: str | None, seconds: float = 1.0):
  """Removes a group, as soon as its killed processes are gone; the next run removes what stays."""
  end = time.monotonic() + seconds
  while group and os.path.isdir(group):
    with contextlib.suppress(OSError):
      os.rmdir(group)
      return
    if time.monotonic() > end:
      return
    time.sleep(0.002)


@functools.cache
def _parent():
  """See `find`, for this process; removes groups of dead processes."""
  try:
    with open("/proc/self/cgroup") as own, open("/proc/self/mountinfo") as mounts:
      found = find(own.read(), mounts.read())
    names = os.listdir(found[0]) if found else []
  except OSError:
    return None
  for name in names:
    process = re.match(rf"{_PREFIX}(\d+)_", name)
    if process and not os.path.exists(f"/proc/{process[1]}"):
      remove(os.path.join(found[0], name), 0)
  return found


def find(own: str, mounts: str) -> tuple[str, int] | None:
  """Where groups with a limit on memory can be made.

  Args:
    own: content of /proc/self/cgroup.
    mounts: content of /proc/self/mountinfo.

  Returns:
    A folder and the version of the control groups there: in version 1, this process' own group; in
    version 2, the nearest one above whose groups are limited in memory. None: nowhere.
  """
  groups = dict(line.split(":", 2)[1:] for line in own.splitlines())  # controllers -> path
  for line in mounts.splitlines():
    before, _, after = line.partition(" - ")
    root, place = before.split()[3:5]
    kind, _, options = after.split(" ")[:3]
    names = [name for name in groups if "memory" in name.split(",")]
    if kind == "cgroup" and names and "memory" in options.split(","):
      folder = _below(place, root, groups[names[0]])
      if folder and os.access(folder, os.W_OK):
        return folder, 1
    elif kind == "cgroup2" and "" in groups and not names:
      folder = _below(place, root, groups[""])
      while folder and folder.startswith(place):
        if _limits_memory(folder) and os.access(folder, os.W_OK):
          return folder, 2
        folder = os.path.dirname(folder)
  return None


def _below(place, root, path):
  """The folder of a group in a mounted hierarchy, of which a part may be mounted; else None."""
  if path.startswith("/..") or root.startswith("/.."):
    return None  # outside of this process' namespace of groups
  relative = os.path.relpath(path, root)
  folder = os.path.normpath(os.path.join(place, relative))
  return folder if not relative.startswith("..") and os.path.isdir(folder) else None


def _limits_memory(folder):
  try:
    with open(os.path.join(folder, "cgroup.subtree_control")) as file:
      return "memory" in file.read().split()
  except OSError:
    return False


def _write(group, name, value):
  with open(os.path.join(group, name), "w") as file:
    file.write(str(value))
