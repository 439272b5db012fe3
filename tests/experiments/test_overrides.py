"""Overrides of a config on the command line: elements of tuples, keys of fields with free keys."""

import pathlib
import re
import sys

import grain  # noqa: F401  defines flags, which flagsaver would remove again
import pytest
from absl import flags
from absl.testing import flagsaver

from configs import common, reasoning_gym, smollm2_arithmetic
from experiments import (
  cli,
  overrides,
  train,  # noqa: F401  defines --config
)
from experiments.other_names import OTHER_NAMES
from poise_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
QUICK, GYM = "configs/quickstart.py", "configs/reasoning_gym.py"
SMOLLM2 = "configs/smollm2_arithmetic.py"


@pytest.fixture
def config_of(monkeypatch):
  """The config of a command line, with the flags as a shell would give them."""
  monkeypatch.chdir(ROOT)

  def call(*arguments, file=QUICK):
    argv = ["program", f"--config={file}", *arguments]
    monkeypatch.setattr(sys, "argv", argv)
    with flagsaver.flagsaver():
      cli.parse(argv)
      return flags.FLAGS.config

  return call


KINDS = smollm2_arithmetic.get_config().task.arithmetic.kinds


@pytest.mark.parametrize(
  "arguments,kinds",
  [
    (["kinds[0]=2-"], ("2-", *KINDS[1:])),
    (["kinds[2]=3x"], (*KINDS[:2], "3x", *KINDS[3:])),
    (["kinds[-1]=1-"], (*KINDS[:-1], "1-")),
    (["kinds[0]=2-", "kinds[1]=4+"], ("2-", "4+", *KINDS[2:])),
    (["kinds[0]=2-", "kinds[0]=4+"], ("4+", *KINDS[1:])),
  ],
)
def test_an_element_of_a_tuple(config_of, arguments, kinds):
  changes = (f"--config.task.arithmetic.{argument}" for argument in arguments)
  config = config_of(*changes, file=SMOLLM2)
  assert config.task.arithmetic.kinds == kinds and type(config.task.arithmetic.kinds) is tuple
  assert config.is_locked and config.task.arithmetic.is_locked
  config.task.arithmetic.kinds = KINDS
  assert config == smollm2_arithmetic.get_config()


@pytest.mark.parametrize(
  "arguments,kinds,steps",
  [
    (["task.arithmetic.kinds=('1+',)", "task.arithmetic.kinds=('2-','3x')"], ("2-", "3x"), 60),
    (["steps=3", "task.arithmetic.kinds=('2-',)", "steps=4"], ("2-",), 4),
  ],
)
def test_the_last_value_of_a_field_counts(config_of, arguments, kinds, steps):
  config = config_of(*(f"--config.{argument}" for argument in arguments), file=SMOLLM2)
  assert config.task.arithmetic.kinds == kinds and config.steps == steps


def test_a_tuple_and_its_elements_are_not_set_together(config_of):
  field = "--config.task.arithmetic.kinds"
  with pytest.raises(SystemExit, match=r"kinds is given whole and as --config.*kinds\[1\]"):
    config_of(f"{field}=('1+','2-')", f"{field}[1]=3x", file=SMOLLM2)


def test_elements_have_the_type_of_the_tuple(config_of):
  assert config_of("--config.rollout.feature_layers[0]=0").rollout.feature_layers == (0,)
  for value in ("first", "1.5"):
    with pytest.raises(SystemExit, match=r"feature_layers\[0\] must be a whole number"):
      config_of(f"--config.rollout.feature_layers[0]={value}")


OPTIONS = "--config.task.dataset.own.options"
CHAT = "--config.task.template_args"


@pytest.mark.parametrize(
  "arguments,section,expected",
  [
    ([f"{OPTIONS}.extract=all"], "task.dataset.own.options", {"extract": "all"}),
    (
      [f"{OPTIONS}.relative=0.5", f"{OPTIONS}.ignore_case=true"],
      "task.dataset.own.options",
      {"relative": 0.5, "ignore_case": True},
    ),
    ([f"{OPTIONS}.partial"], "task.dataset.own.options", {"partial": True}),
    (
      [f"{OPTIONS}.choices.A=tea", f"{OPTIONS}.choices.B=milk"],
      "task.dataset.own.options",
      {"choices": {"A": "tea", "B": "milk"}},
    ),
    ([f"{CHAT}.enable_thinking=False"], "task.template_args", {"enable_thinking": False}),
    (["--noconfig.task.template_args.thinking"], "task.template_args", {"thinking": False}),
    ([f"{CHAT}.tools=[1, 'a']"], "task.template_args", {"tools": (1, "a")}),
    ([f"{CHAT}.date=2024-05-06"], "task.template_args", {"date": "2024-05-06"}),
    ([f"{CHAT}.user={{'name': 'Ada'}}"], "task.template_args", {"user": {"name": "Ada"}}),
    ([f"{CHAT}.effort", "high"], "task.template_args", {"effort": "high"}),
    (
      ["--config.task.reasoning_gym.generators.gcd.weight=2"],
      "task.reasoning_gym.generators",
      {"gcd": {"weight": 2}},
    ),
    (
      ["--config.eval.tasks.a.test=5", "--config.eval.tasks.b.dataset.test_on=aime_2024"],
      "eval.tasks",
      {"a": {"test": 5}, "b": {"dataset": {"test_on": "aime_2024"}}},
    ),
  ],
)
def test_keys_of_a_field_whose_keys_are_free(config_of, arguments, section, expected):
  config = config_of(*arguments)
  found = config
  for name in section.split("."):
    found = found[name]
  assert found.to_dict() == expected
  assert config.is_locked and found.is_locked


def test_keys_that_a_config_file_has_set(config_of):
  settings = reasoning_gym.get_config().task.reasoning_gym.generators.to_dict()
  name, setting = next((n, k) for n, s in settings.items() for k in s if k != "weight")
  arguments = (f"{name}.{setting}=7", f"{name}.weight=3", "gcd.max_num=9")
  config = config_of(*(f"--config.task.reasoning_gym.generators.{a}" for a in arguments), file=GYM)
  settings[name] |= {setting: 7, "weight": 3}
  settings["gcd"] = settings.get("gcd", {}) | {"max_num": 9}
  assert config.task.reasoning_gym.generators.to_dict() == settings


def test_fields_of_the_shape(config_of):
  config = config_of("--config.model.shape.qk_norm=True", "--config.model.shape.rope_theta=1e5")
  assert config.model.shape.qk_norm is True and config.model.shape.rope_theta == 1e5


@pytest.mark.parametrize(
  "argument,message",
  [
    ("--config.task.arithmetic.kinds[9]=2-", "kinds has 1 elements; set all of them"),
    ("--config.task.arithmetic.kinds[one]=2-", "has no element of that index"),
    ("--config.eval.k[0]=2", r"eval.k has 0 elements; .* --config.eval.k=\"\(1, 2\)\""),
    ("--config.steps[0]=2", "steps=.* has no element"),
    ("--config.task.kinds[0]=2-", "did you mean --config.task.arithmetic.kinds?"),
    ("--config.task.template_args=x", "template_args is a section; set its keys, as .*KEY=VALUE"),
    ("--config.eval.tasks=x", "eval.tasks is a section"),
    (f"{OPTIONS}=x", "options is a section"),
    ("--config.model.shape.qk_nrom=True", "did you mean --config.model.shape.qk_norm?"),
    ("--config.task.template_arg.a=1", "no such field"),
    (f"{OPTIONS}.a-b=1", "'a-b' cannot be set on the command line"),
    ("--config.train.learning-rate=1", "did you mean --config.train.learning_rate?"),
    ("--config.steps*=1", "did you mean --config.steps?"),
    ("--config.lr=1e-6", "here it is --config.train.learning_rate"),
    ("--config.train.lr=1e-6", "here it is --config.train.learning_rate"),
    ("--config.batch_size=8", "here it is --config.rollouts or --config.train.minibatch_size"),
    ("--config.beta=0.1", "here it is --config.train.loss.kl_coef"),
    ("--config.num_generations=8", "here it is --config.rollout.n"),
    ("--config.actor.ppo_mini_batch_size=8", "here it is --config.train.minibatch_size .*prompts"),
  ],
)
def test_mistakes(config_of, argument, message):
  with pytest.raises(SystemExit, match=f"error: --config.*{message}"):
    config_of(argument)


def test_names_of_other_codebases_stand_for_fields_that_exist_and_hide_none():
  fields = overrides.flat(common.default("grpo"))
  named = {field for known in OTHER_NAMES.values() for field in known.fields}
  assert named <= {*fields, *overrides.mappings()}
  assert not OTHER_NAMES.keys() & fields.keys()


def test_the_page_for_verl_and_trl_names_fields_and_algorithms_that_exist():
  fields = {*overrides.flat(common.default("grpo")), *overrides.mappings()}
  ends = {field.rpartition(".")[2] for field in fields}
  page = (ROOT / "docs" / "from_verl_and_trl.md").read_text()
  rows = [line for line in page.splitlines() if line.startswith("| `")]
  named = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split(" | ")[1])]
  assert len(rows) > 60 and len(named) > 70
  for name in named:
    name = name.partition("=")[0].strip(".")
    if name.startswith(":"):
      assert name[1:] in common.ALGORITHMS
    elif not name.startswith("--"):
      assert name in fields or (
        "." not in name and name in {*ends, "train", "rollout", "sequence"}
      ), name


# Rows whose answer is no field, or whose name means something else elsewhere.
WITHOUT_FIELD = {"b", "W", "a", "path", "name", "default_local_dir", "resume_mode", "output_dir"}
WITHOUT_FIELD |= {"n_gpus_per_node", "nnodes", "adv_estimator", "fsdp_config", "enable"}


def page_rows():
  """(leaf of an option of verl or TRL, leaves of the fields that the page answers it with)."""
  leaves = {field.rpartition(".")[2] for field in overrides.flat(common.default("grpo"))}
  for row in (ROOT / "docs" / "from_verl_and_trl.md").read_text().splitlines():
    if not row.startswith("| `"):
      continue
    theirs, ours = (re.findall(r"`([^`]+)`", cell) for cell in row.split(" | ")[:2])
    ours = {re.split("[=*]", name)[0].rpartition(".")[2] for name in ours} & leaves
    for name in theirs:
      leaf = re.split("[ =*]", name)[0].rpartition(".")[2]
      if ours and leaf not in WITHOUT_FIELD:
        yield leaf, ours


def test_an_option_of_the_page_is_answered_with_a_field_that_the_page_names():
  config, unanswered = common.default("grpo"), {}
  rows = list(page_rows())
  assert len(rows) > 80
  for leaf, ours in rows:
    try:
      overrides.check_field(config, f"other.{leaf}")
    except UserError as error:
      if not any(re.search(rf"\b{name}\b", str(error).partition("field;")[2]) for name in ours):
        unanswered[leaf] = str(error)
  assert not unanswered


def test_a_field_with_the_name_of_another_codebase_keeps_its_own(config_of):
  assert config_of("--config.warm_start.batch_size=7").warm_start.batch_size == 7


def test_a_key_below_a_value(config_of):
  with pytest.raises(SystemExit, match="options.a.b: a is a value, not a section"):
    config_of(f"{OPTIONS}.a=1", f"{OPTIONS}.a.b=2")


def test_the_fields_whose_keys_are_free():
  assert set(overrides.mappings()) == {
    "eval.tasks",
    "probe.domain_buffer_rows",
    "probe.domain_probes",
    "task.dataset.own.options",
    "task.reasoning.levels",
    "task.reasoning_gym.generators",
    "task.template_args",
  }
