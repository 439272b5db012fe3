"""Tasks by name and config, and the fields of config.task."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from configs import common, quickstart, smollm2_evaluation
from poise_jax.data import tasks
from poise_jax.data.tasks import Example, Task
from poise_jax.data.tasks.config import (
  MOVED,
  SECTIONS,
  ArithmeticConfig,
  CountdownConfig,
  OwnConfig,
  ReasoningGymConfig,
  task_of_run,
  with_changes,
)
from poise_jax.verifiers import Check


def task_config(changes):
  return with_changes(common.default("poise").task, changes, "task")


def test_every_task_works_with_its_defaults_and_required_fields(tmp_path):
  (tmp_path / "a.csv").write_text("question,answer\n" + "".join(f"{i}?,{i}\n" for i in range(9)))
  own = dict(train=str(tmp_path / "a.csv"))
  required = {
    "reasoning_gym": dict(generators={"gcd": {}}),
    "dataset": dict(train_on="own", own=own, data_dir=str(tmp_path / "built")),
  }
  for name in tasks.TASKS:
    config = task_config({"name": name, "train": 20, "test": 3, name: required.get(name, {})})
    config.think_end = "</think>" if name == "reasoning" else ""
    task = tasks.make(config, seed=1)
    assert len(task.test) == 3 and len(task.train) == (6 if name == "dataset" else 20)


def test_tasks_depend_on_the_seed():
  for name, section in (("countdown", {}), ("reasoning_gym", dict(generators={"gcd": {}}))):
    config = task_config({"name": name, "train": 5, "test": 5, name: section})
    a, b, c = (tasks.make(config, seed) for seed in (1, 1, 2))
    assert a == b and a.train != c.train and a.test != c.test


def test_an_unknown_name_is_an_error_with_the_nearest_name():
  message = (
    "unknown task.name 'countdwn'; did you mean 'countdown'\\? "
    "choose from arithmetic, countdown, dataset, reasoning, reasoning_gym"
  )
  with pytest.raises(ValueError, match=message):
    tasks.make(task_config({"name": "countdwn"}), 0)


def test_the_summary_counts_examples_by_domain_and_those_left_out():
  def example(domain):
    return Example("?", "0", "0", domain, "easy", Check("last_integer", "0"))

  task = Task([example("x"), example("y"), example("x")], [example("y")])
  assert task.summary().splitlines() == [
    "3 training examples (x 2, y 1)",
    "1 held-out examples (x 0, y 1)",
  ]
  task = Task([example("x")], [example("x")], {"repeated": 3})
  assert task.summary().splitlines() == [
    "1 training examples",
    "1 held-out examples",
    "left out: 3 (repeated)",
  ]


def test_empty_required_fields_are_an_error():
  with pytest.raises(ValueError, match="task.reasoning_gym.generators is empty"):
    tasks.make(task_config({"name": "reasoning_gym"}), 0)
  with pytest.raises(ValueError, match="task.dataset.train_on is empty; choose from gsm8k, math"):
    tasks.make(task_config({"name": "dataset"}), 0)


@pytest.mark.parametrize(
  "make,message",
  [
    (lambda: ArithmeticConfig(careless=2.0), "task.arithmetic.careless=2.0 .* in \\[0, 1\\]"),
    (lambda: CountdownConfig(counts=(1,)), r"counts=\(1,\) must list counts of 2 to 6"),
    (lambda: CountdownConfig(counts=()), r"counts=\(\)"),
    (lambda: CountdownConfig(largest=3), "task.countdown.largest must be at least 4, got 3"),
    (lambda: ReasoningGymConfig({"gcd": {"weight": 0}}), "gcd.weight must be a positive .* got 0"),
    (lambda: ReasoningGymConfig({"gcd": {"weight": "1"}}), "gcd.weight must be .*got '1'"),
    (lambda: OwnConfig(answer=""), "task.dataset.own.answer must name a column"),
  ],
)
def test_values_out_of_range_are_an_error(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_sections_are_those_of_the_dataclasses():
  sections = {
    f"{prefix}{field.name}": field.type
    for prefix, config in (("", tasks.TaskConfig), ("dataset.", SECTIONS["dataset"]))
    for field in dataclasses.fields(config)
    if dataclasses.is_dataclass(field.type)
  }
  assert sections == SECTIONS


def test_changes_replace_only_the_fields_they_name():
  config = quickstart.get_config().task
  config.arithmetic.careless = 0.35
  changed = with_changes(config, {"test": 4, "arithmetic": {"kinds": ("1x",)}}, "x")
  assert (changed.test, changed.arithmetic.kinds) == (4, ("1x",))
  assert (changed.train, changed.arithmetic.careless) == (20000, 0.35)
  assert config.arithmetic.kinds == quickstart.get_config().task.arithmetic.kinds
  # A mixture is one value: its generators are replaced, not added to.
  first = with_changes(config, {"reasoning_gym": {"generators": {"gcd": {}, "lcm": {}}}}, "x")
  second = with_changes(first, {"reasoning_gym": {"generators": {"gcd": {"weight": 2}}}}, "x")
  assert second.reasoning_gym.to_dict() == {"generators": {"gcd": {"weight": 2}}}


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"kinds": ("1+",)}, "eval.tasks.x.kinds is now eval.tasks.x.arithmetic.kinds"),
    ({"tests": 3}, "unknown field of eval.tasks.x 'tests'; did you mean 'test'"),
    ({"arithmetic": {"kind": ("1+",)}}, "field of eval.tasks.x.arithmetic 'kind'; .*'kinds'"),
    ({"arithmetic": ("1+",)}, "eval.tasks.x.arithmetic is a section"),
    ({"test": "many"}, "eval.tasks.x.test: "),
  ],
)
def test_changes_of_unknown_fields_are_an_error(changes, message):
  with pytest.raises(ValueError, match=message):
    with_changes(quickstart.get_config().task, changes, "eval.tasks.x")


def test_a_runs_config_is_read_back():
  task = smollm2_evaluation.get_config().task
  stored = json.loads(ConfigDict({"task": task}).to_json())["task"]
  assert task_of_run(stored).to_dict() == task.to_dict()


def test_a_config_of_an_earlier_version_is_read_back():
  """Its fields stood side by side."""
  config = common.default("poise").task
  config.name = "dataset"
  config.countdown.largest = 30
  config.reasoning_gym.generators = {"gcd": {}}
  config.dataset.train_on, config.dataset.folder = "own", "files"
  config.dataset.own.train = "a.csv"
  stored = json.loads(config.to_json())
  for field, place in MOVED.items():
    section, _, name = place.rpartition(".")
    stored[field] = stored[section][name]
  for section in ("arithmetic", "reasoning_gym", "dataset"):
    del stored[section]
  assert set(MOVED) < set(stored)
  assert task_of_run(stored).to_dict() == config.to_dict()
  del stored["careless"]  # a version before that field
  assert task_of_run(stored).arithmetic.careless == 0.0
  with pytest.raises(ValueError, match="unknown field of the run's config.task 'kindness'"):
    task_of_run({"kindness": 1})
