"""Where a run's numbers go: console, metrics.jsonl, TensorBoard, Weights & Biases, report.html.

Each of them is a sink: `log(step, values)` once a step, with finite values only, and `close()`.
"""

import collections
import datetime
import importlib.util
import json
import math
import os
import pathlib
import time
from typing import Any

import rich.console
import rich.progress
import tensorboardX
from ml_collections import ConfigDict

from poise_jax import files
from poise_jax.errors import UserError, unknown_name
from poise_jax.reports import run as report
from poise_jax.reports import run_log as runs

SHOWN = {  # metric -> its name and format on the console
  "reward/mean": "reward {:.3f}",
  "eval/accuracy": "held-out {:.3f}",
  "probe/mae": "mae {:.3f}",
  "probe/pearson": "r {:+.2f}",
  "probe/variance_reduction": "var.red. {:+.2f}",
  "policy/entropy": "entropy {:.2f}",
  "policy/grad_norm": "grad {:.2f}",
  "rollout/length": "length {:.1f}",
  "time/step": "{:.1f} s",
}


class Logger:
  """Hands a run's numbers to its sinks; use as a context manager."""

  def __init__(self, workdir: pathlib.Path, config: ConfigDict, start: int, clock: float):
    """Continues the files of `workdir` after step `start`; drops what an interrupted run wrote
    beyond it, so that no step stands there twice.

    Args:
      workdir: the run's folder.
      config: of the run; steps, loggers.
      start: the last step whose entries stay; -1: none, the run begins.
      clock: time.perf_counter() when the run's work began, had it never stopped.
    """
    first, start = start + 1, max(start, 0)
    self.console = rich.console.Console(highlight=False, soft_wrap=True)
    self.files = {name: workdir / f"{name}.jsonl" for name in ("metrics", "samples")}
    for path in self.files.values():
      _cut(path, first)
    self.clock = clock
    self.screen = Console(self.console, config.steps, start)
    self.sinks = [self.screen, Jsonl(self.files["metrics"])]
    self.sinks += [LOGGERS[name](workdir, config, first) for name in config.loggers]
    self.sinks.append(Report(workdir, self.console))

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    for sink in self.sinks:
      try:
        sink.close()
      except OSError:
        if kind is None:  # otherwise the first error is the one to tell
          raise

  def phase(self, name: str):
    """Shows what is going on now beside the progress bar."""
    self.screen.phase(name)

  def log(self, step: int, metrics: dict[str, Any]):
    """One entry a step everywhere. A value that is not finite was not measured and is left out.

    Adds time/elapsed: seconds of all this run's work up to here, but for what was lost.
    """
    metrics = {**metrics, "time/elapsed": time.perf_counter() - self.clock}
    values = {k: float(v) for k, v in metrics.items() if math.isfinite(float(v))}
    for sink in self.sinks:
      sink.log(step, values)

  def samples(self, rows: list[dict[str, Any]]):
    """Appends answers with their rewards, baselines and advantages; their step comes first."""
    _append(self.files["samples"], rows)


class Silent:
  """The Logger of every process but the first."""

  console = rich.console.Console(quiet=True)

  def __init__(self, workdir: pathlib.Path, config: ConfigDict, start: int, clock: float):
    self.clock = clock

  def __enter__(self):
    return self

  def __exit__(self, *_):
    """Nothing is open."""

  def phase(self, name: str):
    """Shows nothing."""

  def log(self, step: int, metrics: dict[str, Any]):
    """Writes nothing."""

  def samples(self, rows: list[dict[str, Any]]):
    """Writes nothing."""


class Console:
  """A line a step, and below them a bar with the time left if the output is a terminal."""

  def __init__(self, console: rich.console.Console, steps: int, start: int):
    self.console, self.steps, self.start = console, steps, start
    self.ends = collections.deque(maxlen=50)  # when the latest steps ended
    self.progress = rich.progress.Progress(
      rich.progress.TextColumn("{task.description}"),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TextColumn("{task.fields[left]}"),
      rich.progress.TimeElapsedColumn(),
      console=console,
      disable=not console.is_terminal,
    )
    self.task = self.progress.add_task("starting", total=steps, completed=start, left="")
    self.progress.start()

  def phase(self, name: str):
    """Shows what is going on."""
    self.progress.update(self.task, description=name)

  def log(self, step, values):
    """Prints the metrics of SHOWN."""
    shown = [text.format(values[name]) for name, text in SHOWN.items() if name in values]
    left = self.left(step, time.perf_counter())
    self.progress.update(self.task, completed=step, left=left)
    beside = [left] * (bool(left) and not self.console.is_terminal)
    self.console.print(f"step {step:4d}/{self.steps}  " + "  ".join(shown + beside))

  def left(self, step: int, now: float) -> str:
    """The time left by the pace of the latest steps, evaluation and saving included; "" if no step
    was timed yet or none is left."""
    self.ends.append(now)
    if not self.start and step == 2:
      self.ends.popleft()  # step 1 compiled everything
    if len(self.ends) < 2 or step >= self.steps:
      return ""
    pace = (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
    return f"{datetime.timedelta(seconds=round(pace * (self.steps - step)))} left"

  def close(self):
    """Leaves the lines, and the bar as it is."""
    self.progress.stop()


class Jsonl:
  """A row a step: {"step": ..., metric: value, ...}."""

  def __init__(self, path: pathlib.Path):
    self.path = path

  def log(self, step, values):
    """Appends a row; it is in the file when this returns."""
    _append(self.path, [{"step": step, **values}])

  def close(self):
    """Nothing is open."""


class Report:
  """Writes report.html at every evaluation and at the end, whatever the end is."""

  def __init__(self, workdir: pathlib.Path, console: rich.console.Console):
    self.workdir, self.console = workdir, console
    self.is_old = False

  def log(self, step, values):
    """A page at evaluations; it reads the files, so it comes after them."""
    self.is_old = True
    if "eval/accuracy" in values:
      self.close()

  def close(self):
    """Writes what is not in the page yet. A page that fails is no reason to lose a run."""
    if not self.is_old:
      return
    self.is_old = False
    try:
      report.write(self.workdir)
    except Exception as error:
      reason = f"{type(error).__name__}: {error}"
      self.console.print(f"report.html could not be written ({reason})", markup=False)


class TensorBoard:
  """Event files in workdir/tensorboard."""

  def __init__(self, workdir: pathlib.Path, config: ConfigDict, first: int):
    self.writer = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=first)

  def log(self, step, values):
    """A scalar a metric."""
    for name, value in values.items():
      self.writer.add_scalar(name, value, step)

  def close(self):
    """Writes what is still in memory."""
    self.writer.close()


class WandB:
  """Weights & Biases, under one id however often the run is resumed.

  WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY and the others of its variables say the rest.
  wandb.json in the workdir keeps the id and the last step that was handed over: a resumed run does
  not send a step again. It is written first, so a kill in between leaves a gap rather than a twin.
  """

  def __init__(self, workdir: pathlib.Path, config: ConfigDict, first: int):
    import wandb

    self.path = workdir / "wandb.json"
    known = json.loads(self.path.read_text()) if self.path.exists() else {}
    self.last = known.get("last", -1)
    try:
      self.run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "poise_jax"),
        id=known.get("id"),
        resume="allow" if known else None,
        name=os.environ.get("WANDB_NAME", workdir.resolve().name),
        dir=str(workdir),
        config=json.loads(config.to_json()),
        settings=wandb.Settings(console="off"),  # the console has a progress bar on it
      )
    except wandb.Error as error:
      raise UserError(
        f"Weights & Biases did not start ({error}); set WANDB_MODE=offline, log in with `wandb "
        "login`, or take 'wandb' out of loggers"
      ) from error
    self._note()

  def log(self, step, values):
    """Sends a step, unless it was sent before."""
    if step <= self.last:
      return
    self.last = step
    self._note()
    self.run.log(values, step=step)

  def close(self):
    """Waits until everything is sent, or in the offline folder."""
    self.run.finish()

  def _note(self):
    files.write_whole(self.path, json.dumps({"id": self.run.id, "last": self.last}) + "\n")


LOGGERS = {"tensorboard": TensorBoard, "wandb": WandB}  # those that config.loggers chooses from


def check_loggers(loggers: tuple[str, ...]):
  """Raises UserError for a logger that there is not, or whose package is missing."""
  for name in loggers:
    if name not in LOGGERS:
      raise unknown_name("logger in loggers", name, LOGGERS)
  if "wandb" in loggers and not importlib.util.find_spec("wandb"):
    raise UserError(
      "loggers has 'wandb', which is not installed: python -m pip install wandb, or take it out"
    )


def _append(path, rows):
  with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
    file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _cut(path: pathlib.Path, first: int):
  """Cuts a file of rows off before step `first`, or where a row was not written whole."""
  if not path.exists():
    return
  end = 0
  for step, start, line in runs.whole_rows(path):
    if step >= first:
      break
    end = start + len(line)
  if end < path.stat().st_size:
    os.truncate(path, end)
