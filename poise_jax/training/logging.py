"""Sinks of a run's metrics: console, metrics.jsonl, TensorBoard, Weights & Biases, report.html.

A sink has two methods: `log(step, values)`, called once per step with finite values only, and
`close()`.
"""

import collections
import datetime
import importlib.util
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import rich.console
import rich.progress
import tensorboardX
from jaxtyping import Int
from ml_collections import ConfigDict

from poise_jax import files
from poise_jax.errors import UserError, unknown_name
from poise_jax.reports import busy as busy_file
from poise_jax.reports import run, run_log, watchers

HELD_OUT = "eval/"  # stands for the metric of eval.best_by
CONSOLE_METRICS = {  # metric -> name and format on the console
  "reward/mean": "reward {:.3f}",
  HELD_OUT: "held-out {} {:.3f}",
  "probe/mae": "mae {:.3f}",
  "probe/pearson": "r {:.2f}",
  "probe/variance_reduction": "var.red. {:+.2f}",
  "policy/entropy": "entropy {:.2f}",
  "policy/grad_norm": "grad {:.2f}",
  "rollout/length": "length {:.1f}",
  "rollout/truncated_fraction": "truncated {:.0%}",
  "verifier/unparsable_fraction": "unparsable {:.0%}",
  "time/step": "{:.1f} s",
}

CEILINGS = {"probe/pearson": "probe/ceiling"}  # metric -> what a perfect predictor would reach


class Sink(Protocol):
  """A destination of metrics."""

  def log(self, step: int, values: Mapping[str, float]):
    """Takes the metrics of a step."""

  def close(self):
    """Writes what is still in memory."""


class Logger:
  """Passes a run's metrics to its sinks; a context manager."""

  def __init__(self, workdir: pathlib.Path, config: ConfigDict, start: int, clock: float):
    """Continues the files of `workdir` after step `start`. Deletes entries of later steps, which an
    interrupted run has left, so that no step appears twice.

    Args:
      workdir: folder of the run.
      config: config of the run, of which steps, loggers, eval.best_by and train.max_grad_norm are
        read.
      start: last step whose entries are kept; -1 keeps none.
      clock: time.perf_counter() at the start of the run, had it never been interrupted.
    """
    first, start = start + 1, max(start, 0)
    self.console = rich.console.Console(highlight=False, soft_wrap=True)
    self.files = {name: workdir / f"{name}.jsonl" for name in ("metrics", "samples")}
    for path in self.files.values():
      _cut(path, first)
    self.watch = watchers.Watch(config.train.max_grad_norm, run_log.metrics(self.files["metrics"]))
    self.workdir, self.clock = workdir, clock
    self.screen = Console(self.console, config.steps, start, config.eval.best_by)
    self.sinks: list[Sink] = [self.screen, Jsonl(self.files["metrics"])]
    self.sinks += [LOGGERS[name](workdir, config, first) for name in config.loggers]
    self.sinks.append(Report(workdir, self.console))

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    for sink in self.sinks:
      try:
        sink.close()
      except OSError:
        if kind is None:  # otherwise the first error is the one to report
          raise

  def phase(self, name: str, done: int | None = None, total: int | None = None):
    """Shows the current activity beside the progress bar, and how much of it is done."""
    self.screen.phase(name, done, total)

  def log(self, step: int, metrics: Mapping[str, float]):
    """Writes one entry to every sink. Values that are not finite were not measured and are omitted.

    Adds time/elapsed: seconds that the run has worked, without work that an interruption lost; and
    warn/NAME of the watchers that find something, whose sentence is printed once a run.
    """
    metrics = {**metrics, "time/elapsed": time.perf_counter() - self.clock}
    values = {k: float(v) for k, v in metrics.items() if math.isfinite(float(v))}
    warnings, sentences = self.watch(step, values)
    for sink in self.sinks:
      sink.log(step, values | warnings)
    for sentence in sentences:
      self.console.print(f"step {step}: warning: {sentence}", markup=False)

  def samples(self, rows: Sequence[dict[str, Any]]):
    """Appends responses to samples.jsonl; the first key of a row must be `step`."""
    _append(self.files["samples"], rows)

  def busy_rows(self, step: int, slots: int, busy: Int[np.ndarray, " steps"]):
    """Replaces busy_rows.json; see reports/busy.py."""
    busy_file.write(self.workdir, step, slots, busy)


class Silent:
  """The Logger of all processes except the first: it does nothing."""

  console = rich.console.Console(quiet=True)

  def __init__(self, workdir: pathlib.Path, config: ConfigDict, start: int, clock: float):
    self.clock = clock

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def phase(self, name: str, done: int | None = None, total: int | None = None):
    """Does nothing."""

  def log(self, step: int, metrics: Mapping[str, float]):
    """Does nothing."""

  def samples(self, rows: Sequence[dict[str, Any]]):
    """Does nothing."""

  def busy_rows(self, step: int, slots: int, busy: Int[np.ndarray, " steps"]):
    """Does nothing."""


class Console:
  """A line per step and, on a terminal, a progress bar with the time left below them."""

  def __init__(
    self, console: rich.console.Console, steps: int, start: int, best_by: str = run_log.GREEDY
  ):
    self.console, self.steps, self.start, self.best_by = console, steps, start, best_by
    self.ends = collections.deque(maxlen=50)  # end times of the latest steps
    self.progress = rich.progress.Progress(
      rich.progress.TextColumn("{task.description}"),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TextColumn("{task.fields[time_left]}"),
      rich.progress.TimeElapsedColumn(),
      console=console,
      disable=not console.is_terminal,
    )
    self.task = self.progress.add_task("starting", total=steps, completed=start, time_left="")
    self.progress.start()

  def phase(self, name: str, done: int | None = None, total: int | None = None):
    """Shows the current activity. The bar counts the run's steps, or `done` of `total` if given."""
    self.progress.update(self.task, description=name, completed=done, total=total)

  def log(self, step: int, values: Mapping[str, float]):
    """Prints the metrics of CONSOLE_METRICS, those of CEILINGS as "r 0.62 of 0.71"."""
    parts = []
    for name, text in CONSOLE_METRICS.items():
      if name == HELD_OUT:
        name = run_log.metric_of(self.best_by)
        text = text.replace("{}", self.best_by)
      if name in values:
        ceiling = values.get(CEILINGS.get(name))
        parts.append(text.format(values[name]) + ("" if ceiling is None else f" of {ceiling:.2f}"))
    time_left = self.time_left(step, time.perf_counter())
    self.progress.update(self.task, completed=step, total=self.steps, time_left=time_left)
    if time_left and not self.console.is_terminal:
      parts.append(time_left)
    self.console.print(f"step {step:4d}/{self.steps}  " + "  ".join(parts))

  def time_left(self, step: int, now: float) -> str:
    """The time left at the pace of the latest steps, evaluation and saving included; "" before two
    steps are timed and after the last step."""
    self.ends.append(now)
    if not self.start and step == 1:
      self.ends.popleft()  # step 1 includes compilation
    if len(self.ends) < 2 or step >= self.steps:
      return ""
    pace = (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
    return f"{datetime.timedelta(seconds=round(pace * (self.steps - step)))} left"

  def close(self):
    """Stops the bar, which stays on the screen."""
    self.progress.stop()


class Jsonl:
  """A row per step: {"step": ..., metric: value, ...}."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def log(self, step: int, values: Mapping[str, float]):
    """Appends a row, which is in the file when this returns."""
    _append(self.path, [{"step": step, **values}])

  def close(self):
    """Does nothing: no file is open."""


class Report:
  """Writes report.html at every evaluation and at the end, even after an error."""

  def __init__(self, workdir: pathlib.Path, console: rich.console.Console):
    self.workdir, self.console = workdir, console
    self.is_outdated = False

  def log(self, step: int, values: Mapping[str, float]):
    """Writes the report at evaluations. It reads the files of the other sinks, so it is the last
    one."""
    self.is_outdated = True
    if "eval/accuracy" in values:
      self.close()

  def close(self):
    """Writes the report if it is outdated."""
    if not self.is_outdated:
      return
    self.is_outdated = False
    try:
      run.write(self.workdir)
    except Exception as error:  # a failed report is no reason to lose a run
      reason = f"{type(error).__name__}: {error}"
      self.console.print(f"report.html could not be written ({reason})", markup=False)


class TensorBoard:
  """Event files in workdir/tensorboard."""

  def __init__(self, workdir: pathlib.Path, config: ConfigDict, first: int):
    self.writer = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=first)

  def log(self, step: int, values: Mapping[str, float]):
    """Adds a scalar per metric."""
    for name, value in values.items():
      self.writer.add_scalar(name, value, step)

  def close(self):
    """Writes what is still in memory."""
    self.writer.close()


class WandB:
  """Weights & Biases, under one id however often the run is resumed.

  Its environment variables, such as WANDB_MODE=offline, WANDB_PROJECT and WANDB_ENTITY, set the
  rest. wandb.json in the workdir stores the id and the last step sent, so that a resumed run sends
  no step twice. It is written first: a run killed in between leaves a gap, not a duplicate.
  """

  def __init__(self, workdir: pathlib.Path, config: ConfigDict, first: int):
    import wandb

    self.path = workdir / "wandb.json"
    previous = json.loads(self.path.read_text()) if self.path.exists() else {}
    self.last_step = previous.get("last", -1)
    try:
      self.run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "poise_jax"),
        id=previous.get("id"),
        resume="allow" if previous else None,
        name=os.environ.get("WANDB_NAME", workdir.resolve().name),
        dir=str(workdir),
        config=json.loads(config.to_json()),
        settings=wandb.Settings(console="off"),  # the console has a progress bar
      )
    except wandb.Error as error:
      raise UserError(
        f"Weights & Biases did not start ({error}); set WANDB_MODE=offline, log in with `wandb "
        "login`, or remove 'wandb' from loggers"
      ) from error
    self._store_position()

  def log(self, step: int, values: Mapping[str, float]):
    """Sends the metrics of a step, unless it was sent before."""
    if step <= self.last_step:
      return
    self.last_step = step
    self._store_position()
    self.run.log(values, step=step)

  def close(self):
    """Waits until everything is sent, or written to the offline folder."""
    self.run.finish()

  def _store_position(self):
    files.write_whole(self.path, json.dumps({"id": self.run.id, "last": self.last_step}) + "\n")


LOGGERS = {"tensorboard": TensorBoard, "wandb": WandB}  # choices of config.loggers


def check_loggers(loggers: tuple[str, ...]):
  """Raises UserError for a logger that does not exist or whose package is not installed."""
  for name in loggers:
    if name not in LOGGERS:
      raise unknown_name("logger in loggers", name, LOGGERS)
  if "wandb" in loggers and not importlib.util.find_spec("wandb"):
    raise UserError(
      "wandb is not installed: python -m pip install wandb, or remove 'wandb' from loggers"
    )


def _append(path: pathlib.Path, rows: Sequence[dict[str, Any]]):
  with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
    file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _cut(path: pathlib.Path, first: int):
  """Truncates a file of rows before step `first` or before the first incomplete row."""
  if not path.exists():
    return
  end = 0
  for step, start, line in run_log.whole_rows(path):
    if step >= first:
      break
    end = start + len(line)
  if end < path.stat().st_size:
    os.truncate(path, end)
