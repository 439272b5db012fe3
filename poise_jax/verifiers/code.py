"""Python programs, judged by tests; each program runs in a sandbox (sandbox/sandbox.py).

A program and its tests never share a process: the tests run in a sandbox of their own and call the
program's functions through a pipe that carries plain data (sandbox/calls.py), and a program's
output is compared in this process. So right values are the only way to pass.
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
from poise_jax.verifiers.sandbox import Sandbox

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

  The program is the last fenced block, or a response without fences that is valid Python.

  Args:
    reference: one of
      {"tests": [source, ...]}: asserts that use the program's names. Optional: "setup", source that
        runs before each test; "entry_point", a function to pass to the `check` that a test defines.
      {"inputs": [...], "outputs": [...]}: standard input and expected output of each run.
      {"inputs", "outputs", "fn_name"}: argument lists and return values of that function, or of
        that method of class Solution.
    response: the text to judge.
    partial: whether to score the fraction of tests passed.
    time_limit: seconds for all tests together; tests that have not passed by then have failed.
    memory: limit of each process in MiB, tests included.
    disk: limit of all files in MiB; the program can only write to its work folder.
    processes: limit of the program's processes at one time, threads included.

  Raises:
    UnusableError: the reference is malformed, or this machine does not allow sandboxes.
  """
  tests, calls, runs = _tests(reference)
  check_sandbox()
  program = find_program(response)
  if program is None:
    return Verdict(0.0, "unparsable", "no program is in the response")
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


def find_program(response: str) -> str | None:
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
  """Sources of tests, (arguments, result) of calls, (input, output) of runs; two are empty."""
  try:
    tests = reference.get("tests", [])
    tests = [tests] if isinstance(tests, str) else list(tests)
    pairs = list(zip(reference.get("inputs", []), reference.get("outputs", []), strict=True))
  except (AttributeError, TypeError, ValueError) as error:
    raise UnusableError(f"the reference of verifier code is malformed: {error}") from error
  if bool(tests) == bool(pairs):
    raise UnusableError("the reference of verifier code needs either tests or inputs with outputs")
  return (tests, pairs, []) if reference.get("fn_name") else (tests, [], pairs)


def _call(program, data, deadline, limits):
  """Number of passed tests, status and note, where tests call the program's functions."""
  source = _CALLS.read_text()
  count = len(data["tests"]) + len(data["calls"])
  server_end, client_end = socket.socketpair()
  with server_end, client_end:
    server = f"{source}\nserve(PIPE, DATA)"
    with Sandbox(server, data=program, pipe=server_end.fileno(), **limits):
      client = f"{source}\ntest(PIPE, **DATA)"
      tests = Sandbox(client, data=data, pipe=client_end.fileno(), **limits)
      server_end.close()
      client_end.close()
      with tests:
        exit_code = tests.wait(max(0.0, deadline - time.monotonic()))
        output = tests.output(1000 + count)
  if output.startswith("not loaded: "):
    return 0, "ok", output[:300]
  passed = output[:count].count("1")
  status = "ok" if exit_code is not None else "timed_out"
  return passed, status, f"{passed} of {count} tests passed"


def _run(program, runs, deadline, limits):
  """Number of passed tests, status and note, where each test is a run with standard input."""
  passed = 0
  for i, run in enumerate(runs):
    stdin, expected = ("\n".join(x) if isinstance(x, list) else str(x) for x in run)
    with Sandbox(program, stdin.encode(), **limits) as sandbox:
      if sandbox.wait(max(0.0, deadline - time.monotonic())) is None:
        return passed, "timed_out", f"stopped in run {i + 1} of {len(runs)}"
      passed += same_output(expected, sandbox.output(4 * len(expected) + 10_000))
  return passed, "ok", f"{passed} of {len(runs)} runs printed the right output"


def same_output(expected: str, printed: str) -> bool:
  """Whether two outputs are equal but for white space and the last digits of decimals."""
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
  """Raises UnusableError if this machine does not allow sandboxes."""
  with Sandbox("print('ready')", errors=True) as sandbox:
    exit_code, output = sandbox.wait(30), sandbox.output(1000)
  if exit_code != 0 or output != "ready\n":
    raise UnusableError(
      "verifier code cannot isolate programs on this machine, so it runs none "
      f"({output.strip() or f'exit code {exit_code}'}). It needs Linux namespaces: root with "
      "CAP_SYS_ADMIN, or unprivileged user namespaces (sysctl user.max_user_namespaces; in a "
      "container --security-opt seccomp=unconfined)"
    )
