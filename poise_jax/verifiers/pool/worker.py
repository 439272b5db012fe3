"""The processes that judge responses. Pool runs this module with a file descriptor and a size.

The verifiers' process loads each library once and forks the workers, so that a new worker costs
milliseconds. It runs no verifier itself, so it cannot hang with one. A worker judges one response
at a time. It is killed together with its children at the time limit, and replaced when it dies.
"""

import collections
import ctypes
import dataclasses
import os
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection, Pipe, wait

from poise_jax.verifiers import load, verify
from poise_jax.verifiers.base import Check, UnusableError, Verdict
from poise_jax.verifiers.weighted import verifier_names

CROWD = 8  # workers per core while responses hang, so that the other responses need not wait
PATIENCE = 0.1  # seconds without an idle worker before more workers start
MEMORY = 4 << 30  # bytes that a worker may allocate
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass
class Worker:
  """A forked process and its current task."""

  pid: int
  pipe: Connection
  item: int = -1  # place in the batch of the response that it judges; -1 if idle
  since: float = 0.0  # time at which it received that response

  def kill(self) -> int:
    """Ends the process and its children; returns its exit status in the form of waitpid."""
    for kill in (os.killpg, os.kill):
      try:
        kill(self.pid, signal.SIGKILL)
      except OSError:
        pass  # it has ended, or does not lead its process group yet
    self.pipe.close()
    return os.waitpid(self.pid, 0)[1]


@dataclasses.dataclass
class Batch:
  """Responses to judge, and what has become of them."""

  checks: list[Check]
  responses: list[str]
  limit: float  # wall-clock seconds per response
  queue: collections.deque[int]  # places of responses that no worker has
  deaths: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
  verdicts: list[tuple[int, Verdict]] = dataclasses.field(default_factory=list)  # not sent yet


def main(client: Connection, size: int):
  """Judges batches until the client closes its end."""
  server = Server(client, size)
  client.send("ready")
  try:
    while True:
      checks, responses, limit = client.recv()
      try:
        server.score(checks, responses, limit)
      except (EOFError, ConnectionError):
        raise
      except Exception as error:  # the fault of a check, not of a response
        server.dismiss()
        client.send(error if isinstance(error, UnusableError) else UnusableError(repr(error)))
  except (EOFError, ConnectionError):
    pass  # the pool was closed, or its process has died
  finally:
    server.dismiss()


class Server:
  """Gives the responses of a batch to workers and sends lists of (place, Verdict) back."""

  def __init__(self, client: Connection, size: int):
    self.client, self.size = client, size
    self.workers: list[Worker] = []
    self.loaded: set[str] = set()

  def score(self, checks: list[Check], responses: list[str], limit: float):
    """Judges one batch.

    Raises:
      UnusableError: a check cannot judge any response.
      EOFError: the client has closed its end.
    """
    self._load({name for check in checks for name in verifier_names(check)})
    if not responses:  # the pool only loads libraries
      self.client.send([])
    batch = Batch(checks, responses, limit, collections.deque(range(len(responses))))
    remaining = len(responses)
    while remaining:
      self._assign(batch)
      self._collect(batch)
      self._end_overdue(batch)
      if batch.verdicts:
        remaining -= len(batch.verdicts)
        self.client.send(batch.verdicts)
        batch.verdicts = []

  def _load(self, verifiers: set[str]):
    """Loads verifiers in this process, from which later workers inherit them."""
    if new := verifiers - self.loaded:
      self.dismiss()  # the present workers would each load the libraries themselves
      for name in sorted(new):
        load(name)
      self.loaded |= new

  def _assign(self, batch: Batch):
    """Gives waiting responses to idle workers, and starts workers if there are too few."""
    now = time.monotonic()
    idle = [w for w in self.workers if w.item < 0]
    stuck = self.workers and all(now - w.since > PATIENCE for w in self.workers)
    if batch.queue and not idle and (len(self.workers) < self.size or stuck):
      limit = self.size * CROWD if stuck else self.size
      for _ in range(min(2 * max(len(self.workers), 1), limit) - len(self.workers)):
        self.workers.append(self.fork())
        idle.append(self.workers[-1])
    for worker in idle[: len(batch.queue)]:
      worker.item, worker.since = batch.queue.popleft(), time.monotonic()
      try:
        worker.pipe.send((batch.checks[worker.item], batch.responses[worker.item]))
      except OSError:  # it died while idle, which is not the fault of this response
        batch.queue.appendleft(worker.item)
        worker.item = -1
        self._remove(worker, batch)

  def _collect(self, batch: Batch):
    """Waits until workers have verdicts or die, or until a worker is overdue."""
    busy = {w.pipe: w for w in self.workers if w.item >= 0}
    patience = PATIENCE if batch.queue and len(busy) < self.size * CROWD else batch.limit
    now = time.monotonic()
    due = min((w.since for w in busy.values()), default=now) + batch.limit - now
    ready = wait([*busy, self.client], max(0.0, min(due, patience)))
    if self.client in ready:
      raise EOFError  # the client sends nothing during a batch
    for pipe in ready:
      worker = busy[pipe]
      try:
        verdict = pipe.recv()
      except (EOFError, OSError):
        self._remove(worker, batch)
        continue
      if isinstance(verdict, UnusableError):
        raise verdict
      batch.verdicts.append((worker.item, verdict))
      worker.item = -1

  def _end_overdue(self, batch: Batch):
    """Kills the workers that have exceeded the time limit."""
    now = time.monotonic()
    for worker in list(self.workers):
      if worker.item >= 0 and now - worker.since > batch.limit:
        verdict = Verdict(0.0, "timed_out", f"took more than {batch.limit:g} s")
        self._remove(worker, batch, verdict)

  def _remove(self, worker: Worker, batch: Batch, verdict: Verdict | None = None):
    """Kills a worker. Its response gets the verdict, or without one a second worker; if that one
    dies too, the response has crashed its verifier."""
    self.workers.remove(worker)
    status, place = worker.kill(), worker.item
    if place < 0:
      return
    batch.deaths[place] += 1
    if verdict is None and batch.deaths[place] == 1:
      batch.queue.appendleft(place)
      return
    cause = f"signal {status}" if status < 128 else f"exit code {status >> 8}"
    crash = Verdict(0.0, "crashed", f"the worker died with {cause}")
    batch.verdicts.append((place, verdict or crash))

  def fork(self) -> Worker:
    """Starts a worker."""
    parent_end, child_end = Pipe()
    if pid := os.fork():
      child_end.close()
      return Worker(pid, parent_end)
    status = 1
    try:  # the child must not return into the server's code
      os.setsid()
      ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
      os.closerange(3, child_end.fileno())
      os.closerange(child_end.fileno() + 1, 4096)
      resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
      work(child_end)
      status = 0
    finally:
      os._exit(status)

  def dismiss(self):
    """Ends all workers."""
    for worker in self.workers:
      worker.kill()
    self.workers.clear()


def work(pipe: Connection):
  """Judges one response after the other until the server closes its end."""
  while True:
    try:
      check, response = pipe.recv()
    except EOFError:
      return
    try:
      result = verify(check, response)
    except UnusableError as error:
      result = error
    except Exception as error:  # the verifier's own mistake; the metrics count it
      result = Verdict(0.0, "crashed", f"{check.verifier}: {error!r}"[:1000])
    pipe.send(result)


if __name__ == "__main__":
  main(Connection(int(sys.argv[1])), int(sys.argv[2]))
