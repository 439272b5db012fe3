"""Runs a Python program where it can do no harm, in Linux namespaces. Standard library only.

`Sandbox` starts this file as a program (`python -I -S sandbox.py FD`), which builds an empty file
system around itself, gives up its privileges and then runs the given program with:

- a mount namespace with a new root: Python's own folders read-only, and an empty work folder of
  limited size in memory; no /proc, /etc, /home or /tmp
- a network namespace without interfaces
- a process namespace: no other process is visible, and all processes die with the first
- a user id of its own if started by root, else an unprivileged one in a user namespace
- limits on memory, CPU time, file size, processes and open files; an empty environment
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import sysconfig
import types

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000
_NEWIPC, _NEWUTS = 0x8000000, 0x4000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_REPEATED = 1 | 2 | 4 | 8 | 1024 | 2048 | (1 << 21)  # mount flags that a remount must repeat
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS, _CAPBSET_DROP = 1, 4, 38, 24
_ROOT = "/proc"  # mount point of the new root: it exists everywhere and holds nothing of Python's
WORK = "/sandbox"


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
      memory: limit of the memory that each process maps, in bytes.
      disk: limit of the work folder, of each file and of the output, in bytes.
      processes: limit of processes at one time, threads included.
      cpu: limit of the CPU time of each process, in seconds.
      errors: whether the output includes standard error, which is discarded otherwise.
    """
    job = dict(program=program, data=data, pipe=pipe, memory=memory, disk=disk, cpu=cpu)
    paths = [sysconfig.get_paths()[name] for name in ("purelib", "platlib")]
    job.update(processes=processes, parent=os.getpid(), folders=_folders(), paths=paths)
    self.stdout = os.memfd_create("stdout")
    files = [os.memfd_create("job"), os.memfd_create("stdin")]
    try:
      for file, content in zip(files, (json.dumps(job).encode(), stdin), strict=True):
        with open(file, "wb", closefd=False) as out:
          out.write(content)
        os.lseek(file, 0, os.SEEK_SET)
      self.process = subprocess.Popen(
        [sys.executable, "-I", "-S", os.path.abspath(__file__), str(files[0])],
        stdin=files[1],
        stdout=self.stdout,
        stderr=self.stdout if errors else subprocess.DEVNULL,
        pass_fds=[files[0], *([pipe] if pipe is not None else [])],
        env={},
        cwd="/",
        start_new_session=True,
      )
    finally:
      for file in files:
        os.close(file)

  def wait(self, seconds: float) -> int | None:
    """Waits for the program to end. Returns its exit code, None if it is still running."""
    try:
      return self.process.wait(seconds)
    except subprocess.TimeoutExpired:
      return None

  def output(self, limit: int) -> str:
    """The first `limit` bytes of the standard output so far."""
    return os.pread(self.stdout, limit, 0).decode(errors="replace")

  def __enter__(self):
    return self

  def __exit__(self, *_):
    try:  # the group includes the namespace's first process, which takes all others with it
      os.killpg(self.process.pid, signal.SIGKILL)
    except ProcessLookupError:
      pass
    self.process.wait()
    os.close(self.stdout)


def _folders() -> list[str]:
  """The folders that a Python program needs."""
  places = ["/usr", "/lib", "/lib32", "/lib64", "/bin", sys.base_prefix, sys.prefix]
  places += [os.path.dirname(os.path.realpath(sys.executable))]
  folders = []
  for place in places:
    place = os.path.normpath(place)
    if os.path.exists(place) and place != "/" and place not in folders:
      folders.append(place)
  return folders


def _call(name, *arguments):
  """Calls a function of libc; raises OSError if it fails."""
  if getattr(_LIBC, name)(*arguments) < 0:
    code = ctypes.get_errno()
    raise OSError(code, f"{name}: {os.strerror(code)}")


def _mount(source, target, kind=None, flags=0, options=None):
  _call(
    "mount",
    *(x and x.encode() for x in (source, target, kind)),
    flags,
    options and options.encode(),
  )


def _drop_user():
  """Switches from root to an unused user id."""
  os.setgroups([])
  fresh = 1_000_000_000 + os.getpid()
  try:
    os.setresgid(fresh, fresh, fresh)
    os.setresuid(fresh, fresh, fresh)
  except OSError:  # root of a user namespace that has no such id
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def _user_namespace():
  """Maps this user to a new user namespace, where it has all privileges."""
  uid, gid = os.getuid(), os.getgid()
  _call("unshare", _NEWUSER)
  for name, content in (
    ("setgroups", "deny"),
    ("uid_map", f"1000 {uid} 1"),
    ("gid_map", f"1000 {gid} 1"),
  ):
    with open(f"/proc/self/{name}", "w") as file:
      file.write(content)


def _new_root(folders, disk):
  """Builds an empty file system with a work folder and some of the old folders, read-only."""
  _mount(None, "/", flags=_REC | _PRIVATE)
  _mount("tmpfs", _ROOT, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
  for place in folders:
    target = _ROOT + place
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(place):
      os.symlink(os.readlink(place), target)
      continue
    os.makedirs(target, exist_ok=True)
    _mount(place, target, flags=_BIND | _REC)
    flags = os.statvfs(target).f_flag & _REPEATED & ~4096
    _mount(None, target, flags=_REMOUNT | _BIND | _RDONLY | _NOSUID | flags)
  os.mkdir(_ROOT + "/dev")
  for device in ("null", "zero", "urandom", "random"):
    target = f"{_ROOT}/dev/{device}"
    os.close(os.open(target, os.O_CREAT, 0o644))
    _mount(f"/dev/{device}", target, flags=_BIND)
  os.mkdir(_ROOT + WORK)
  _mount("tmpfs", _ROOT + WORK, "tmpfs", _NOSUID | _NODEV, f"size={disk},nr_inodes=1000,mode=777")
  _mount(None, _ROOT, flags=_REMOUNT | _RDONLY | _NOSUID | _NODEV)
  os.chdir(_ROOT)
  _call("syscall", _PIVOT_ROOT[os.uname().machine], b".", b".")
  _call("umount2", b".", 2)  # detaches the old root
  os.chdir(WORK)


def _drop_rights(was_root):
  """Gives up all capabilities and the means of gaining any."""
  for capability in range(64):
    _LIBC.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
  if was_root:
    _drop_user()
  else:
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capset", header, nothing)
  _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)


def _limit(job):
  """Sets the limits of this process and its children."""
  for name, value in (
    ("AS", job["memory"]),
    ("FSIZE", job["disk"]),
    ("CPU", job["cpu"]),
    ("NPROC", job["processes"] + 1),  # plus the namespace's first process
    ("NOFILE", 64),
    ("CORE", 0),
    ("STACK", 16 << 20),
  ):
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def main(descriptor: int):
  """Runs a job in a sandbox; exits with code 120 if the sandbox cannot be made."""
  with open(descriptor) as file:
    job = json.load(file)
  try:
    was_root = os.geteuid() == 0
    # First of all: this process dies with the one that started it.
    _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != job["parent"]:
      os._exit(120)
    if not was_root:
      _user_namespace()
    _call("unshare", _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS)
    first = os.fork()
    if first:
      code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
      os._exit(code if code >= 0 else 128 - code)
    _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _new_root(job["folders"], job["disk"])
    _drop_rights(was_root)
    _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user clears it
    _call("prctl", _DUMPABLE, 0, 0, 0, 0)
    second = os.fork()
  except OSError as error:
    print(f"sandbox: {error}", file=sys.stderr)
    os._exit(120)
  if second:  # this is the namespace's first process: when it ends, all others do
    while True:
      ended, status = os.wait()
      if ended == second:
        os._exit(min(os.waitstatus_to_exitcode(status) % 256, 119))
  try:
    _limit(job)
  except (OSError, ValueError) as error:
    print(f"sandbox: {error}", file=sys.stderr)
    os._exit(120)
  sys.argv, sys.path = ["main.py"], [*sys.path[1:], *job["paths"]]
  module = sys.modules["__main__"] = types.ModuleType("__main__")
  vars(module).update(DATA=job["data"], PIPE=job["pipe"])
  exec(compile(job["program"], "main.py", "exec"), vars(module))


if __name__ == "__main__":
  main(int(sys.argv[1]))
