"""The processes that judge answers; Pool starts this module with a descriptor and a size.

One process loads the verifiers' libraries once and forks the workers, so that a new one costs
milliseconds; it runs no verifier itself and never hangs with one. A worker judges one answer at a
time. It is killed with its children at the time limit, and replaced when it dies.
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

# Times SIZE: as many workers when answers hang, so that the others need not wait for them.
CROWD = 8
PATIENCE = 0.1  # seconds without an idle worker before there are more
MEMORY = 4 << 30  # bytes a worker may allocate
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass
class Worker:
  """A forked process and what it is doing."""

  pid: int
  pipe: Connection
  item: int = -1  # place in the batch of the answer that it judges; -1: idle
  since: float = 0.0  # when it got that

  def kill(self) -> int:
    """Ends it and its children; returns its exit status as waitpid gives it."""
    for kill in (os.killpg, os.kill):
      try:
        kill(self.pid, signal.SIGKILL)
      except OSError:
        pass  # gone already, or not yet the leader of its group
    self.pipe.close()
    return os.waitpid(self.pid, 0)[1]


def main(client: Connection, size: int):
  """Judges batches until the client is gone."""
  server = Server(client, size)
  client.send("ready")
  try:
    while True:
      checks, responses, limit = client.recv()
      try:
        server.score(checks, responses, limit)
      except (EOFError, ConnectionError):
        raise
      except Exception as error:  # of a check, not of an answer: there is no going on with it
        server.dismiss()
        client.send(str(error) if isinstance(error, UnusableError) else repr(error))
  except (EOFError, ConnectionError):
    pass  # the pool was closed, or its process has died
  finally:
    server.dismiss()


class Server:
  """Hands a batch's answers to workers and sends lists of (place, Verdict) back."""

  def __init__(self, client: Connection, size: int):
    self.client, self.size = client, size
    self.workers: list[Worker] = []
    self.loaded: set[str] = set()

  def score(self, checks: list[Check], responses: list[str], limit: float):
    """Raises UnusableError if a check cannot judge any answer, EOFError if the client is gone."""
    if new := {name for check in checks for name in names(check)} - self.loaded:
      self.dismiss()  # those who were forked before would load the libraries one by one
      for name in sorted(new):
        load(name)
      self.loaded |= new
    if not responses:  # the pool only wants the libraries loaded
      self.client.send([])
    queue = collections.deque(range(len(responses)))
    deaths = collections.Counter()
    waiting, said = len(responses), []

    def died(worker, verdict=None):
      """Requeues what a dead worker had, once; the second time it is the answer's fault."""
      self.workers.remove(worker)
      status, i = worker.kill(), worker.item
      if i < 0:
        return
      deaths[i] += 1
      if verdict is None and deaths[i] == 1:
        queue.appendleft(i)
        return
      cause = f"the worker died of signal {status}" if status < 128 else f"exit {status >> 8}"
      said.append((i, verdict or Verdict(0.0, "crashed", cause)))

    while waiting:
      now = time.monotonic()
      idle = [w for w in self.workers if w.item < 0]
      stuck = self.workers and all(now - w.since > PATIENCE for w in self.workers)
      if queue and not idle and (len(self.workers) < self.size or stuck):
        grown = min(2 * max(len(self.workers), 1), self.size * CROWD if stuck else self.size)
        for _ in range(grown - len(self.workers)):
          self.workers.append(self.fork())
          idle.append(self.workers[-1])
      for worker in idle[: len(queue)]:
        worker.item, worker.since = queue.popleft(), time.monotonic()
        try:
          worker.pipe.send((checks[worker.item], responses[worker.item]))
        except OSError:
          worker.item, i = -1, worker.item  # it died before; the answer has nothing to do with it
          queue.appendleft(i)
          died(worker)

      busy = {w.pipe: w for w in self.workers if w.item >= 0}
      patience = PATIENCE if queue and len(busy) < self.size * CROWD else limit
      due = min((w.since for w in busy.values()), default=now) + limit - time.monotonic()
      ready = wait([*busy, self.client], max(0.0, min(due, patience)))
      if self.client in ready:
        raise EOFError  # it never speaks during a batch
      for pipe in ready:
        worker = busy[pipe]
        try:
          verdict = pipe.recv()
        except (EOFError, OSError):
          died(worker)
          continue
        if isinstance(verdict, UnusableError):
          raise verdict
        said.append((worker.item, verdict))
        worker.item = -1
      now = time.monotonic()
      for worker in list(self.workers):
        if worker.item >= 0 and now - worker.since > limit:
          died(worker, Verdict(0.0, "timed_out", f"took more than {limit:g} s"))
      if said:
        waiting -= len(said)
        self.client.send(said)
        said = []

  def fork(self) -> Worker:
    """A new worker."""
    ours, theirs = Pipe()
    if pid := os.fork():
      theirs.close()
      return Worker(pid, ours)
    status = 1
    try:  # nothing of the server's may run in the child
      os.setsid()
      ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
      os.closerange(3, theirs.fileno())
      os.closerange(theirs.fileno() + 1, 4096)
      resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
      work(theirs)
      status = 0
    finally:
      os._exit(status)

  def dismiss(self):
    """Ends all workers."""
    for worker in self.workers:
      worker.kill()
    self.workers.clear()


def names(check: Check) -> list[str]:
  """The verifiers that a check needs."""
  if check.verifier == "weighted":
    return ["weighted", *(name for _, part in check.reference for name in names(part))]
  return [check.verifier]


def work(pipe: Connection):
  """A worker's life: one answer after the other, until there is nobody to ask."""
  while True:
    try:
      check, response = pipe.recv()
    except EOFError:
      return
    try:
      said = verify(check, response)
    except UnusableError as error:
      said = error
    except Exception as error:  # a verifier's own mistake: counted, and said once for each kind
      said = Verdict(0.0, "crashed", f"{check.verifier}: {error!r}"[:1000])
    pipe.send(said)


if __name__ == "__main__":
  main(Connection(int(sys.argv[1])), int(sys.argv[2]))
