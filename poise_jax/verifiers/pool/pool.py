"""Judges batches in processes that can be killed and never import jax."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

from poise_jax.errors import UserError
from poise_jax.verifiers.base import Check, UnusableError, Verdict

STARTING = 60.0  # seconds in which a process must start or load a library
DEATHS = 3  # of the verifiers' main process, without a verdict in between, before it is an error


class Pool:
  """Workers that judge answers; close it, or use it as a context manager.

  They end by themselves with the process that made the pool, however that ends.
  """

  def __init__(self, workers: int = 0, time_limit: float = 10.0):
    """Starts the workers' process.

    Args:
      workers: answers judged at once; 0: one for each core. Up to worker.CROWD times as many while
        answers hang.
      time_limit: seconds of wall-clock for one answer.

    Raises:
      OSError: it does not start.
    """
    self.workers = workers or len(os.sched_getaffinity(0))
    self.time_limit = time_limit
    self._process = self._pipe = None
    self._start()

  def score(self, checks: Sequence[Check], responses: Sequence[str]) -> list[Verdict]:
    """Judges responses, one check each; as verifiers.score, but nothing that an answer does to its
    verifier reaches this process.

    An answer that takes longer than the time limit scores 0, "timed_out"; one whose verifier
    raises, or dies twice, scores 0, "crashed".

    Raises:
      UnusableError: a check cannot judge any answer.
      OSError: the workers' process cannot be started or dies again and again.
    """
    if len(checks) != len(responses):
      raise UserError(f"{len(checks)} checks for {len(responses)} responses")
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
          said = self._hear(2 * self.time_limit + STARTING)
          if isinstance(said, str):
            raise UnusableError(said)
          verdicts.update((missing[place], verdict) for place, verdict in said)
      except (EOFError, ConnectionError) as error:
        deaths = 1 if len(verdicts) > before else deaths + 1
        self.close()
        if deaths == DEATHS:
          raise OSError(f"the verifiers' process died {DEATHS} times in a row") from error
      except BaseException:
        self.close()  # verdicts of this batch may still be on their way
        raise
    return [verdicts[i] for i in range(len(checks))]

  def load(self, checks: Sequence[Check]):
    """Loads what the checks need before it is needed; raises as `score`."""
    if self._process is None:
      self._start()
    try:
      self._pipe.send((checks, [], self.time_limit))
      said = self._hear(STARTING)
    except (EOFError, ConnectionError) as error:
      self.close()
      raise OSError("the verifiers' process died while it loaded their libraries") from error
    if isinstance(said, str):
      raise UnusableError(said)

  def _start(self):
    ours, theirs = socket.socketpair()
    # The paths of this process, so that a user's own function is found there as it is here.
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with theirs:
      self._process = subprocess.Popen(
        [
          sys.executable,
          "-m",
          "poise_jax.verifiers.pool.worker",
          str(theirs.fileno()),
          str(self.workers),
        ],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=2,  # what a user's function prints
        env={**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", **threads},
        start_new_session=True,  # Ctrl-C is this process's to handle
      )
    self._pipe = Connection(ours.detach())
    try:
      self._hear(STARTING)
    except (EOFError, ConnectionError) as error:
      code = self._process.wait()
      self.close()
      raise OSError(
        f"the verifiers' process does not start (exit code {code}); its last words are above. It "
        f"is {sys.executable} -m poise_jax.verifiers.pool.worker"
      ) from error

  def _hear(self, seconds):
    if not self._pipe.poll(seconds):
      self.close()
      raise TimeoutError(f"the verifiers' process said nothing for {seconds:g} s")
    return self._pipe.recv()

  def close(self):
    """Ends all workers; more than once does no harm. The next `score` starts new ones."""
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
