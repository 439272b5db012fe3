"""A jax.profiler trace of chosen steps: `tensorboard --logdir=WORKDIR/profile`, or Perfetto."""

import pathlib

import jax

from poise_jax.errors import UserError


def check_profile_steps(profile_steps: tuple[int, ...], steps: int):
  """Raises UserError unless there is nothing to trace, or a first and a last step of the run."""
  if not profile_steps:
    return
  if len(profile_steps) != 2 or not 1 <= profile_steps[0] <= profile_steps[1] <= steps:
    raise UserError(
      f"profile_steps={tuple(profile_steps)} must be the first and the last step to trace, both "
      f"from 1 to steps={steps}, or empty for no trace; step 1 is mostly compilation"
    )


class Profiler:
  """Traces steps from the first to the last of `profile_steps`; use as a context manager."""

  def __init__(self, folder: pathlib.Path, profile_steps: tuple[int, ...]):
    self.folder = folder
    self.first, self.last = profile_steps or (1, 0)
    self.annotation = None  # of the step that is being traced

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self.annotation:
      self.annotation.__exit__(None, None, None)
      self.annotation = None
      jax.profiler.stop_trace()

  def at(self, step: int):
    """Step `step` begins here. (A run may also be resumed between the first and the last.)"""
    if not self.first <= step <= self.last:
      return self.__exit__()
    if self.annotation:
      self.annotation.__exit__(None, None, None)
    else:
      jax.profiler.start_trace(str(self.folder))
    self.annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
    self.annotation.__enter__()
