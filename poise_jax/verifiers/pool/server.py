"""The verifiers' process. Pool runs this module with a file descriptor and a size.

It loads each library once and forks the workers, so that a new worker costs milliseconds. It runs
no verifier itself, so it cannot hang with one. A worker is killed together with its children at the
time limit, and replaced when it dies or when a response could have changed it.
"""

import collections
import dataclasses
import gc
import os
import pathlib
import resource
import signal
import sys
import time
from multiprocessing.connection import Connection, Pipe, wait

from poise_jax.verifiers import load, verify
from poise_jax.verifiers.base import Check, UnusableError, Verdict
from poise_jax.verifiers.pool import worker as worker_lib
from poise_jax.verifiers.pool.messages import (
  LONGEST,
  from_json,
  is_bounded,
  to_json,
  verdict_from_data,
  verdict_to_data,
)
from poise_jax.verifiers.sandbox import isolation
from poise_jax.verifiers.sandbox.syscalls import call_filter
from poise_jax.verifiers.weighted import combine, single_checks

CROWD = 8  # workers per core while responses hang, so that the other responses need not wait
PATIENCE = 0.1  # seconds without an idle worker before more workers start
REAP_EVERY = 1.0  # seconds
MEMORY = 4 << 30  # bytes that a worker may allocate


def _integral(integrand):
  entry = {"answer": "x", "metadata": {"variable": "x", "integrand": integrand}}
  check = Check("reasoning_gym", {"dataset": "simple_integration", "entry": entry})
  return check, "<answer>x**2</answer>"


# sympy compiles code for polynomials in one, two and more terms when it meets the first of each.
_INTEGRANDS = ("x**3", "x**2*exp(x)", "x*exp(x)*sin(x)", "x*exp(x)*sin(x)*cos(x)/log(x)")
# Judged once while a library loads, so that it also loads what it otherwise loads on first use.
_FIRST_USE = {
  "math": [(Check("math", r"\sqrt{2} + x"), r"\boxed{x + 2^{1/2} \text{ cm}}")],
  "reasoning_gym": [_integral(integrand) for integrand in _INTEGRANDS],
}


@dataclasses.dataclass
class Worker:
  """A forked process and its current task."""

  pid: int
  tasks: Connection  # to the worker
  results: int  # file descriptor of messages from the worker
  confined: bool
  item: int = -1  # place in the batch of the response that it judges; -1 if idle
  since: float = 0.0  # time at which it received that response
  received: bytes = b""  # the beginning of its next message
  changed: bool = False  # whether a response could have changed it

  def kill(self, wait_first: bool = False) -> int:
    """Ends the process and its children; returns its exit status in the form of waitpid."""
    for kill in () if wait_first else (os.killpg, os.kill):
      try:
        kill(self.pid, signal.SIGKILL)
      except OSError:
        pass  # it has ended, or does not lead its process group yet
    self.tasks.close()
    os.close(self.results)
    return os.waitpid(self.pid, 0)[1]

  def receive(self) -> Verdict | UnusableError | None:
    """What it found, None if its message is incomplete.

    Raises:
      EOFError: it has ended, or it does not follow the protocol.
    """
    chunk = os.read(self.results, 1 << 16)
    self.received += chunk
    if not chunk or len(self.received) > LONGEST:
      raise EOFError
    while b"\n" in self.received:
      line, _, self.received = self.received.partition(b"\n")
      try:
        ((kind, content),) = from_json(line).items()
        if kind == "verdict":
          verdict = verdict_from_data(content)
          if self.confined and not is_bounded(verdict):  # no verifier of this package says that
            raise ValueError(f"a score out of range: {content!r:.100}")
          return verdict
      except ValueError as error:
        raise EOFError from error
      if kind == "unusable":
        return UnusableError(str(content)[:1000])
      self.changed = True
    return None


class Batch:
  """Responses to judge, and what has become of them.

  An item is a response with one of the single checks of its check.
  """

  def __init__(self, checks: list[Check], responses: list[str], limit: float):
    self.checks, self.limit = checks, limit  # limit: wall-clock seconds per item
    self.tasks: list[tuple[Check, str]] = []  # of each item
    self.places: list[int] = []  # of each item, the place of its response in the batch
    self.items: list[range] = []  # of each response
    for place, (check, response) in enumerate(zip(checks, responses, strict=True)):
      parts = single_checks(check)
      self.items.append(range(len(self.tasks), len(self.tasks) + len(parts)))
      self.tasks += [(part, response) for part in parts]
      self.places += [place] * len(parts)
    self.queues = {True: collections.deque(), False: collections.deque()}  # by confinement
    for item in range(len(self.tasks)):
      self.queue_of(item).append(item)
    self.verdicts: dict[int, Verdict] = {}  # of items
    self.deaths: collections.Counter[int] = collections.Counter()  # of workers, by item
    self.doubts: dict[int, UnusableError] = {}  # by item, why its check may be unusable
    self.complete: list[tuple[int, Verdict]] = []  # verdicts of responses, not sent yet
    for place in range(len(checks)):
      self._combine(place)  # raises if a check has no parts

  def queue_of(self, item: int) -> collections.deque[int]:
    """The queue of items that wait for the same kind of worker as this item."""
    return self.queues[self.tasks[item][0].verifier in worker_lib.CONFINED]

  def add(self, item: int, verdict: Verdict):
    """Adds the verdict of an item."""
    self.verdicts[item] = verdict
    self._combine(self.places[item])

  def _combine(self, place):
    """Completes the verdict of a response if those of all its items are there."""
    if all(item in self.verdicts for item in self.items[place]):
      verdicts = iter([self.verdicts[item] for item in self.items[place]])
      self.complete.append((place, combine(self.checks[place], verdicts)))


def _nothing(check):
  """A response in which nothing follows the thought."""
  return check.think_end


def main(client: Connection, size: int):
  """Judges batches until the client closes its end."""
  isolation.adopt_orphans()
  server = Server(client, size)
  server.tell("ready", True)
  try:
    while True:
      checks, responses, limit = client.recv()
      try:
        server.score(checks, responses, limit)
      except (EOFError, ConnectionError):
        raise
      except Exception as error:  # the fault of a check, not of a response
        server.dismiss()
        server.tell("unusable", str(error) if isinstance(error, UnusableError) else repr(error))
  except (EOFError, ConnectionError):
    pass  # the pool was closed, or its process has died
  finally:
    server.dismiss()
    server.reap()


class Server:
  """Gives the responses of a batch to workers and sends lists of (place, Verdict) back."""

  def __init__(self, client: Connection, size: int):
    self.client, self.size = client, size
    self.workers: list[Worker] = []
    self.loaded: set[str] = set()
    self.reaped = 0.0  # time of the last reap
    self.can_confine: bool | None = None  # None: not tried yet

  def tell(self, kind: str, content):
    """Sends the client a message."""
    self.client.send_bytes(to_json({kind: content}))

  def score(self, checks: list[Check], responses: list[str], limit: float):
    """Judges one batch.

    Raises:
      UnusableError: a check cannot judge any response.
      EOFError: the client has closed its end.
    """
    self.reap()
    self._load({single.verifier for check in checks for single in single_checks(check)})
    if not responses:  # the pool only loads libraries
      self.tell("verdicts", [])
      return
    batch = Batch(checks, responses, limit)
    remaining = len(responses)
    while remaining:
      self._assign(batch)
      self._collect(batch)
      self._end_overdue(batch)
      if batch.complete:
        remaining -= len(batch.complete)
        self.tell("verdicts", [(place, verdict_to_data(v)) for place, v in batch.complete])
        batch.complete = []
        if time.monotonic() - self.reaped > REAP_EVERY:
          self.reap()

  def reap(self):
    """Waits for the ended children of processes that were killed, which this one has adopted."""
    self.reaped = time.monotonic()
    workers = {worker.pid for worker in self.workers}
    try:
      children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    except OSError:
      return  # not Linux, or without /proc
    for pid in map(int, children):
      if pid not in workers:
        os.waitpid(pid, os.WNOHANG)

  def _load(self, verifiers: set[str]):
    """Loads verifiers in this process, from which later workers inherit them."""
    if new := verifiers - self.loaded:
      self.dismiss()  # the present workers would each load the libraries themselves
      for name in sorted(new):
        load(name)
        for use in _FIRST_USE.get(name, ()):
          verify(*use)
      if not self.loaded and sys.platform == "linux" and not call_filter():
        print(
          "poise_jax: libseccomp is missing, so system calls of answers are not filtered; see "
          "docs/verifiers.md",
          file=sys.stderr,
        )
      self.loaded |= new
      gc.collect()
      gc.freeze()  # workers then share more of the memory with this process
    if self.can_confine is None and not worker_lib.CONFINED.isdisjoint(self.loaded):
      self.can_confine = self._try_to_confine()

  def _try_to_confine(self):
    """Whether this machine allows confined workers; if not, says so."""
    worker = self.fork(confined=True, use=False)
    status = worker.kill(wait_first=True)
    if status:
      print(
        "poise_jax: this machine does not allow confined processes (Linux namespaces), so the "
        "verifiers run with this user's rights; see docs/verifiers.md",
        file=sys.stderr,
      )
    return not status

  def _assign(self, batch: Batch):
    """Gives waiting items to idle workers, and starts workers if there are too few."""
    now = time.monotonic()
    for confined, queue in batch.queues.items():
      busy = [w for w in self.workers if w.item >= 0]
      stuck = busy and all(now - w.since > PATIENCE for w in busy)
      room = self.size * (CROWD if stuck else 1) - len(busy)
      kind = [w for w in self.workers if w.confined == confined]
      idle = [w for w in kind if w.item < 0]
      if queue and not idle:
        for _ in range(min(max(len(kind), 1), room)):
          idle.append(self.fork(confined))
          self.workers.append(idle[-1])
      for worker in idle[: min(len(queue), max(room, 0))]:
        item = queue.popleft()
        check, response = batch.tasks[item]
        response = _nothing(check) if item in batch.doubts else response
        worker.item, worker.since = item, time.monotonic()
        try:
          worker.tasks.send((check, response))
        except OSError:  # it died while idle, which is not the fault of this response
          queue.appendleft(item)
          worker.item = -1
          self._remove(worker, batch)

  def _collect(self, batch: Batch):
    """Waits until workers have verdicts or die, or until a worker is overdue."""
    busy = {w.results: w for w in self.workers if w.item >= 0}
    waiting = any(batch.queues.values())
    patience = PATIENCE if waiting and len(busy) < self.size * CROWD else batch.limit
    now = time.monotonic()
    due = min((w.since for w in busy.values()), default=now) + batch.limit - now
    ready = wait([*busy, self.client], max(0.0, min(due, patience)))
    if self.client in ready:
      raise EOFError  # the client sends nothing during a batch
    for results in ready:
      worker = busy[results]
      try:
        result = worker.receive()
      except (EOFError, OSError):
        self._remove(worker, batch)
        continue
      if result is not None:
        item, worker.item = worker.item, -1
        if worker.changed or isinstance(result, UnusableError):
          self._remove(worker, batch)
        self._accept(item, result, batch)

  def _accept(self, item: int, result: Verdict | UnusableError, batch: Batch):
    """Takes what a worker found about an item.

    If a response got into a confined worker, it could call its check unusable, which ends a run. So
    the check is tried again, in another worker and on an empty response.
    """
    check, response = batch.tasks[item]
    doubt = batch.doubts.pop(item, None)
    if isinstance(result, UnusableError):
      if doubt or response == _nothing(check) or check.verifier not in worker_lib.CONFINED:
        raise result
      batch.doubts[item] = result
      batch.queue_of(item).appendleft(item)
    else:
      crash = Verdict(0.0, "crashed", f"{check.verifier}: {doubt}"[:1000])
      batch.add(item, crash if doubt else result)

  def _end_overdue(self, batch: Batch):
    """Kills the workers that have exceeded the time limit."""
    now = time.monotonic()
    for worker in list(self.workers):
      if worker.item >= 0 and now - worker.since > batch.limit:
        verdict = Verdict(0.0, "timed_out", f"took more than {batch.limit:g} s")
        self._remove(worker, batch, verdict)

  def _remove(self, worker: Worker, batch: Batch, verdict: Verdict | None = None):
    """Kills a worker. Its item gets the verdict, or without one a second worker; if that one dies
    too, the response has crashed its verifier."""
    self.workers.remove(worker)
    status, item = worker.kill(), worker.item
    if item < 0:
      return
    batch.deaths[item] += 1
    if verdict is None and batch.deaths[item] == 1:
      batch.queue_of(item).appendleft(item)
      return
    code = os.waitstatus_to_exitcode(status)
    if code == isolation.FAILED:
      failure = Verdict(0.0, "sandbox_failed", "the worker could not be confined twice")
    else:
      code = 128 - code if code > 128 else code  # as a confined worker's death is passed on
      cause = f"signal {-code}" if code < 0 else f"exit code {code}"
      failure = Verdict(0.0, "crashed", f"the worker died with {cause}")
    batch.add(item, verdict or failure)

  def fork(self, confined: bool, use: bool = True) -> Worker:
    """Starts a worker; without `use` it ends as soon as it is confined."""
    task_reader, task_writer = Pipe(duplex=False)
    result_reader, result_writer = os.pipe()
    server = os.getpid()
    if pid := os.fork():
      task_reader.close()
      os.close(result_writer)
      return Worker(pid, task_writer, result_reader, confined)
    status = isolation.FAILED
    try:  # the child must not return into the server's code
      os.setsid()
      low, high = sorted((task_reader.fileno(), result_writer))
      os.closerange(3, low)
      os.closerange(low + 1, high)
      os.closerange(high + 1, 4096)
      resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
      if confined and self.can_confine is not False:
        worker_lib.confine(server)
      else:
        isolation.die_with(server)
      status = 1
      if use:
        worker_lib.work(task_reader, result_writer, confined)
      status = 0
    finally:
      os._exit(status)

  def dismiss(self):
    """Ends all workers."""
    for worker in self.workers:
      worker.kill()
    self.workers.clear()


if __name__ == "__main__":
  main(Connection(int(sys.argv[1])), int(sys.argv[2]))
