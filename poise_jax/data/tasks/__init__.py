from poise_jax.data.tasks import arithmetic, countdown
from poise_jax.data.tasks.base import Example, Task
from poise_jax.errors import unknown_name


def _arithmetic(config, seed):
  kinds = tuple(config.kinds)
  return arithmetic.make(kinds, config.train, config.test, seed, config.careless)


def _countdown(config, seed):
  return countdown.make(config.train, config.test, seed, **config.countdown)


def _reasoning_gym(config, seed):
  from poise_jax.data.tasks import reasoning_gym  # its library takes seconds to import

  return reasoning_gym.make(config.generators.to_dict(), config.train, config.test, seed)


def _dataset(config, seed):
  from poise_jax.data.tasks import dataset  # so does TFDS

  return dataset.make(
    train_on=config.train_on,
    test_on=config.test_on,
    test=config.test,
    seed=seed,
    folder=config.folder,
    data_dir=config.data_dir,
    own=config.own.to_dict(),
  )


TASKS = {
  "arithmetic": _arithmetic,
  "countdown": _countdown,
  "dataset": _dataset,
  "reasoning_gym": _reasoning_gym,
}


def make(config, seed: int) -> Task:
  """The task of a run.

  Args:
    config: a ConfigDict with the fields of config.task in configs/common.py.
    seed: of everything that is drawn.

  Raises:
    UserError, OSError: the name is unknown (all are listed), or the task cannot be made as its
      fields say.
  """
  if config.name not in TASKS:
    raise unknown_name("task.name", config.name, TASKS)
  return TASKS[config.name](config, seed)


__all__ = ["TASKS", "Example", "Task", "arithmetic", "countdown", "make"]
