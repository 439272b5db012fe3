"""A Python program in isolation (isolation.py), with its input, its output and its end."""

import json
import os
import signal
import subprocess
import sys
import sysconfig

from poise_jax.verifiers.base import SandboxError
from poise_jax.verifiers.sandbox import control_group, isolation
from poise_jax.verifiers.sandbox.syscalls import call_filter

_HERE = os.path.dirname(os.path.abspath(__file__))


class Sandbox:
  """A running program. As a context manager, it ends the program and all its children on exit."""

  def __init__(
    self,
    program: str,
    stdin: bytes = b"",
    data=None,
    pipe: int | None = None,
    memory: int = 512 << 20,
    disk: int = 16 << 20,
    processes: int = 8,
    cpu: int = 60,
    errors: bool = False,
  ):
    """Starts a program.

    Args:
      program: Python source; runs as __main__ with the globals DATA and PIPE.
      stdin: the program's standard input.
      data: plain data, the value of DATA.
      pipe: a file descriptor that the program inherits; its number in the program is PIPE.
      memory: limit of the memory that each process maps, in bytes; and, where control groups can
        be made, of what all processes and the work folder hold together, `disk` added.
      disk: limit of the work folder, of each file and of the output, in bytes.
      processes: limit of processes at one time, threads included.
      cpu: limit of the CPU time of each process, in seconds.
      errors: whether the output includes standard error, which is discarded otherwise.
    """
    job = dict(program=program, data=data, pipe=pipe, here=_HERE, parent=os.getpid())
    job.update(limits=dict(memory=memory, disk=disk, processes=processes, cpu=cpu))
    paths = [sysconfig.get_paths()[name] for name in ("purelib", "platlib")]
    job.update(folders=python_folders(), paths=paths, filter=call_filter())
    self.stdout = os.memfd_create("stdout")
    files = [os.memfd_create("job"), os.memfd_create("stdin")]
    self.group = None
    try:
      self.group = job["group"] = control_group.create(memory + disk)
      for file, content in zip(files, (json.dumps(job).encode(), stdin), strict=True):
        with open(file, "wb", closefd=False) as out:
          out.write(content)
        os.lseek(file, 0, os.SEEK_SET)
      self.process = subprocess.Popen(
        [sys.executable, "-I", "-S", os.path.join(_HERE, "launch.py"), str(files[0])],
        stdin=files[1],
        stdout=self.stdout,
        stderr=self.stdout if errors else subprocess.DEVNULL,
        pass_fds=[files[0], *([pipe] if pipe is not None else [])],
        env={},
        cwd="/",
        start_new_session=True,
      )
    except BaseException as error:
      os.close(self.stdout)
      control_group.remove(self.group)
      if isinstance(error, OSError):  # no process, no memory
        raise SandboxError(f"the sandbox does not start: {error}") from error
      raise
    finally:
      for file in files:
        os.close(file)

  def wait(self, seconds: float) -> int | None:
    """Waits for the program to end. Returns its exit code, None if it is still running.

    Raises:
      SandboxError: the program could not be isolated, so it did not run.
    """
    try:
      self.process.wait(seconds)
    except subprocess.TimeoutExpired:
      return None
    self._check()
    return self.process.returncode

  def _check(self):
    if self.process.returncode == isolation.FAILED:
      raise SandboxError(f"a program cannot be isolated: {self.output(300)}")

  def output(self, limit: int) -> str:
    """The first `limit` bytes of the standard output so far."""
    return os.pread(self.stdout, limit, 0).decode(errors="replace")

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:  # the group includes the namespace's first process, which takes all others with it
      os.killpg(self.process.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
    self.process.wait()
    control_group.remove(self.group)
    try:
      if kind is None:
        self._check()
    finally:
      os.close(self.stdout)


def python_folders() -> list[str]:
  """The folders that a Python program needs."""
  places = ["/usr", "/lib", "/lib32", "/lib64", "/bin", sys.base_prefix, sys.prefix]
  places += [os.path.dirname(os.path.realpath(sys.executable))]
  places += [sysconfig.get_paths()[name] for name in ("purelib", "platlib")]
  return outermost(places)


def outermost(places: list[str]) -> list[str]:
  """The existing folders of a list, without those inside of an earlier one."""
  folders = []
  for place in map(os.path.normpath, places):
    inside = any(place == folder or place.startswith(folder + "/") for folder in folders)
    if os.path.exists(place) and place != "/" and not inside:
      folders.append(place)
  return folders
