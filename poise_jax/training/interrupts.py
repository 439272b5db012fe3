"""SIGTERM and SIGINT: the first asks the loop to stop, the second ends the process at once."""

import os
import signal
import threading

from poise_jax.distributed import processes


class Interrupts:
  """Context manager that stores the first signal in `signal`, so that it never interrupts a write.

  Outside of the main thread, where Python handles no signals, it does nothing.
  """

  SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.signal: signal.Signals | None = None
    self._previous_handlers = {}

  def stop_requested(self) -> bool:
    """Whether any process of the run has received a signal. All processes must call this at the
    same point of the program, and all get the same answer."""
    signals = [number for number in processes.gather(self.signal) if number is not None]
    if signals:
      self.signal = signals[0]
    return bool(signals)

  @property
  def exit_code(self) -> int:
    """128 + the signal's number, as shells do: 143 after SIGTERM, 130 after SIGINT."""
    return 128 + self.signal

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      self._previous_handlers = {
        number: signal.signal(number, self._handle) for number in self.SIGNALS
      }
    return self

  def __exit__(self, *_):
    for number, handler in self._previous_handlers.items():
      signal.signal(number, handler)

  def _handle(self, number, _):
    if self.signal is not None:
      os._exit(128 + number)
    self.signal = signal.Signals(number)
    # Not print, which the signal may have interrupted.
    os.write(2, f"{self.signal.name}: saving and stopping; a second one stops at once\n".encode())
