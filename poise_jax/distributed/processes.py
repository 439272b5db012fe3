"""Several processes of one run: how they start, divide work, agree, and end together.

All processes run the same program on the same values, each on the devices of its own machine; XLA
moves what the shardings of arrays require. Work outside of XLA is coordinated here: `divided`
splits work on the items of a list, `on_first` runs what only one process may do, `gather` exchanges
values.
"""

import contextlib
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from poise_jax.errors import UserError

HEARTBEAT = 25  # seconds until a dead process is noticed; longer than a busy machine pauses one
SHUTDOWN = 10  # seconds for which a process that has finished waits for the others

Parameters = ParamSpec("Parameters")
T = TypeVar("T")


@contextlib.contextmanager
def started(where: str, sentence: Callable[[Exception], str] = str) -> Iterator[None]:
  """Connects this process with the others of its run; enter it before any other use of JAX.

  An error ends the process at once: a regular exit would wait for the other processes, and they for
  this one. JAX's coordinator, in the first process, then ends the others and names the lost one.

  Args:
    where: "" runs a single process, unless $JAX_COORDINATOR_ADDRESS is set; "auto" reads the
      environment (TPU pods, Slurm, Open MPI, Kubernetes); otherwise ADDRESS:PORT,COUNT,INDEX with
      the address of the first process.
    sentence: describes an error for the user.

  Raises:
    UserError: `where` is malformed, no cluster is detected, or the processes cannot connect.
  """
  where = where or ("auto" if "JAX_COORDINATOR_ADDRESS" in os.environ else "")
  if not where:
    yield
    return
  _connect(where)
  try:
    yield
    wait_for_all()
  except Exception as error:
    name = f"process {jax.process_index()} of {jax.process_count()}"
    sys.stdout.flush()
    if lost := _lost_contact(error):
      print(
        f"error in {name}: lost contact with another process ({lost[:200]}); within {HEARTBEAT} "
        "seconds the coordinator names it, as task NUMBER",
        file=sys.stderr,
        flush=True,
      )
      time.sleep(HEARTBEAT + SHUTDOWN)  # the coordinator ends this process before that
    else:
      print(f"error in {name}: {sentence(error)}", file=sys.stderr, flush=True)
    os._exit(1)


def _lost_contact(error: BaseException | None) -> str:
  """XLA's message about a lost process, if that caused the error, otherwise ""."""
  while error is not None:
    text = str(error)
    if re.match(r"(UNKNOWN|UNAVAILABLE|ABORTED|INTERNAL|CANCELLED|DEADLINE_EXCEEDED):", text):
      return text
    error = error.__cause__ or error.__context__
  return ""


def _connect(where: str):
  arguments = {}
  if where != "auto":
    address, *numbers = where.split(",")
    if ":" not in address or len(numbers) != 2 or not all(x.isdecimal() for x in numbers):
      raise UserError(
        f"--distributed={where} must be auto or ADDRESS:PORT,COUNT,INDEX, such as "
        "10.0.0.1:1234,4,0 for the first of four processes"
      )
    count, index = map(int, numbers)
    if not index < count:
      raise UserError(f"--distributed={where}: INDEX must be between 0 and {count - 1}")
    arguments = dict(coordinator_address=address, num_processes=count, process_id=index)
  try:
    jax.distributed.initialize(
      **arguments, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN
    )
  except (ValueError, TypeError) as error:
    raise UserError(
      f"--distributed=auto detects no cluster ({error}); name the processes with "
      "--distributed=ADDRESS:PORT,COUNT,INDEX"
    ) from error
  except jax.errors.JaxRuntimeError as error:
    raise UserError(
      f"--distributed={where}: the processes could not connect ({error}); check that all of them "
      "run and can reach the first one's address"
    ) from error


def is_first() -> bool:
  """Whether this is the first process, which writes files and prints."""
  return jax.process_index() == 0


def gather(value: T) -> list[T]:
  """Values of all processes, in their order. As with every function here that communicates, all
  processes must call it."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(pickle.dumps(value), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(data.size, np.int32))
  padded = np.pad(data, (0, sizes.max() - data.size))
  rows = multihost_utils.process_allgather(padded)
  return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def divided(work: Callable[..., Sequence[T]], *items: Sequence) -> list[T]:
  """work(*items), one result per item; each process works on a share, and all get all results."""
  index, count = jax.process_index(), jax.process_count()
  results = [None] * len(items[0])
  for i, share in enumerate(gather(list(work(*(each[index::count] for each in items))))):
    results[i::count] = share
  return results


def on_first(
  work: Callable[Parameters, T], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> T:
  """work(*args, **kwargs) in the first process only; all return its result or raise its error."""
  outcome = None
  if is_first():
    try:
      outcome = work(*args, **kwargs), None
    except Exception as error:
      if jax.process_count() == 1:
        raise
      outcome = None, error
  result, error = gather(outcome)[0]
  if error:
    raise error
  return result


def check_alike(what: str, value: object):
  """Raises UserError, naming a process, if `value` differs from the first process's."""
  values = gather(value)
  if different := [i for i, other in enumerate(values) if other != values[0]]:
    raise UserError(f"{what} is not the same in process {different[0]} as in process 0")


def wait_for_all():
  """Returns when every process has called it."""
  gather(None)
