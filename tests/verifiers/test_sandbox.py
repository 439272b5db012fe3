"""What a program in a sandbox can use and reach, with honest programs beside every attack."""

import contextlib
import os
import pathlib
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from poise_jax.verifiers import Check, verify
from poise_jax.verifiers.base import SandboxError
from poise_jax.verifiers.sandbox import Sandbox, isolation, syscalls
from poise_jax.verifiers.sandbox import sandbox as sandbox_lib

FILTERED = pytest.mark.skipif(not syscalls.call_filter(), reason="needs libseccomp")
CALL = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
  result = libc.syscall(number[os.uname().machine], *arguments)
  return 'stopped' if result < 0 else 'reached'
"""


def run(program, seconds=20, **limits):
  """The output of a program in a sandbox, errors included."""
  with Sandbox(program, errors=True, **limits) as sandbox:
    assert sandbox.wait(seconds) is not None, "the program is still running"
    return sandbox.output(10_000).strip()


# The kernel's interfaces.


@FILTERED
@pytest.mark.parametrize(
  "x86_64,aarch64,arguments",
  [
    pytest.param(29, 194, "0, 1 << 30, 0o1600", id="shmget"),
    pytest.param(68, 186, "0, 0o1600", id="msgget"),
    pytest.param(64, 190, "0, 8, 0o1600", id="semget"),
    pytest.param(319, 279, "b'x', 0", id="memfd_create"),
    pytest.param(447, 447, "0", id="memfd_secret"),
    pytest.param(425, 425, "8, ctypes.create_string_buffer(120)", id="io_uring_setup"),
    pytest.param(323, 282, "1", id="userfaultfd"),
    pytest.param(250, 219, "0, -3, 1", id="keyctl"),
    pytest.param(248, 217, "b'user', b'name', b'value', 5, -3", id="add_key"),
    pytest.param(321, 280, "0, ctypes.create_string_buffer(72), 72", id="bpf"),
    pytest.param(298, 241, "ctypes.create_string_buffer(128), 0, -1, -1, 0", id="perf_event_open"),
    pytest.param(308, 268, "os.open('/', os.O_PATH), 0", id="setns"),
    pytest.param(444, 444, "None, 0, 1", id="landlock_create_ruleset"),
    pytest.param(240, 180, "b'q', 0o102, 0o600, None", id="mq_open"),
    pytest.param(135, 92, "0x0040000", id="personality"),
  ],
)
def test_a_system_call_that_no_honest_program_needs(x86_64, aarch64, arguments):
  numbers = {"x86_64": x86_64, "aarch64": aarch64}
  assert run(f"{CALL}\nprint(call({numbers}, {arguments}))") == "stopped"


@FILTERED
@pytest.mark.parametrize("family", ["AF_VSOCK", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_ALG"])
def test_only_local_sockets(family):
  program = """
import socket
try:
  socket.socket(getattr(socket, FAMILY), socket.SOCK_SEQPACKET if 'ALG' in FAMILY else 1)
  print('reached')
except OSError:
  print('stopped')
a, b = socket.socketpair()
a.send(b'honest')
print(b.recv(10).decode())
"""
  assert run(program.replace("FAMILY", repr(family))) == "stopped\nhonest"


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("how", ["unshare", "clone", "clone3"])
def test_no_capability_comes_back_in_a_further_user_namespace(monkeypatch, filtered, how):
  """Neither with the filter of system calls nor, by max_user_namespaces, without."""
  if not filtered:
    monkeypatch.setattr(sandbox_lib, "call_filter", lambda: "")
  user = 0x10000000
  calls = {
    "unshare": f"call({{'x86_64': 272, 'aarch64': 97}}, {user})",
    "clone": f"call({{'x86_64': 56, 'aarch64': 220}}, {user} | 17, 0, 0, 0, 0)",
    "clone3": f"call(dict.fromkeys(['x86_64', 'aarch64'], 435), (ctypes.c_uint64 * 8)({user}), 64)",
  }
  program = f"{CALL}\nresult = {calls[how]}\n"
  program += (
    "mounted = libc.mount(b'tmpfs', b'/sandbox', b'tmpfs', 0, None)\nprint(result, mounted)"
  )
  assert run(program) == "stopped -1"


def test_the_filter_is_optional_and_its_absence_changes_nothing_for_honest_programs(monkeypatch):
  monkeypatch.setattr(syscalls, "pyseccomp", None)
  assert syscalls.call_filter.__wrapped__() == ""


HONEST = {
  "threads": "import threading\nt = threading.Thread(target=print, args=(7,)); t.start(); t.join()",
  "asyncio": "import asyncio\nasync def f():\n  await asyncio.sleep(0.01)\n  print(7)\n"
  "asyncio.run(f())",
  "child": "import subprocess, sys\n"
  "print(subprocess.check_output([sys.executable, '-c', 'print(7)'], text=True))",
  "shell": "import os\nprint(os.popen('echo 7').read())",
  "fork": "import os\na, b = os.pipe()\nif not os.fork(): os.write(b, b'7'); os._exit(0)\n"
  "print(os.read(a, 1).decode())",
  "multiprocessing": "import multiprocessing as m\na, b = m.Pipe()\n"
  "p = m.get_context('fork').Process(target=b.send, args=(7,))\np.start(); print(a.recv())",
  "files": "import os, shutil\nos.mkdir('d'); open('d/x', 'w').write('7')\n"
  "shutil.copy('d/x', 'y'); os.rename('y', 'z'); print(open('z').read()); shutil.rmtree('d')",
  "database": "import sqlite3\nc = sqlite3.connect('f')\nc.execute('create table t(x)')\n"
  "c.commit(); print(7)",
  "alarm": "import signal, time\nsignal.signal(signal.SIGALRM, lambda *a: print(7))\n"
  "signal.setitimer(signal.ITIMER_REAL, 0.05); time.sleep(0.2)",
  "numpy": "import numpy as np\nprint(round(np.linalg.solve(np.eye(300), np.full(300, 7.0))[5]))",
  "mapping": "import mmap\nm = mmap.mmap(-1, 4096); m[0] = 7; print(m[0])",
  "recursion": "import sys\nsys.setrecursionlimit(20000)\n"
  "def f(n): return 7 if not n else f(n - 1)\nprint(f(15000))",
  "random": "import os, secrets, random\nprint(len(os.urandom(3)) + len(secrets.token_bytes(4)))",
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_run(name):
  assert run(HONEST[name]) == "7"


# Memory and files.


@FILTERED
def test_no_memory_beyond_the_limit():
  """Neither in System V segments nor in anonymous files, which no limit of a process counts."""
  program = f"""{CALL}
import mmap
total = 0
for i in range(40):
  shared = libc.syscall({{'x86_64': 29, 'aarch64': 194}}[os.uname().machine], 0, 1 << 27, 0o1600)
  try:
    file = os.memfd_create('x')
    os.write(file, bytes(1 << 20))
    total += 1
  except OSError:
    pass
  total += (shared >= 0) * 128
print(total)
"""
  assert run(program) == "0"
  assert run("x = bytearray(200 << 20); print(len(x) >> 20)") == "200"


def test_what_is_mounted_below_a_lent_folder_is_read_only(tmp_path, monkeypatch):
  if os.geteuid():
    pytest.skip("needs root to mount a file system")
  inner = tmp_path / "inner"
  inner.mkdir()
  tmp_path.chmod(0o755)
  subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(inner)], check=True)
  try:
    inner.chmod(0o777)
    (inner / "file").write_text("read")
    (inner / "file").chmod(0o666)
    folders = sandbox_lib.python_folders
    monkeypatch.setattr(sandbox_lib, "python_folders", lambda: [*folders(), str(tmp_path)])
    program = f"""
for path, mode in (('{inner}/file', 'r'), ('{inner}/file', 'w'), ('{inner}/new', 'w')):
  try: print(open(path, mode).read() if mode == 'r' else open(path, mode))
  except OSError as error: print(error.strerror)
"""
    assert run(program) == "read\nRead-only file system\nRead-only file system"
    assert os.listdir(inner) == ["file"]
  finally:
    subprocess.run(["umount", str(inner)], check=True)


# Two at once, and sandboxes that fail.


def test_sandboxes_side_by_side_do_not_share_limits_or_users():
  program = """
import threading, time
threads = [threading.Thread(target=time.sleep, args=(1,)) for _ in range(6)]
for thread in threads: thread.start()
print('started', flush=True)
"""
  with contextlib.ExitStack() as stack:
    boxes = [stack.enter_context(Sandbox(program, errors=True)) for _ in range(4)]
    time.sleep(0.6)
    users = [_user_of_the_first_process(box.process.pid) for box in boxes]
    for box in boxes:
      assert box.wait(20) == 0
      assert box.output(1000).strip() == "started"
  if not os.geteuid():
    assert len(set(users)) == 4 and min(users) >= 1000


def _user_of_the_first_process(pid):
  """The user id of the child of a sandbox's outermost process."""
  (child,) = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
  status = pathlib.Path(f"/proc/{child}/status").read_text()
  return int(status.partition("Uid:")[2].split()[0])


def test_numpy_answers_judged_at_once_are_right():
  check = Check("code", {"tests": ["assert f(3) == 6"]})
  program = "def f(n): return int((np.ones((n, n)) @ np.eye(n)).sum()) - n"
  answer = f"```python\nimport numpy as np\n{program}\n```"
  with ThreadPoolExecutor(4) as pool:
    assert [v.score for v in pool.map(lambda _: verify(check, answer), range(4))] == [1] * 4


def test_a_program_cannot_pretend_that_its_sandbox_failed():
  with Sandbox(f"import os; os._exit({isolation.FAILED})") as sandbox:
    assert sandbox.wait(10) == isolation.FAILED - 1
  check = Check("code", {"tests": ["assert f(2) == 4"]})
  verdict = verify(check, f"```\nimport os; os._exit({isolation.FAILED})\n```")
  assert (verdict.score, verdict.status) == (0, "ok")


@pytest.mark.parametrize("fault", ["folders", "processes"])
def test_a_sandbox_that_cannot_be_set_up_is_an_error_not_a_zero(monkeypatch, fault):
  if fault == "folders":
    monkeypatch.setattr(sandbox_lib, "python_folders", lambda: ["/proc/1"])
  with pytest.raises(SandboxError, match="cannot be isolated: .*Error"):
    with Sandbox("print(1)", processes=8 if fault == "folders" else -3) as sandbox:
      sandbox.wait(10)
  with pytest.raises(SandboxError, match="cannot be isolated"):
    with Sandbox("print(1)", processes=8 if fault == "folders" else -3) as sandbox:
      sandbox.process.wait(10)  # as for a program whose end nobody waits for
