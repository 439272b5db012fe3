"""Tasks by name: questions with checks of their answers, in a training and a held-out set."""

from ml_collections import ConfigDict

from poise_jax.data.tasks import arithmetic, countdown, reasoning
from poise_jax.data.tasks.base import Example, Task
from poise_jax.data.tasks.config import (
  ArithmeticConfig,
  CountdownConfig,
  DatasetConfig,
  OwnConfig,
  ReasoningConfig,
  ReasoningGymConfig,
  TaskConfig,
)
from poise_jax.errors import UserError, unknown_name


def _arithmetic(config, seed):
  options = ArithmeticConfig(**config.arithmetic)
  return arithmetic.make(options, config.train, config.test, seed)


def _countdown(config, seed):
  options = CountdownConfig(**config.countdown)
  return countdown.make(options, config.train, config.test, seed)


def _reasoning(config, seed):
  options = ReasoningConfig(**config.reasoning.to_dict())
  return reasoning.make(options, config.think_end, config.train, config.test, seed)


def _reasoning_gym(config, seed):
  from poise_jax.data.tasks import reasoning_gym  # importing its library takes seconds

  options = ReasoningGymConfig(**config.reasoning_gym.to_dict())
  return reasoning_gym.make(options, config.train, config.test, seed)


def _dataset(config, seed):
  from poise_jax.data.tasks import dataset  # importing TFDS takes seconds

  fields = config.dataset.to_dict()
  options = DatasetConfig(**fields | {"own": OwnConfig(**fields["own"])})
  if options.own.messages and not config.chat:
    raise UserError(
      f"task.dataset.own.messages={options.own.messages!r} names a column of chats; it needs "
      "task.chat=True"
    )
  return dataset.make(options, config.test, seed)


TASKS = {
  "arithmetic": _arithmetic,
  "countdown": _countdown,
  "dataset": _dataset,
  "reasoning": _reasoning,
  "reasoning_gym": _reasoning_gym,
}


def make(config: ConfigDict, seed: int) -> Task:
  """The task of a run.

  Args:
    config: config.task, with the fields of TaskConfig.
    seed: random seed of the problems and of the rows held out.

  Raises:
    UserError, OSError: the name is unknown, or the task's section has values that cannot work.
  """
  if config.name not in TASKS:
    raise unknown_name("task.name", config.name, TASKS)
  return TASKS[config.name](config, seed)


__all__ = ["TASKS", "Example", "Task", "TaskConfig", "make"]
