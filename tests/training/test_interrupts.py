"""Signals: the first one saves and stops, a second one stops at once."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest
from tiny_run import lines, tiny

from experiments.run_differences import differences
from poise_jax.models.io import run_checkpoint
from poise_jax.training import loop
from poise_jax.training.interrupts import Interrupts
from poise_jax.training.logging import Logger


@pytest.mark.parametrize(
  "number,phase,code,saved",
  [
    # The resumed run samples step 2 again, as it does after the KeyboardInterrupt of
    # test_checkpoints.py.
    pytest.param(signal.SIGTERM, "step 2: sampling", 143, 1, marks=pytest.mark.slow),
    (signal.SIGINT, "step 2: updating", 130, 2),
    (signal.SIGTERM, "evaluating", 143, 0),
  ],
)
def test_a_signal_saves_and_stops_and_the_resumed_run_equals_an_uninterrupted_one(
  finished_run, tmp_path, monkeypatch, capfd, number, phase, code, saved
):
  folder, handlers = tmp_path / "run", [signal.getsignal(s) for s in Interrupts.SIGNALS]
  show = Logger.phase

  def interrupt(self, name, *progress):
    show(self, name, *progress)
    if name == phase:
      os.kill(os.getpid(), number)

  monkeypatch.setattr(Logger, "phase", interrupt)
  with pytest.raises(SystemExit) as stopped:
    loop.train(tiny(), str(folder))
  assert stopped.value.code == code
  assert run_checkpoint.steps_of(folder)[-1] == saved
  output = capfd.readouterr()
  assert f"{number.name}: saving and stopping; a second one stops at once" in output.err
  assert f"step {saved} is saved" in output.out
  assert [signal.getsignal(s) for s in Interrupts.SIGNALS] == handlers

  monkeypatch.setattr(Logger, "phase", show)
  loop.train(tiny(), str(folder))
  assert differences(folder, finished_run) == []
  assert [row["step"] for row in lines(folder / "provenance.jsonl")] == [0, saved]


@pytest.mark.parametrize("first,second", [("SIGTERM", "SIGTERM"), ("SIGTERM", "SIGINT")])
def test_a_second_signal_stops_at_once(first, second):
  code = f"""
import os, signal
from poise_jax.training.interrupts import Interrupts
with Interrupts() as interrupts:
  os.kill(os.getpid(), signal.{first})
  print(interrupts.exit_code, flush=True)
  os.kill(os.getpid(), signal.{second})
  print("still here")
"""
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
  assert done.returncode == 128 + getattr(signal, second)
  assert done.stdout == "143\n"


def test_outside_of_the_main_thread_signals_are_left_alone():
  results = []

  def work():
    with Interrupts() as interrupts:
      results.append((signal.getsignal(signal.SIGTERM), interrupts.signal))

  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert results == [(before, None)]
