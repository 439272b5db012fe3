"""SIGTERM and SIGINT: the loop is asked to stop; a second one ends the process at once."""

import os
import signal
import threading

from poise_jax.distributed import processes


class Interrupts:
  """While entered, notes the first signal in `signal`; code 128 + its number is the convention.

  A scheduler's SIGTERM and the terminal's Ctrl-C then never fall into a write. Outside of the main
  thread, where Python takes no signals, it does nothing.
  """

  SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.signal: signal.Signals | None = None
    self._before = {}

  def agreed(self) -> bool:
    """Whether a signal has come to any process of the run; all of them ask at the same point."""
    if came := [number for number in processes.gather(self.signal) if number is not None]:
      self.signal = came[0]
    return bool(came)

  @property
  def exit_code(self) -> int:
    """143 after SIGTERM, 130 after SIGINT."""
    return 128 + self.signal

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, _):
    if self.signal is not None:
      os._exit(128 + number)
    self.signal = signal.Signals(number)
    # Not print: the signal may have come in the middle of one.
    os.write(2, f"{self.signal.name}: saving and stopping; a second one stops at once\n".encode())
