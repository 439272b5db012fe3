"""Judges batches of responses in processes that can be killed and never import jax."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

from poise_jax.verifiers.base import Check, UnusableError, Verdict
from poise_jax.verifiers.pool.messages import LONGEST, from_json, verdict_from_data

STARTUP = 60.0  # seconds that a process may take to start or to load a library
_LONGEST = 64 * LONGEST  # bytes of a message of the verifiers' process: verdicts of many workers
MAX_DEATHS = 3  # deaths of the verifiers' process in a row, without a verdict in between


class Pool:
  """Workers that judge responses; close it, or use it as a context manager.

  The workers end with the process that made the pool, however that process ends.
  """

  def __init__(self, workers: int = 0, time_limit: float = 10.0):
    """Starts the verifiers' process.

    Args:
      workers: responses judged at the same time; 0 for one per core. While responses hang, up to
        server.CROWD times as many.
      time_limit: wall-clock seconds per response.

    Raises:
      OSError: the process does not start.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    self.workers = workers or (len(affinity(0)) if affinity else os.cpu_count())
    self.time_limit = time_limit
    self._process = self._pipe = None
    self._start()

  def score(self, checks: Sequence[Check], responses: Sequence[str]) -> list[Verdict]:
    """Judges responses, one check each. As verifiers.score, but this process is safe from whatever
    a response does to its verifier.

    A response that exceeds the time limit scores 0 with status "timed_out". A response whose
    verifier raises, or whose worker dies twice, scores 0 with status "crashed". One whose sandbox
    could not be set up in worker.TRIES attempts was not judged: 0 with status "sandbox_failed".

    Raises:
      UnusableError: a check cannot judge any response.
      OSError: the verifiers' process does not start, does not answer, or dies repeatedly.
    """
    if len(checks) != len(responses):
      raise ValueError(f"got {len(checks)} checks for {len(responses)} responses")
    verdicts: dict[int, Verdict] = {}
    deaths = 0
    while len(verdicts) < len(checks):
      missing = [i for i in range(len(checks)) if i not in verdicts]
      before = len(verdicts)
      try:
        if self._process is None:
          self._start()
        self._pipe.send(
          ([checks[i] for i in missing], [responses[i] for i in missing], self.time_limit)
        )
        while len(verdicts) < len(checks):
          content = self._receive("verdicts", 2 * self.time_limit + STARTUP)
          for place, verdict in _verdicts(content, len(missing)):
            verdicts[missing[place]] = verdict
      except (EOFError, ConnectionError) as error:
        deaths = 1 if len(verdicts) > before else deaths + 1
        self.close()
        if deaths == MAX_DEATHS:
          raise OSError(f"the verifiers' process died {MAX_DEATHS} times in a row") from error
      except BaseException:
        self.close()  # verdicts of this batch may still be in the pipe
        raise
    return [verdicts[i] for i in range(len(checks))]

  def load(self, checks: Sequence[Check]):
    """Loads the libraries that the checks need ahead of time; raises as `score` does."""
    if self._process is None:
      self._start()
    try:
      self._pipe.send((checks, [], self.time_limit))
      self._receive("verdicts", STARTUP)
    except (EOFError, ConnectionError) as error:
      self.close()
      raise OSError("the verifiers' process died while it loaded its libraries") from error

  def _start(self):
    parent_end, child_end = socket.socketpair()
    # The child gets this process's import path, so that it finds the same user's function.
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    module = "poise_jax.verifiers.pool.server"
    with child_end:
      self._process = subprocess.Popen(
        [sys.executable, "-m", module, str(child_end.fileno()), str(self.workers)],
        pass_fds=[child_end.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=2,  # a user's function may print
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", **threads},
        start_new_session=True,  # this process handles Ctrl-C
      )
    self._pipe = Connection(parent_end.detach())
    try:
      self._receive("ready", STARTUP)
    except (EOFError, ConnectionError) as error:
      code = self._process.wait()
      self.close()
      raise OSError(
        f"the verifiers' process does not start (exit code {code}); its output is above. "
        f"The command is {sys.executable} -m {module}"
      ) from error

  def _receive(self, kind, seconds):
    """The content of the next message of the verifiers' process, which must be of that kind.

    Raises:
      UnusableError: the process reports an unusable check.
      OSError: it does not answer, or does not follow the protocol.
    """
    if not self._pipe.poll(seconds):
      self.close()
      raise TimeoutError(f"the verifiers' process has not answered for {seconds:g} s")
    try:
      message = from_json(self._pipe.recv_bytes(_LONGEST))
    except ValueError as error:
      raise _broken(error) from error
    if "unusable" in message:
      raise UnusableError(str(message["unusable"])[:10_000])
    if kind not in message:
      raise _broken(f"{message!r:.100}")
    return message[kind]

  def close(self):
    """Ends all workers. Safe to call more than once; the next `score` starts new workers."""
    if self._process is None:
      return
    self._pipe.close()  # the process ends its workers, then itself
    try:
      self._process.wait(5)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process = self._pipe = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _verdicts(content, count):
  """Pairs of a place below `count` and a verdict; OSError if the content is anything else."""
  try:
    pairs = [(place, verdict_from_data(data)) for place, data in content]
  except (TypeError, ValueError) as error:
    raise _broken(error) from error
  if not all(type(place) is int and 0 <= place < count for place, _ in pairs):
    raise _broken(f"{[place for place, _ in pairs]!r:.100}")
  return pairs


def _broken(what):
  return OSError(f"the verifiers' process sent something else than verdicts: {what}")
