"""The process that judges one response after the other.

A worker is confined if the verifiers that it runs are those of this package: without network, with
a read-only root and a user id of its own (../sandbox/isolation.py). It reports the first sign that
a response could have run code in it, before that code runs; the server then replaces it, so that no
response can change what the next one gets. Workers for `code`, which makes sandboxes itself, and
for functions of the user's own are ordinary processes.
"""

import os
import re
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from poise_jax.verifiers import VERIFIERS, verify
from poise_jax.verifiers.base import Check, SandboxError, UnusableError, Verdict
from poise_jax.verifiers.pool.messages import to_json, verdict_to_data
from poise_jax.verifiers.sandbox import isolation
from poise_jax.verifiers.sandbox.sandbox import outermost, python_folders
from poise_jax.verifiers.sandbox.syscalls import call_filter

CONFINED = frozenset(VERIFIERS) - {"code", "weighted"}
TRIES = 3  # attempts to set up the sandboxes that one response needs
_DISK = 16 << 20  # bytes of a confined worker's work folder
# Audit events (docs.python.org/3/library/audit_events.html) by which a text becomes code.
_CHANGES = frozenset(
  "compile code.__new__ pickle.find_class ctypes.dlopen ctypes.dlsym ctypes.call_function "
  "os.system os.exec os.posix_spawn os.fork os.forkpty subprocess.Popen sys.addaudithook".split()
)
# What sympy evaluates for each number that it reads.
_HARMLESS = re.compile(
  rb"from sympy import \*|(Integer|Float|Symbol) \('?[0-9A-Za-z.]{1,400}'? \)", re.ASCII
)


def confine(parent: int):
  """Confines this process, which becomes the first of a process namespace; raises OSError.

  Args:
    parent: id of the process with which this one dies.
  """
  places = [path for name, module in list(sys.modules.items()) if "." not in name
            for path in getattr(module, "__path__", ())]  # fmt: skip
  folders = outermost([*python_folders(), *places])
  isolation.enter(folders, _DISK, call_filter(), parent)
  isolation.limit(memory=0, disk=_DISK, processes=8, cpu=0)
  os.environ.clear()
  null = os.open(os.devnull, os.O_RDWR)
  for stream in (0, 1, 2):  # a log file, for example
    os.dup2(null, stream)


def work(tasks: Connection, results: int, confined: bool):
  """Judges responses until the server closes its end.

  Args:
    tasks: (Check, response), pickled; the server is more trusted than this process.
    results: file descriptor for messages: {"changed": event}, then {"verdict": fields} or
      {"unusable": reason}.
    confined: whether to report changes of this process.
  """
  watch = _watch(results) if confined else lambda active: None
  while True:
    try:
      check, response = tasks.recv()
    except EOFError:
      return
    watch(True)
    message = to_json(judge(check, response))
    watch(False)
    _write(results, message)


def _write(results, message):
  while message:
    message = message[os.write(results, message) :]


def _watch(results: int) -> Callable[[bool], None]:
  """Starts to report changes of this process; returns the function that sets when to."""
  active, write = False, os.write

  def hook(event: str, arguments: tuple):
    nonlocal active
    if active and event in _CHANGES and not (event == "compile" and _is_harmless(*arguments)):
      active = False  # once is enough
      write(results, to_json({"changed": event}))

  def set_active(value: bool):
    nonlocal active
    active = value

  sys.addaudithook(hook)
  return set_active


def _is_harmless(source: bytes | str | None, filename: str) -> bool:
  """Whether `compile` merely parses (as ast.literal_eval does) or sees what sympy always does."""
  if source is None:
    return False  # a syntax tree
  source = source.encode(errors="replace") if isinstance(source, str) else source
  return filename == "<unknown>" or bool(_HARMLESS.fullmatch(source))


def judge(check: Check, response: str) -> dict:
  """The message that tells how a response was judged."""
  for attempt in range(TRIES):
    time.sleep(0.2 * attempt)
    try:
      return {"verdict": verdict_to_data(verify(check, response))}
    except UnusableError as error:
      return {"unusable": str(error)}
    except SandboxError as error:  # too many processes at this moment, for example
      failure = Verdict(0.0, "sandbox_failed", f"{error}; tried {TRIES} times")
    except Exception as error:  # the verifier's own mistake; the metrics count it
      note = f"{check.verifier}: {error!r}"[:1000]
      return {"verdict": verdict_to_data(Verdict(0.0, "crashed", note))}
  return {"verdict": verdict_to_data(failure)}
