"""Python programs against tests, each program in a sandbox (see sandbox.py).

An answer and its tests never share a process: tests call the answer's functions from a sandbox of
their own through a pipe that carries plain data (calls.py), and what a program prints is compared
in this process. So an answer gets a point by giving right values alone.
"""

import ast
import functools
import math
import pathlib
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.sandbox.sandbox import Sandbox

_FENCED = re.compile(r"```(?:python|py|python3)?[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)
_CALLS = pathlib.Path(__file__).parent / "sandbox" / "calls.py"
LONGEST = 100_000  # characters of a program


def code(
  reference: Mapping[str, Any],
  response: str,
  partial: bool = False,
  time_limit: float = 5.0,
  memory: int = 512,
  disk: int = 16,
  processes: int = 8,
) -> Verdict:
  """1 if the program in the response passes every test, else 0; with `partial` the fraction.

  The program is the last fenced block, or a response without any fence that is Python as a whole.

  Args:
    reference: {"tests": [source, ...]} whose asserts use the program's names ("setup": source
      before each; "entry_point": a function that the tests' own `check` is called with), or
      {"inputs": [...], "outputs": [...]}: standard input and output of a run each; with "fn_name"
      arguments (lists) and return values of that function, or of that method of class Solution.
    response: what was said.
    partial: see above.
    time_limit: seconds for all tests together; then what has not passed has failed.
    memory: MiB of one process, tests included.
    disk: MiB of all files that the program may write, in its work folder only.
    processes: that the program may have at once, threads included.

  Raises:
    UnusableError: the reference is malformed, or this machine does not let a sandbox be made.
  """
  tests, calls, runs = _tests(reference)
  check_sandbox()
  program = extract(response)
  if program is None:
    return Verdict(0.0, "unparsable", "no program was found")
  limits = dict(
    memory=memory << 20, disk=disk << 20, processes=processes, cpu=math.ceil(time_limit) + 1
  )
  deadline = time.monotonic() + time_limit
  if runs:
    passed, status, note = _run(program, runs, deadline, limits)
  else:
    data = dict(
      setup=reference.get("setup", ""),
      tests=tests,
      name=reference.get("entry_point") or reference.get("fn_name") or "",
      calls=calls,
    )
    passed, status, note = _call(program, data, deadline, limits)
  fraction = passed / (len(tests) + len(calls) + len(runs))
  return Verdict(fraction if partial else float(fraction == 1), status, note)


def extract(response: str) -> str | None:
  """The program in a response, None if there is none."""
  blocks = _FENCED.findall(response[-10 * LONGEST :])
  program = blocks[-1] if blocks else response
  if len(program) > LONGEST or not program.strip() or "\0" in program:
    return None
  if not blocks:
    try:
      ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
      return None
  return program


def _tests(reference):
  """Sources of tests, calls with what they return, inputs with outputs; two of them are empty."""
  try:
    tests = reference.get("tests", [])
    tests = [tests] if isinstance(tests, str) else list(tests)
    pairs = list(zip(reference.get("inputs", []), reference.get("outputs", []), strict=True))
  except (AttributeError, TypeError, ValueError) as error:
    raise UnusableError(f"code's reference is malformed: {error}") from error
  if bool(tests) == bool(pairs):
    raise UnusableError("code's reference needs either tests or inputs with outputs")
  return (tests, pairs, []) if reference.get("fn_name") else (tests, [], pairs)


def _call(program, data, deadline, limits):
  """Tests passed, status and note, where tests call the program's functions."""
  source = _CALLS.read_text()
  ours, theirs = socket.socketpair()
  with ours, theirs:
    answer = Sandbox(f"{source}\nserve(PIPE, DATA)", data=program, pipe=ours.fileno(), **limits)
    with answer:
      tests = Sandbox(f"{source}\ntest(PIPE, **DATA)", data=data, pipe=theirs.fileno(), **limits)
      ours.close()
      theirs.close()
      with tests:
        ended = tests.wait(max(0.0, deadline - time.monotonic()))
        said = tests.output(1000 + len(data["tests"]) + len(data["calls"]))
  count = len(data["tests"]) + len(data["calls"])
  if said.startswith("answer: "):
    return 0, "ok", said[:300]
  passed = said[:count].count("1")
  return passed, "ok" if ended is not None else "timed_out", f"{passed} of {count} tests passed"


def _run(program, runs, deadline, limits):
  """Tests passed, status and note, where each is a run from standard input to standard output."""
  passed = 0
  for i, (given, expected) in enumerate(runs):
    given, expected = ("\n".join(x) if isinstance(x, list) else str(x) for x in (given, expected))
    with Sandbox(program, given.encode(), **limits) as sandbox:
      if sandbox.wait(max(0.0, deadline - time.monotonic())) is None:
        return passed, "timed_out", f"was stopped in run {i + 1} of {len(runs)}"
      passed += same_output(expected, sandbox.output(4 * len(expected) + 10_000))
  return passed, "ok", f"{passed} of {len(runs)} runs gave the right output"


def same_output(expected: str, printed: str) -> bool:
  """Whether two outputs are equal but for white space at the ends of lines and of the text, and
  for the last digits of decimals."""
  a, b = ([line.split() for line in text.strip().splitlines()] for text in (expected, printed))
  return len(a) == len(b) and all(
    len(x) == len(y) and all(map(_same_token, x, y)) for x, y in zip(a, b, strict=True)
  )


def _same_token(a, b):
  if a == b:
    return True
  if "." not in a:
    return False
  try:
    return math.isclose(float(a), float(b), rel_tol=1e-6, abs_tol=1e-9)
  except ValueError:
    return False


@functools.cache
def check_sandbox():
  """Raises UnusableError if this machine does not let a sandbox be made: then no program runs."""
  with Sandbox("print('ready')", errors=True) as sandbox:
    ended, said = sandbox.wait(30), sandbox.output(1000)
  if ended != 0 or said != "ready\n":
    raise UnusableError(
      "the code verifier cannot isolate programs here, so it runs none "
      f"({said.strip() or f'exit code {ended}'}). It needs Linux namespaces: root with "
      "CAP_SYS_ADMIN, or unprivileged user namespaces (sysctl user.max_user_namespaces; in a "
      "container --security-opt seccomp=unconfined)"
    )
