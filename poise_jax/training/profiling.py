"""A jax.profiler trace of chosen steps, for `tensorboard --logdir=WORKDIR/profile` or Perfetto."""

import pathlib

import jax

from poise_jax.errors import UserError


def check_profile_steps(profile_steps: tuple[int, ...], steps: int):
  """Raises UserError unless `profile_steps` is empty or the first and last of some of the steps 1
  to `steps`."""
  if not profile_steps:
    return
  if len(profile_steps) != 2 or not 1 <= profile_steps[0] <= profile_steps[1] <= steps:
    raise UserError(
      "profile_steps must be empty, or the first and the last step to trace, both from 1 to "
      f"steps={steps}, got {tuple(profile_steps)}; step 1 is mostly compilation"
    )


class Profiler:
  """Context manager that traces the steps from the first to the last of `profile_steps`."""

  def __init__(self, folder: pathlib.Path, profile_steps: tuple[int, ...]):
    self.folder = folder
    self.first, self.last = profile_steps or (1, 0)
    self.annotation = None  # annotation of the current step while it is traced

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self.annotation:
      self.annotation.__exit__(None, None, None)
      self.annotation = None
      jax.profiler.stop_trace()

  def at(self, step: int):
    """Marks the start of a step. A run may be resumed between the first and the last one."""
    if not self.first <= step <= self.last:
      return self.__exit__()
    if self.annotation:
      self.annotation.__exit__(None, None, None)
    else:
      jax.profiler.start_trace(str(self.folder))
    self.annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
    self.annotation.__enter__()
