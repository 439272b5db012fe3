"""Python programs, judged by tests; each program runs in a sandbox (sandbox/sandbox.py).

A program and its tests never share a process: the tests run in a sandbox of their own and call the
program's functions through a pipe that carries plain data (sandbox/calls.py), and a program's
output is compared in this process. So right values are the only way to pass.
"""

import ast
import functools
import math
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any

from poise_jax.verifiers import fences
from poise_jax.verifiers.base import SandboxError, UnusableError, Verdict
from poise_jax.verifiers.code_tests import read_tests
from poise_jax.verifiers.sandbox import Sandbox
from poise_jax.verifiers.thought import judges_answer

_FOLDER = pathlib.Path(__file__).parent / "sandbox"
_CALLS, _USUAL_IMPORTS = _FOLDER / "calls.py", _FOLDER / "usual_imports.py"
_PYTHON = ("python", "python3", "py", "py3")
_RUN = """
__builtins__ = usual_builtins()
exec(compile(DATA, "main.py", "exec", dont_inherit=True))
"""
LONGEST = 100_000  # characters of a program


@judges_answer
def code(
  reference: Mapping[str, Any] | str,
  response: str,
  partial: bool = False,
  time_limit: float = 5.0,
  memory: int = 512,
  disk: int = 16,
  processes: int = 8,
) -> Verdict:
  """1 if the program in the response passes every test, else 0; with `partial` the fraction.

  The program is what `find_program` finds; it need not import what sandbox/usual_imports.py lists.

  Args:
    reference: one of
      {"tests": [source, ...]}: asserts that use the program's names. Optional: "setup", source that
        runs before each test; "entry_point", a function to pass to the `check` that a test defines;
        "names", the other names that tests use of the program, besides Solution (code_names.py).
      {"inputs": [...], "outputs": [...]}: standard input and expected output of each run, which
        must end with exit code 0.
      {"inputs", "outputs", "fn_name"}: argument lists and return values of that function, or of
        that method of class Solution; as data, or as JSON text with one argument a line.
      All of it may be JSON text.
    response: the text to judge.
    partial: whether to score the fraction of tests passed.
    time_limit: seconds for all tests together; tests that have not passed by then have failed.
    memory: limit of each process in MiB, tests included.
    disk: limit of all files in MiB; the program can only write to its work folder.
    processes: limit of the program's processes at one time, threads included.

  Raises:
    UnusableError: the reference is malformed, or this machine does not allow sandboxes.
  """
  tests = read_tests(reference)
  program = find_program(response)
  if program is None:
    return Verdict(0.0, "unparsable", "no program is in the response")
  check_sandbox()
  limits = dict(
    memory=memory << 20, disk=disk << 20, processes=processes, cpu=math.ceil(time_limit) + 1
  )
  deadline = time.monotonic() + time_limit
  judge = _run if tests.runs else _call
  passed, status, note = judge(program, tests, deadline, limits)
  fraction = passed / len(tests)
  return Verdict(fraction if partial else float(fraction == 1), status, note)


def find_program(response: str) -> str | None:
  """The program in a response, None if there is none.

  Of the fenced blocks in Python, or in no named language, it is the last one that defines a
  function or class or reads input: the blocks after a program often show how to call it and what
  it prints. Without such a block, it is the last one in Python, else the last one in no named
  language.
  """
  found = fences.blocks(response[-10 * LONGEST :])
  python = [block for block in found if block.language in _PYTHON]
  unnamed = [block for block in found if not block.language]
  programs = [b for b in found if b in python + unnamed and _is_program(b)]
  if chosen := programs or python or unnamed:
    program = chosen[-1].text
  else:
    program = response if not found and _parsed(response) else ""
  usable = program.strip() and len(program) <= LONGEST and "\0" not in program
  return program if usable else None


def _parsed(source):
  """The syntax tree of a program, None if it is not Python."""
  try:
    return ast.parse(source) if len(source) <= LONGEST else None
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return None


def _is_program(block):
  """Whether a block is a program, and not a use of one or its output."""
  tree = _parsed(block.text)
  if tree is None:  # a mistake in a program, or a session at Python's prompt
    return block.language in _PYTHON and not block.text.lstrip().startswith(">>>")
  return any(
    isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    or isinstance(node, ast.Assign)
    and isinstance(node.value, ast.Lambda)
    or isinstance(node, ast.Name)
    and node.id in ("input", "open", "sys")
    for node in ast.walk(tree)
  )


def _call(program, tests, deadline, limits):
  """Number of passed tests, status and note, where tests call the program's functions."""
  source, imports = _CALLS.read_text(), _USUAL_IMPORTS.read_text()
  data = dict(setup=tests.setup, tests=tests.sources, name=tests.name, calls=tests.calls)
  data.update(names=tests.names)
  server_end, client_end = socket.socketpair()
  with server_end, client_end:
    server = f"{imports}\n{source}\nserve(PIPE, DATA, usual_builtins())"
    with Sandbox(server, data=program, pipe=server_end.fileno(), **limits):
      client = f"{imports}\n{source}\ntest(PIPE, **DATA, builtin_names=usual_builtins())"
      testing = Sandbox(client, data=data, pipe=client_end.fileno(), **limits)
      server_end.close()
      client_end.close()
      with testing:
        exit_code = testing.wait(max(0.0, deadline - time.monotonic()))
        output = testing.output(1000 + len(tests))
  if output.startswith("not loaded: "):
    return 0, "ok", output[:300]
  passed = output[: len(tests)].count("1")
  status = "ok" if exit_code is not None else "timed_out"
  return passed, status, f"{passed} of {len(tests)} tests passed"


def _run(program, tests, deadline, limits):
  """Number of passed tests, status and note, where each test is a run with standard input."""
  passed, source = 0, _USUAL_IMPORTS.read_text() + _RUN
  for i, (stdin, expected) in enumerate(tests.runs):
    with Sandbox(source, stdin.encode(), data=program, **limits) as sandbox:
      exit_code = sandbox.wait(max(0.0, deadline - time.monotonic()))
      if exit_code is None:
        return passed, "timed_out", f"stopped in run {i + 1} of {len(tests)}"
      output = sandbox.output(4 * len(expected) + 10_000)
      passed += exit_code == 0 and same_output(expected, output)
  return passed, "ok", f"{passed} of {len(tests)} runs printed the right output and ended well"


def same_output(expected: str, printed: str) -> bool:
  """Whether two outputs are equal but for white space and the last digits of decimals."""
  a, b = ([line.split() for line in text.strip().splitlines()] for text in (expected, printed))
  return len(a) == len(b) and all(
    len(x) == len(y) and all(map(_same_token, x, y)) for x, y in zip(a, b, strict=True)
  )


def _same_token(a, b):
  if a == b:
    return True
  if a.lstrip("+-").isdecimal():
    return False
  try:
    return math.isclose(float(a), float(b), rel_tol=1e-6, abs_tol=1e-9)
  except ValueError:
    return False


@functools.cache
def check_sandbox():
  """Raises UnusableError if this machine does not allow sandboxes."""
  try:
    with Sandbox("print('ready')", errors=True) as sandbox:
      exit_code, output = sandbox.wait(30), sandbox.output(1000)
  except SandboxError as error:
    exit_code, output = None, str(error)
  if exit_code != 0 or output != "ready\n":
    raise UnusableError(
      "verifier code cannot isolate programs on this machine, so it runs none "
      f"({output.strip() or f'exit code {exit_code}'}). It needs Linux namespaces: root with "
      "CAP_SYS_ADMIN, or unprivileged user namespaces (sysctl user.max_user_namespaces; in a "
      "container --security-opt seccomp=unconfined)"
    )
