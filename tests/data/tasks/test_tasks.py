"""A task by its name and config."""

import pytest

from configs import common
from poise_jax.data import tasks


def config(**fields):
  task = common.default("poise").task
  for name, value in fields.items():
    if name == "own":
      task.own.update(value)
    else:
      task[name] = value
  return task


def test_every_task_can_be_made_from_the_defaults_and_what_it_needs(tmp_path):
  (tmp_path / "a.csv").write_text("question,answer\n" + "".join(f"{i}?,{i}\n" for i in range(9)))
  needs = {
    "reasoning_gym": dict(generators={"gcd": {}}),
    "dataset": dict(
      train_on="own", own=dict(train=str(tmp_path / "a.csv")), data_dir=str(tmp_path / "built")
    ),
  }
  for name in tasks.TASKS:
    task = tasks.make(config(name=name, train=20, test=3, **needs.get(name, {})), seed=1)
    assert len(task.test) == 3 and len(task.train) == (6 if name == "dataset" else 20)


def test_the_seed_goes_through():
  for name, more in (("countdown", {}), ("reasoning_gym", dict(generators={"gcd": {}}))):
    a, b, c = (tasks.make(config(name=name, train=5, test=5, **more), s) for s in (1, 1, 2))
    assert a == b and a.train != c.train and a.test != c.test


def test_unknown_names_list_all_with_the_nearest():
  with pytest.raises(ValueError, match="task.name 'countdwn' is unknown; did you mean 'countdown'"):
    tasks.make(config(name="countdwn"), 0)
  with pytest.raises(ValueError, match="Known are arithmetic, countdown, dataset, reasoning_gym"):
    tasks.make(config(name="?"), 0)


def test_empty_choices_say_what_there_is():
  with pytest.raises(ValueError, match="task.generators is empty"):
    tasks.make(config(name="reasoning_gym"), 0)
  with pytest.raises(ValueError, match="task.train_on is empty; name datasets out of gsm8k, math"):
    tasks.make(config(name="dataset"), 0)
