"""Where numbers go: the console, metrics.jsonl, TensorBoard and samples.jsonl."""

import json
import math
import pathlib
import time
from typing import Any

import rich.console
import rich.progress
import tensorboardX

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
  """Writes a run's metrics; use as a context manager."""

  def __init__(self, workdir: pathlib.Path, steps: int, start: int, clock: float):
    """Continues the files of `workdir` after step `start`; drops what an interrupted run wrote
    beyond it, so that no step stands there twice. `clock`: time.perf_counter() at the start."""
    self.console = rich.console.Console(highlight=False, soft_wrap=True)
    self.files = {name: workdir / f"{name}.jsonl" for name in ("metrics", "samples")}
    last = {name: _keep_until(path, start) for name, path in self.files.items()}["metrics"]
    self.clock = clock - last.get("time/elapsed", 0.0)
    self.tensorboard = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start)
    self.progress = rich.progress.Progress(
      *rich.progress.Progress.get_default_columns(),
      rich.progress.TimeElapsedColumn(),
      console=self.console,
      disable=not self.console.is_terminal,
    )
    self.task = self.progress.add_task("starting", total=steps, completed=start)

  def __enter__(self):
    self.progress.start()
    return self

  def __exit__(self, *_):
    self.progress.stop()
    self.tensorboard.close()

  def phase(self, name: str):
    """Shows what is going on now beside the progress bar."""
    self.progress.update(self.task, description=name)

  def log(self, step: int, metrics: dict[str, Any]):
    """One line a step everywhere. A value that is not finite was not measured and is left out.

    Adds time/elapsed: seconds of all this run's work up to here, but for what was lost.
    """
    metrics = {**metrics, "time/elapsed": time.perf_counter() - self.clock}
    values = {k: float(v) for k, v in metrics.items() if math.isfinite(float(v))}
    self._append("metrics", {"step": step, **values})
    for name, value in values.items():
      self.tensorboard.add_scalar(name, value, step)
    shown = [text.format(values[name]) for name, text in SHOWN.items() if name in values]
    self.console.print(f"step {step:4d}  " + "  ".join(shown))
    self.progress.update(self.task, completed=step)

  def samples(self, rows: list[dict[str, Any]]):
    """Appends answers with their rewards, baselines and advantages."""
    for row in rows:
      self._append("samples", row)

  def _append(self, name, row):
    with self.files[name].open("a") as file:
      file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _keep_until(path: pathlib.Path, step: int) -> dict[str, Any]:
  """Drops the lines after `step`, and a last line that was cut off in the middle.

  Returns the last row that stays, empty if there is none.
  """
  if not path.exists():
    return {}
  kept = []
  for line in path.read_text().splitlines(keepends=True):
    if line.endswith("\n") and json.loads(line)["step"] <= step:
      kept.append(line)
  path.write_text("".join(kept))
  return json.loads(kept[-1]) if kept else {}
