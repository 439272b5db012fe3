"""Programs against tests, and every attack that the sandbox claims to stop."""

import os
import pathlib
import time

import pytest

from poise_jax.verifiers import Check, UnusableError, Verdict, verify
from poise_jax.verifiers import code as code_lib
from poise_jax.verifiers.sandbox import Sandbox, isolation
from poise_jax.verifiers.sandbox import sandbox as sandbox_lib

SQUARE = {"tests": ["assert f(2) == 4", "assert f(3) == 9"]}


def judge(program, reference=SQUARE, **options):
  return verify(Check("code", reference, options), f"Here it is:\n```python\n{program}\n```\nDone.")


def run(program, seconds=10, **limits):
  """The output of a program in a sandbox, errors included."""
  with Sandbox(program, errors=True, **limits) as sandbox:
    assert sandbox.wait(seconds) is not None, "the program is still running"
    return sandbox.output(10_000).strip()


# Right and wrong programs.


@pytest.mark.parametrize(
  "program,score,partial",
  [
    ("def f(x):\n  return x * x", 1, 1),
    ("f = lambda x: x ** 2\nprint('noise')\nif __name__ == '__main__': input()", 1, 1),
    ("import numpy as np\ndef f(x): return np.int64(x) ** 2", 1, 1),
    ("def f(x):\n  return x + 2", 0, 0.5),
    ("def f(x): return str(x * x)", 0, 0),
    ("def g(x): return x * x", 0, 0),
    ("def f(x) return x", 0, 0),
    ("raise ValueError", 0, 0),
  ],
)
def test_functions(program, score, partial):
  assert judge(program).score == score
  assert judge(program, partial=True).score == partial


def test_values_of_all_kinds_pass_between_program_and_tests():
  program = """
import math
from collections import Counter
class Stack:
  def __init__(self, items=()): self.items = list(items)
  def push(self, item): self.items.append(item)
  def pop(self): return self.items.pop()
  def __len__(self): return len(self.items)
  def __str__(self): return f'Stack{self.items}'
def same(x): return x
def sort(x): x.sort()
def apply(g, *args, **kwargs): return g(*args, **kwargs)
def count(text): return Counter(text)
def naturals():
  n = 0
  while True:
    yield n
    n += 1
def fail(): raise KeyError('k')
"""
  tests = [
    "for v in (1, -2.5, True, None, 'é\\n', [1, [2]], (1, (2, 3)), {1: (2,)}, {1, 2}, b'x', 1j,"
    " frozenset({1}), float('inf'), 10 ** 5000): assert same(v) == v and type(same(v)) is type(v)",
    "x = [3, 1]; assert sort(x) is None; assert x == [1, 3]",
    "assert apply(lambda a, b: a - b, 5, b=3) == 2",
    "s = Stack([1]); s.push(2); assert (len(s), str(s), s.pop()) == (2, 'Stack[1, 2]', 2)",
    "assert count('aab') == {'a': 2, 'b': 1}",
    "import itertools; assert list(itertools.islice(naturals(), 3)) == [0, 1, 2]",
    "try:\n  fail()\n  assert False\nexcept KeyError: pass",
    "assert math.isclose(same(0.1) + same(0.2), 0.3)",
    "def check(candidate):\n  assert candidate(7) == 7",
  ]
  for i, source in enumerate(tests):
    names = ["sort", "apply", "Stack", "count", "naturals", "fail"]
    reference = {"tests": [source], "entry_point": "same", "names": names}
    assert judge(program, reference).score == 1, tests[i]


@pytest.mark.parametrize(
  "program,score",
  [
    ("n = int(input())\nprint(n * n)", 1),
    ("n = int(input())\nprint(n * n, end='\\n\\n')", 1),
    ("n = int(input())\nprint(n * n + 1)", 0),
    ("print(4)", 0),
    ("print(4)\nimport os\nos._exit(0)", 0),
    ("", 0),
  ],
)
def test_standard_input_and_output(program, score):
  assert judge(program, {"inputs": ["2\n", "3"], "outputs": ["4", "9\n"]}).score == score


@pytest.mark.parametrize(
  "end,score",
  [
    ("", 1),
    ("\nexit()", 1),
    ("\nimport sys\nsys.exit(0)", 1),
    ("\nsys.exit()", 1),  # a usual import
    ("\nraise RuntimeError('late')", 0),
    ("\nexit(3)", 0),
    ("\nimport os\nos._exit(1)", 0),
    ("\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", 0),
    ("\nundefined", 0),
  ],
)
def test_a_run_must_end_well(end, score):
  reference = {"inputs": ["5", "6"], "outputs": ["10", "12"]}
  assert judge(f"print(2 * int(input()), flush=True){end}", reference).score == score


def test_only_the_run_that_ends_badly_fails():
  program = "n = int(input())\nprint(n, flush=True)\nassert n != 8"
  reference = {"inputs": ["7", "8", "9", "10"], "outputs": ["7", "8", "9", "10"]}
  assert judge(program, reference, partial=True).score == 0.75


USUAL = """
class Solution:
  def spread(self, rows: List[List[int]], start: Optional[int] = None) -> Dict[str, int]:
    seen, heap = defaultdict(int), []
    for row in rows:
      heappush(heap, reduce(lambda a, b: a ^ b, row, 0))
      seen[bisect_left(sorted(row), 4)] += gcd(*row)
    best = max(accumulate(heap)) + pow(2, 3, 5) + floor(sqrt(17)) + len(deque(row))
    return Counter({ascii_lowercase[0]: best, 'n': sum(seen.values()) if best < inf else 0})
"""


def test_programs_have_the_usual_imports():
  reference = {"inputs": [[[[6, 4], [3, 3]]]], "outputs": [{"a": 11, "n": 5}], "fn_name": "spread"}
  assert judge(USUAL, reference).score == 1
  run = {"inputs": ["6 4"], "outputs": ["2 24"]}
  assert judge("a = list(map(int, input().split()))\nprint(gcd(*a), math.prod(a))", run).score == 1


@pytest.mark.parametrize(
  "program,test,score",
  [
    ("x = 1", "assert gcd(8, 12) == 4", 0),  # the usual imports are no answer
    ("from math import gcd", "assert gcd(8, 12) == 4", 1),
    ("def gcd(a, b): return a", "assert gcd(8, 12) == 8", 1),
    ("def pow(a, b): return a\ndef f(n): return 32", "assert f(2) == pow(2, 5)", 1),  # Python's own
    ("def f(n): return pow(n, -1, 7)", "assert f(3) == 5", 1),  # not that of math
    ("from __future__ import annotations\ndef f(x: No) -> Type: return x", "assert f(2) == 2", 1),
  ],
)
def test_usual_imports_are_not_names_of_the_program(program, test, score):
  assert judge(program, {"tests": [test]}).score == score


def test_a_method_that_is_named_like_a_usual_import():
  program = "class Solution:\n  def product(self, x, y): return x * y"
  assert judge(program, {"inputs": [[3, 4]], "outputs": [12], "fn_name": "product"}).score == 1
  check = {"tests": ["def check(f):\n  assert f(3, 5) == 15"], "entry_point": "Solution().product"}
  assert judge(program, check).score == 1


@pytest.mark.parametrize(
  "returned,expected,score",
  [
    ("0.1 + 0.2", 0.3, 1),
    ("[0.1 * 3, (2 / 3,)]", [0.3, [0.6666667]], 1),
    ("{'mean': [1 / 7]}", {"mean": [0.142857143]}, 1),
    ("Fraction(1, 3)", 0.3333333, 1),
    ("float('inf')", float("inf"), 1),
    ("3", 3.0, 1),
    ("0.301", 0.3, 0),
    ("[0.3, 0.3]", [0.3], 0),
    ("{'mean': 0.3}", {"median": 0.3}, 0),
    ("'0.3'", 0.3, 0),
    ("3.0000001", 3, 0),  # an integer is exact, as in printed outputs
    ("10 ** 400", 1.5, 0),
  ],
)
def test_returned_floats_are_compared_as_printed_ones_are(returned, expected, score):
  program = f"from fractions import Fraction\ndef f(): return {returned}"
  assert judge(program, {"inputs": [[]], "outputs": [expected], "fn_name": "f"}).score == score


def test_outputs_are_compared_word_by_word_and_decimals_approximately():
  assert code_lib.same_output("1 2\n3\n", "1  2 \n3")
  assert code_lib.same_output("0.333333", "0.33333333")
  assert not code_lib.same_output("0.3333", "0.3334")
  assert not code_lib.same_output("1 2\n3", "1 2 3")
  assert not code_lib.same_output("3", "3.0")
  assert code_lib.same_output("2e-05", "2.0000000001e-05")
  assert not code_lib.same_output("2e-05", "2.1e-05")


def test_calls_of_a_named_function_or_method():
  reference = {"inputs": [[[2, 1], 3], [[], 0]], "outputs": [[1, 2, 3], [[0]]], "fn_name": "f"}
  assert judge("def f(x, y): return tuple(sorted([*x, y]))", reference).score == 1
  assert judge("class Solution:\n  def f(self, x, y): return sorted([*x, y])", reference).score == 1
  assert judge("def f(x, y): return x", reference).score == 0


@pytest.mark.parametrize(
  "response", ["", "I cannot.", "```python\n```", "```\n" + "x=1\n" * 30_000 + "```"]
)
def test_a_response_without_a_program_is_unparsable(response):
  assert verify(Check("code", SQUARE), response) == Verdict(0.0, "unparsable")


RIGHT, WRONG = "def f(x):\n  return x * x", "def f(x):\n  return 0"
PYTHON = f"```python\n{RIGHT}\n```"
DOCSTRING = "def f(x):\n    '''Squares.\n\n    ```\n    f(2)\n    ```\n    '''\n    return x * x"


@pytest.mark.parametrize(
  "response,score",
  [
    (RIGHT, 1),
    (f"```python\n{WRONG}\n```\nNo:\n```\n{RIGHT}\n```", 1),
    (f"{PYTHON}\nNo:\n```python\n{WRONG}\n```", 0),
    (f"{PYTHON}\nNo:\n```py\ndef f(x) return x\n```", 0),  # the last program, though broken
    (f"```bash\npip install numpy\n```\nThen\n{PYTHON}", 1),
    (f"```text\n2 -> 4\n```\n{PYTHON}\n```json\n[4, 9]\n```", 1),
    (f"{PYTHON}\nRun it:\n```sh\npython f.py\n```", 1),
    (f"{PYTHON}\nIt prints\n```\n4\n```", 1),
    (f"{PYTHON}\nfor example\n```python\nprint(f(2))\n```", 1),
    (f"{PYTHON}\nor\n```python\n>>> f(2)\n4\n```", 1),
    (f"```python\n{WRONG}\n```\nBetter:\n```python\nf = lambda x: x ** 2\n```", 1),
    (f"```cpp\nint f(int x);\n```\n```Python3\n{RIGHT}\n```", 1),
    (f'```python title="f.py" linenos\n{RIGHT}\n```', 1),
    (f"```{{.python .numberLines}}\n{RIGHT}\n```", 1),
    (f"~~~python\n{RIGHT}\n~~~", 1),
    (f"~~~~\n{RIGHT}\n~~~~", 1),
    (PYTHON.replace("\n", "\r\n"), 1),
    ("1. Square it:\n" + "\n".join("     " + line for line in PYTHON.split("\n")), 1),
    ("- so\n\t```python\n\tdef f(x):\n\t  return x * x\n\t```", 1),
    (f"Here: {PYTHON}", 1),
    (f"```python\n{RIGHT}```", 1),
    (f"```python\n{RIGHT}", 1),  # the answer ended inside the block
    (f"{PYTHON}\n```", 1),
    (f"```python\n{WRONG}\n```python\n{RIGHT}\n```", 1),
    (f"Write it between ``` and ``` marks.\n{PYTHON}", 1),
    (f"```python\n{DOCSTRING}\n```", 1),
    ("```bash\necho 4\n```", 0),
    ("```json\n4\n```\n" + RIGHT, 0),
  ],
)
def test_the_program_is_the_last_one_in_python_or_a_bare_response(response, score):
  assert verify(Check("code", SQUARE), response).score == score


CALL = dict(fn_name="join")
JOIN = "def join(words, mark, n=1):\n  return mark.join(words * n)"


@pytest.mark.parametrize(
  "reference",
  [
    dict(inputs=[[["a", "b"], "-"]], outputs=["a-b"], **CALL),
    dict(inputs=['["a", "b"]\n"-"'], outputs=['"a-b"'], **CALL),
    dict(inputs=['[\n  "a",\n  "b"\n]\n"-"\n2\n'], outputs=['"a-b-a-b"'], **CALL),
    dict(inputs=['["a"] "-"', [["b", "c"], "-"]], outputs=['"a"', "b-c"], **CALL),
    '{"inputs": [[["a", "b"], "-"]], "outputs": ["a-b"], "fn_name": "join"}',
  ],
)
def test_calls_as_data_and_as_json_text(reference):
  assert judge(JOIN, reference).score == 1
  assert judge(JOIN.replace("mark.join", "'+'.join"), reference).score == 0


@pytest.mark.parametrize(
  "reference,message",
  [
    ({}, "needs either tests, or as many outputs as inputs"),
    ({"tests": []}, "needs either tests"),
    ({"inputs": ["1"], "outputs": []}, "needs either tests"),
    (5, "must be an object, got 5"),
    ("f(2) == 4", "is not JSON"),
    ({"tests": ["assert f(2) = 4"]}, "not Python .*assert f"),
    ({"tests": ["assert f(2)"], "setup": "import"}, "not Python .*'import'"),
    ({"tests": ["def check(f):\n  assert f(2) == 4"]}, "no entry_point"),
    ({"tests": ["assert f(1)", "# later"]}, "calls nothing: '# later'"),
    ({"tests": [""]}, "calls nothing: ''"),
    ({"tests": [4]}, "not text: 4"),
    ({"tests": {"a": "assert f(2)"}}, "tests that are not a list"),
    ({"inputs": ["2"], "outputs": [None]}, "test 1 whose input or output is not text: None"),
    ({"inputs": [{"n": 2}], "outputs": ["4"]}, "not text"),
    (dict(inputs=[[2], 3], outputs=[4, 9], **CALL), "input 2 3, which is not a list"),
    (dict(inputs=[[2], {"n": 3}], outputs=[4, 9], **CALL), "input 2 .*is not a list"),
    (dict(inputs=["[2]", "[3"], outputs=["2", "3"], **CALL), "input 2 .*is not JSON"),
    (dict(inputs=["1,2"], outputs=["3"], **CALL), "input 1 '1,2', which is not JSON"),
    (dict(inputs=["'a'"], outputs=["3"], **CALL), "is not JSON"),
    (dict(inputs=["2"], outputs=["yes"], **CALL), "output 1 'yes', which is not JSON"),
    (dict(inputs=["2"], outputs=["4 5"], **CALL), "which is not one JSON value"),
    (dict(inputs=[[2]], outputs=[{4}], **CALL), "test 1 that is not plain data"),
    ({"inputs": [[2]], "outputs": [4], "fn_name": "two words"}, "'two words', which is no name"),
    ({"inputs": [[2]], "outputs": [4], "fn_name": 7}, "names the function 7"),
  ],
)
def test_tests_that_nothing_can_pass_or_everything_passes_are_an_error(reference, message):
  with pytest.raises(UnusableError, match=f"the reference of verifier code .*{message}"):
    verify(Check("code", reference), "")


def test_no_program_runs_where_sandboxes_are_not_allowed(monkeypatch):
  monkeypatch.setattr(code_lib, "Sandbox", lambda *a, **k: Sandbox("import os; os._exit(120)", **k))
  code_lib.check_sandbox.cache_clear()
  with pytest.raises(
    UnusableError, match="cannot isolate programs on this machine, so it runs none"
  ):
    judge("def f(x): return x * x")
  code_lib.check_sandbox.cache_clear()


# Attempts to score without right values.


@pytest.mark.parametrize(
  "program",
  [
    "import os; os._exit(0)",
    "import sys; sys.exit(0)",
    "def f(x):\n  import os; os._exit(0)",
    "print('11', flush=True)",
    "print('2 of 2 tests passed')\nimport os\nos._exit(0)",
    "import os\nfor fd in range(1, 64):\n  try: os.write(fd, b'11')\n  except OSError: pass\n",
    "class Same:\n  def __eq__(self, other): return True\n  def __bool__(self): return True\n"
    "def f(x): return Same()",
    "class Int(int):\n  def __eq__(self, other): return True\ndef f(x): return Int(0)",
    "import builtins\nbuiltins.AssertionError = None\ndef f(x): return 0",
    "import sys, gc\nfor frame in sys._current_frames().values():\n"
    "  while frame: frame.f_globals['passed'] = True; frame = frame.f_back\n"
    "def f(x): return 0",
    "import threading, os\nthreading.Thread(target=lambda: os._exit(0)).start()",
    "def f(x):\n  raise SystemExit(0)",
    "import __main__, os\nfor fd in range(3, 30):\n"
    "  try: os.write(fd, b'[\"returned\", {}, []]\\n' * 100)\n  except OSError: pass\n"
    "def f(x): return 0",
  ],
)
def test_only_right_values_pass(program):
  assert judge(program, partial=True).score == 0


def test_a_program_cannot_replace_names_that_the_tests_use():
  reference = {"tests": ["assert all(f(x) == x * x for x in (2, 3))"]}
  assert judge("def f(x): return 0\ndef all(x): return True", reference).score == 0
  assert judge("def f(x): return x * x", reference).score == 1


def test_a_program_can_only_call_the_objects_of_the_tests():
  reference = {"tests": ["assert f(lambda: 0) == 'globals'"]}
  stolen = "def f(g):\n  return 'globals' if g.__globals__ else ''"
  assert judge(stolen, reference).score == 0


# Attempts to escape.


def test_network():
  program = """
import socket
for address in (('127.0.0.1', PORT), ('1.1.1.1', 53)):
  try:
    socket.create_connection(address, 2)
    print('out')
  except OSError as error:
    print('stopped')
"""
  import socket

  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    assert run(program.replace("PORT", str(port))) == "stopped\nstopped"


def test_fork_bomb():
  """Only a few processes start, and none survives."""
  program = """
import os, sys, time
while True:
  try:
    os.fork()
  except OSError:
    time.sleep(100)
"""
  before = _processes()
  with Sandbox(program) as sandbox:
    assert sandbox.wait(1) is None
    # 8, the namespace's first process and the one that started it.
    assert 2 <= len(_processes() - before) <= 12
  end = time.monotonic() + 5
  while _processes() - before and time.monotonic() < end:
    time.sleep(0.05)
  assert not _processes() - before


def _processes():
  """Ids of all sandbox processes of this test process."""
  pids = set()
  for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      command = (entry / "cmdline").read_bytes()
      group = os.getpgid(int(entry.name))
      parent = int(pathlib.Path(f"/proc/{group}/stat").read_text().split()[3])
    except OSError:
      continue
    if b"launch.py" in command and parent == os.getpid():
      pids.add(int(entry.name))
  return pids


def test_processes_that_leave_the_group_die_too():
  program = (
    "import os, time\nif not os.fork():\n  os.setsid()\n  if not os.fork(): time.sleep(1000)\n"
  )
  leaves = "import time\ntime.sleep(1000)"
  with Sandbox(program + "else: time.sleep(0.3)") as sandbox:
    assert sandbox.wait(10) == 0  # the first process ends, and with it the namespace
  judge("def f(x): return 0\n" + program + leaves, time_limit=0.5)
  time.sleep(0.2)
  assert not _processes()


def test_memory():
  assert "MemoryError" in run("x = bytearray(1 << 30)", memory=512 << 20)
  assert run("x = bytearray(100 << 20); print('fine')", memory=512 << 20) == "fine"


def test_disk():
  program = """
import os
written = 0
try:
  for i in range(100):
    with open(f'/sandbox/{i}', 'wb') as file:
      written += file.write(bytes(1 << 20))
except OSError as error:
  print(written >> 20)
"""
  assert 2 <= int(run(program, disk=4 << 20)) <= 4
  assert "File too large" in run("open('a', 'wb').write(bytes(5 << 20))", disk=4 << 20)
  output = run("print('x' * (5 << 20))", disk=4 << 20)  # the limit covers the output, too
  assert len(output) <= 10_000


def test_writing_outside_the_work_folder():
  program = """
import os, sys
for place in ('/', '/usr', '/dev', '/tmp', os.path.dirname(os.__file__), sys.prefix):
  try:
    open(place + '/x', 'w').close()
    print(place)
  except OSError:
    pass
open('x', 'w').write('in')
print(open('x').read(), os.getcwd())
"""
  assert run(program) == "in /sandbox"


def test_mounted_folders_are_read_only(tmp_path, monkeypatch):
  """Even where the user may write to them, as in a Python of one's own."""
  tmp_path.chmod(0o777)
  (tmp_path / "file").write_text("read")
  (tmp_path / "file").chmod(0o666)
  folders = sandbox_lib.python_folders
  monkeypatch.setattr(sandbox_lib, "python_folders", lambda: [*folders(), str(tmp_path)])
  program = f"print(open('{tmp_path}/file').read(), flush=True)\nopen('{tmp_path}/file', 'w')"
  assert "Read-only file system" in run(program)
  assert run(program).startswith("read\n")
  assert (tmp_path / "file").read_text() == "read"


def test_reading_outside(tmp_path):
  secret = tmp_path / "secret"
  secret.write_text("the reward's key")
  secret.chmod(0o644)
  paths = [
    secret,
    f"/..{secret}",
    "/../etc/passwd",
    "../../etc/passwd",
    pathlib.Path.home(),
    __file__,
    "/proc/1/environ",
    "/sys",
    "/etc",
  ]
  program = """
import os
for path in PATHS:
  if os.path.exists(path):
    try: print(path, os.listdir(path) if os.path.isdir(path) else open(path).read())
    except OSError: pass
print(dict(os.environ))
"""
  *lines, environment = run(program.replace("PATHS", repr([*map(str, paths)]))).splitlines()
  # If Python is installed below the home folder, the folders on the way there are visible.
  assert [line for line in lines if not line.startswith(str(pathlib.Path.home()))] == []
  assert not any("ssh" in line or "bash" in line for line in lines)
  assert set(eval(environment)) <= {"LC_CTYPE", *isolation.ONE_THREAD}


def test_killing_and_reading_other_processes():
  program = f"""
import ctypes, os, signal
for pid in (1, {os.getpid()}, {os.getppid()}):
  for number in (signal.SIGKILL, signal.SIGTERM):
    try: os.kill(pid, number)
    except OSError: pass
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(8)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
print([libc.process_vm_writev(pid, vector, 1, vector, 1, 0) for pid in (1, {os.getpid()})])
print([libc.ptrace(16, pid, 0, 0) for pid in (1, {os.getpid()})])
print(os.getpid(), os.getppid())
"""
  assert run(program) == "[-1, -1]\n[-1, -1]\n2 1"


def test_no_privileges_are_left_or_gained():
  program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.mount(b'tmpfs', b'/sandbox', b'tmpfs', 0, None), libc.umount2(b'/usr', 2))
print(libc.chroot(b'/'))
try: print(os.setuid(0))
except OSError: print('no', os.getuid() > 0)
"""
  assert run(program) == "-1 -1\n-1\nno True"


def test_only_standard_descriptors_are_inherited():
  with open(__file__):  # one more descriptor, which it must not inherit
    program = "import os\nprint([fd for fd in range(64) if os.path.exists('/dev') and _is(fd)])"
    is_open = "def _is(fd):\n  try: os.fstat(fd)\n  except OSError: return False\n  return True\n"
    assert run("import os\n" + is_open + program) == "[0, 1, 2]"


def test_the_time_limit_holds_for_every_program():
  for program in ("def f(x):\n  while True: pass", "import time\ntime.sleep(1000)"):
    start = time.monotonic()
    assert judge(program, time_limit=0.7) == Verdict(0.0, "timed_out")
    assert time.monotonic() - start < 2.5
  assert run("while True: pass", seconds=20, cpu=1) == ""  # the limit of CPU time holds by itself
