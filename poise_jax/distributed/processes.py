"""Several processes of one run: how they start, share out work, agree, and end together.

All run the same program on the same values, each on the devices of its own machine; XLA moves what
the arrays' shardings ask for. What happens outside of XLA is divided here: work on a list's items
(`divided`), what only one may do (`on_first`), what all must know alike (`gather`).
"""

import contextlib
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from poise_jax.errors import UserError

# A process whose machine is gone is missed after this time: well within a minute, and longer than
# a machine under load keeps still.
HEARTBEAT = 25  # seconds
SHUTDOWN = 10  # seconds for which a process that is done waits for the others


@contextlib.contextmanager
def started(where: str, sentence: Callable[[Exception], str] = str) -> Iterator[None]:
  """Connects this process with the others of its run, before anything else of JAX is used.

  An error ends the process at once, for a clean end would wait for the others, and they for it.
  JAX's coordinator, which the first process runs, ends those that are left and names who is gone.

  Args:
    where: "" is a process by itself, unless $JAX_COORDINATOR_ADDRESS is set; "auto" asks the
      environment (TPU pods, Slurm, Open MPI, Kubernetes); else ADDRESS:PORT,COUNT,INDEX, the
      first process's address.
    sentence: what to tell a user of an error.

  Raises:
    UserError: `where` is none of these, or no environment is found.
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
        f"error in {name}: it cannot reach another process ({lost[:200]}); the coordinator says "
        f"which one is gone within {HEARTBEAT} seconds, as task NUMBER",
        file=sys.stderr,
        flush=True,
      )
      time.sleep(HEARTBEAT + SHUTDOWN)  # the coordinator's word ends this process
    else:
      print(f"error in {name}: {sentence(error)}", file=sys.stderr, flush=True)
    os._exit(1)


def _lost_contact(error: BaseException | None) -> str:
  """What XLA said of another process that is gone, if that is behind an error; else ""."""
  while error is not None:
    text = str(error)
    if re.match(r"(UNKNOWN|UNAVAILABLE|ABORTED|INTERNAL|CANCELLED|DEADLINE_EXCEEDED):", text):
      return text
    error = error.__cause__ or error.__context__
  return ""


def _connect(where):
  arguments = {}
  if where != "auto":
    address, *numbers = where.split(",")
    if ":" not in address or len(numbers) != 2 or not all(x.isdecimal() for x in numbers):
      raise UserError(
        f"--distributed={where} is neither auto nor ADDRESS:PORT,COUNT,INDEX, such as "
        "10.0.0.1:1234,4,0 on the first of four processes"
      )
    count, index = map(int, numbers)
    if not index < count:
      raise UserError(f"--distributed={where}: the last number counts from 0 to {count - 1}")
    arguments = dict(coordinator_address=address, num_processes=count, process_id=index)
  try:
    jax.distributed.initialize(
      **arguments, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN
    )
  except (ValueError, TypeError) as error:
    raise UserError(
      f"--distributed=auto finds no cluster here ({error}); say which process this is: "
      "--distributed=ADDRESS:PORT,COUNT,INDEX"
    ) from error
  except jax.errors.JaxRuntimeError as error:
    raise UserError(
      f"--distributed={where}: the processes did not find each other ({error}); each must be "
      "started, and reach the first one's address"
    ) from error


def is_first() -> bool:
  """Whether this is the process that writes files and prints."""
  return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
  """Every process's value, in their order. Like all of this module's functions that talk to other
  processes, all must call it."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(pickle.dumps(value), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(data.size, np.int32))
  padded = np.pad(data, (0, sizes.max() - data.size))
  rows = multihost_utils.process_allgather(padded)
  return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def divided(work: Callable[..., Sequence[Any]], *items: Sequence[Any]) -> list[Any]:
  """work(*items), which has a result an item: each process works on some, and all get them all."""
  index, count = jax.process_index(), jax.process_count()
  results = [None] * len(items[0])
  for i, part in enumerate(gather(list(work(*(each[index::count] for each in items))))):
    results[i::count] = part
  return results


def on_first(work: Callable[..., Any], *args, **kwargs) -> Any:
  """work(*args, **kwargs) on the first process alone; its result, or error, is that of all."""
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


def check_alike(what: str, value: Any):
  """Raises UserError, naming the process, where `value` is not the first process's."""
  there = gather(value)
  if different := [i for i, other in enumerate(there) if other != there[0]]:
    raise UserError(f"{what} is not the same in process {different[0]} as in process 0")


def wait_for_all():
  """Returns once every process has come here."""
  gather(None)
