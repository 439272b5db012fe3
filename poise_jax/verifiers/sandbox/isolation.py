"""Isolation of this process: Linux namespaces, a root of its own, limits, a filter of system calls.

Standard library only: `launch.py` runs without site-packages. A process that has called `enter` has

- a mount namespace with a new root: some folders read-only, and an empty work folder of limited
  size in memory; no /proc, /etc, /home or /tmp
- a network namespace without interfaces, and namespaces for System V objects and the host name
- a process namespace: no other process is visible, and all processes die with the first
- a user id that no other process has, if started by root; else a user namespace of its own
- no capabilities, and a user namespace in which no further one can be made
- a session keyring of its own, and limits on memory, CPU time, file size, processes and open files
- a filter that allows only the system calls that Python programs need (see syscalls.py)
"""

import ctypes
import os
import resource
import signal
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000
_NEWIPC, _NEWUTS = 0x8000000, 0x4000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_REPEATED = 1 | 2 | 4 | 8 | 1024 | 2048 | (1 << 21)  # mount flags that a remount must repeat
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_SETATTR = -100, 0x8000, 442  # this number is every machine's
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_KEYCTL = {"x86_64": 250, "aarch64": 219}
_PDEATHSIG, _DUMPABLE, _SECCOMP, _CAPBSET_DROP, _CHILD_SUBREAPER, _NO_NEW_PRIVS = (
  1,
  4,
  22,
  24,
  36,
  38,
)
_ROOT = "/proc"  # mount point of the new root: it exists everywhere and holds nothing of Python's
WORK = "/sandbox"
FAILED = 120  # exit code of a process that could not isolate itself; programs cannot give it
# Libraries that start a thread per core would reach the limit of processes on large machines.
THREADS = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM", "BLIS")
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in THREADS}


def enter(folders: list[str], disk: int, call_filter: str, parent: int):
  """Isolates the calling process, which returns as the first of a new process namespace.

  The process that called stays outside: it waits, and ends with the exit code of the first.

  Args:
    folders: absolute paths of folders that stay readable.
    disk: size of the work folder in bytes.
    call_filter: a compiled filter as hexadecimal digits, "" for none.
    parent: id of the process with which this one dies.

  Raises:
    OSError: this machine does not allow the isolation.
  """
  was_root = os.geteuid() == 0
  die_with(parent)
  user = _free_user() if was_root else 0
  if not was_root:
    _user_namespace()
  _call("unshare", _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS)
  first = os.fork()
  if first:
    code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    os._exit(code if code >= 0 else 128 - code)
  _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
  # A new session keyring; where that is forbidden, so is all use of keyrings.
  _LIBC.syscall(_KEYCTL[os.uname().machine], 1, None)
  settings = os.open("/proc/sys/user", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
  _new_root(folders, disk)
  _drop_rights(user, settings)
  os.close(settings)
  _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user clears it
  _call("prctl", _DUMPABLE, 0, 0, 0, 0)
  if call_filter:
    _filter_calls(bytes.fromhex(call_filter))


def die_with(parent: int):
  """Makes this process die with the one that started it; only Linux has this."""
  if sys.platform == "linux":
    _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
      os._exit(FAILED)


def adopt_orphans():
  """Makes this process the parent of its descendants' orphans; only Linux has this.

  Otherwise the first process of a container gets them, which may not wait for them.
  """
  if sys.platform == "linux":
    _call("prctl", _CHILD_SUBREAPER, 1, 0, 0, 0)


def limit(memory: int, disk: int, processes: int, cpu: int):
  """Sets the limits of this process and its children; 0 leaves a limit as it is.

  Args:
    memory: bytes that each process maps.
    disk: bytes of each file.
    processes: processes at one time, threads included, besides the namespace's first.
    cpu: seconds of CPU time of each process.
  """
  for name, value in (
    ("AS", memory),
    ("FSIZE", disk),
    ("CPU", cpu),
    ("NPROC", processes + 1),
    ("NOFILE", 64),
    ("STACK", 16 << 20),
  ):
    if value:
      resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


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


def _free_user():
  """A user id that no other process has: the limits of one sandbox do not count for another."""
  with open("/proc/self/uid_map") as file:
    inside, _, count = map(int, file.read().split()[-3:])
  end = min(inside + count, 1 << 31)
  start = max(end - (1 << 28), (inside + end) // 2)  # of all users, the range that systemd leaves
  return start + int.from_bytes(os.urandom(8), "little") % (end - start)


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
    _mount_read_only(place, target)
  os.makedirs(_ROOT + "/dev", exist_ok=True)
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


def _mount_read_only(place, target):
  """Shows a folder at another place, read-only together with all that is mounted below it."""
  _mount(place, target, flags=_BIND | _REC)
  attributes = (ctypes.c_uint64 * 4)(_RDONLY | _NOSUID)
  try:
    path = target.encode()
    _call("syscall", _MOUNT_SETATTR, _AT_FDCWD, path, _AT_RECURSIVE, attributes, 32)
    return
  except OSError:  # Linux before 5.12: without what is mounted below
    _call("umount2", target.encode(), 2)
  _mount(place, target, flags=_BIND)
  flags = os.statvfs(target).f_flag & _REPEATED & ~4096
  _mount(None, target, flags=_REMOUNT | _BIND | _RDONLY | _NOSUID | flags)


def _drop_rights(user, settings):
  """Gives up all capabilities and the means of gaining any.

  Args:
    user: the user id to switch to, 0 to stay.
    settings: descriptor of /proc/sys/user, the limits of user namespaces.
  """
  _drop_capabilities()
  if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
  try:  # an inner user namespace, in which no other can be made: none gives capabilities back
    _call("unshare", _NEWUSER)
    name = "max_user_namespaces"
    with open(os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=settings), "w") as file:
      file.write("0")
  except OSError:
    pass  # not allowed here, so no program can do it either; or the filter alone stops it
  _drop_capabilities()  # a user namespace begins with all of them
  header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
  _call("capset", header, nothing)
  _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)


def _drop_capabilities():
  """Removes all capabilities from the set that this process could ever have."""
  for capability in range(64):
    _LIBC.prctl(_CAPBSET_DROP, capability, 0, 0, 0)


class _FilterProgram(ctypes.Structure):
  """struct sock_fprog of linux/filter.h."""

  _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def _filter_calls(code):
  """Installs a compiled filter for the system calls of this process and its children."""
  program = _FilterProgram(len(code) // 8, code)
  _call("prctl", _SECCOMP, 2, ctypes.byref(program), 0, 0)
