"""The fields of config.task: those that all tasks share, and a section for each kind of task."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from poise_jax.errors import UserError, check_finite, unknown_name


@dataclasses.dataclass(frozen=True)
class ArithmeticConfig:
  """Sums, differences and products. Raises UserError for values out of range."""

  # digits and operators of the problems, such as ("1+", "2x"); a repeated kind has twice the share
  kinds: tuple[str, ...] = ("1+",)
  # probability that the warm start's teacher guesses at a one-digit problem; careless ** (1 / d)
  # for d digits
  careless: float = 0.0

  def __post_init__(self):
    check_finite("task.arithmetic", self)
    for kind in self.kinds:
      if not re.fullmatch(r"[1-4][+x-]", str(kind)):
        raise UserError(
          f"task.arithmetic.kinds contains {kind!r}; a kind is 1 to 4 digits and one of + - x, "
          "such as '2+'"
        )
    if not 0 <= self.careless <= 1:
      raise UserError(f"task.arithmetic.careless={self.careless} must be a probability in [0, 1]")


@dataclasses.dataclass(frozen=True)
class CountdownConfig:
  """Countdown problems. Raises UserError for values out of range."""

  counts: tuple[int, ...] = (3, 4)  # numbers in a problem, 2 to 6; every count has an equal share
  largest: int = 20  # largest number in a problem

  def __post_init__(self):
    if not self.counts or not all(2 <= count <= 6 for count in self.counts):
      raise UserError(f"task.countdown.counts={tuple(self.counts)} must list counts of 2 to 6")
    if self.largest < 4:
      raise UserError(f"task.countdown.largest must be at least 4, got {self.largest}")


@dataclasses.dataclass(frozen=True)
class ReasoningConfig:
  """Problems with a written thought before each answer, whose end config.task.think_end marks.
  Raises UserError for a probability out of range."""

  # {domain: (lowest, highest) level}: sums, products, expressions, search, words; empty: all levels
  # of all domains. Domains have equal shares, and so have the levels of a domain
  levels: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  # probability that the warm start's teacher guesses at level 2 instead of thinking;
  # 0 at level 1, guess ** (1 / (level - 1)) at higher levels
  guess: float = 0.0
  slip: float = 0.0  # probability that it errs at a step of a thought

  def __post_init__(self):
    check_finite("task.reasoning", self)
    for name in ("guess", "slip"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(
          f"task.reasoning.{name}={getattr(self, name)} must be a probability in [0, 1]"
        )


@dataclasses.dataclass(frozen=True)
class ReasoningGymConfig:
  """A mixture of reasoning-gym's generators. Raises UserError for a weight that is not positive."""

  # {generator: {"weight": share, setting: value, ...}}; every generator is a domain
  generators: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name, settings in self.generators.items():
      weight = settings.get("weight", 1)
      if not isinstance(weight, int | float) or not weight > 0:
        raise UserError(
          f"task.reasoning_gym.generators.{name}.weight must be a positive number, got {weight!r}"
        )


@dataclasses.dataclass(frozen=True)
class OwnConfig:
  """A user's own files, the dataset "own". A column "a.b" is the field b of the column a."""

  train: str = ""  # training files (JSONL, JSON, CSV, parquet), separated by commas
  test: str = ""  # held-out files, separated by commas
  question: str = "question"  # column of the question
  # column of chats, lists of {"role": ..., "content": ...} whose last turn is the user's, which
  # replaces the column of the question and needs task.chat; empty: none
  messages: str = ""
  answer: str = "answer"  # column of the reference answer
  id: str = ""  # column of a unique id; empty: none
  worked: str = ""  # column of a worked answer for the warm start; empty: the reference answer
  domain: str = ""  # column of the domain; empty: one domain for all rows
  difficulty: str = ""  # column of the difficulty; empty: none
  # verifier of the answers, see docs/verifiers.md, or a function of your own as
  # "path/to/file.py:function"
  verifier: str = "math"
  # keyword arguments of the verifier
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name in ("question", "answer"):
      if not getattr(self, name):
        raise UserError(f"task.dataset.own.{name} must name a column")


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
  """Published datasets and a user's own files."""

  # training sets: names of sources.SOURCES or "own", separated by commas
  train_on: str = ""
  # held-out sets, named likewise; empty: task.test of the training rows are held out
  test_on: str = ""
  # folder with the publishers' files, as FOLDER/NAME/PATH; empty: they are downloaded
  folder: str = ""
  data_dir: str = ""  # folder of the built datasets; empty: ~/tensorflow_datasets
  own: OwnConfig = OwnConfig()


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """What is asked, and how. A task reads the common fields and the section of its name."""

  # kind of task: arithmetic, countdown, reasoning, reasoning_gym or dataset
  name: str = "arithmetic"
  train: int = 20000  # training problems; a dataset trains on all of its rows
  test: int = 300  # held-out problems; a dataset with test_on holds out all rows of those sets
  template: str = "{question}"  # prompt text around {question}, or a name of templates.TEMPLATES
  chat: bool = False  # whether the prompt is the user turn of a chat
  system: str = ""  # system turn of the chat; empty: the chat template's default
  # arguments of the model's chat template, such as {"enable_thinking": False}
  template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # end-of-thinking marker: what follows the last one is judged; empty: the whole response is
  # reasoning, and the answer is what follows </think>, if there is a thought
  think_end: str = ""
  max_prompt_length: int = 16  # Tp, tokens; a longer prompt is an error
  drop_long: bool = False  # leave longer prompts out and count them instead
  arithmetic: ArithmeticConfig = ArithmeticConfig()
  countdown: CountdownConfig = CountdownConfig()
  reasoning: ReasoningConfig = ReasoningConfig()
  reasoning_gym: ReasoningGymConfig = ReasoningGymConfig()
  dataset: DatasetConfig = DatasetConfig()


SECTIONS = {  # dotted section of config.task -> its dataclass
  "arithmetic": ArithmeticConfig,
  "countdown": CountdownConfig,
  "reasoning": ReasoningConfig,
  "reasoning_gym": ReasoningGymConfig,
  "dataset": DatasetConfig,
  "dataset.own": OwnConfig,
}
MOVED = {  # field of config.task in earlier versions -> its place now
  "kinds": "arithmetic.kinds",
  "careless": "arithmetic.careless",
  "generators": "reasoning_gym.generators",
  "train_on": "dataset.train_on",
  "test_on": "dataset.test_on",
  "folder": "dataset.folder",
  "data_dir": "dataset.data_dir",
  "own": "dataset.own",
}


def with_changes(
  config: ConfigDict, changes: Mapping[str, Any] | ConfigDict, where: str, section: str = ""
) -> ConfigDict:
  """A copy of config.task with some fields replaced, and in its sections only the fields named.

  Args:
    config: config.task, or a section of it.
    changes: {field: value}; the value of a section is such a mapping.
    where: dotted name of `changes` for error messages.
    section: dotted name of `config` within config.task; empty: all of it.

  Raises:
    UserError: config.task has no such field, or its type differs.
  """
  changed = config.copy_and_resolve_references()
  for name, value in changes.items():
    path = f"{section}.{name}" if section else name
    if name not in changed:
      if path in MOVED:
        raise UserError(f"{where}.{name} is now {where}.{MOVED[path]}")
      raise unknown_name(f"field of {where}", name, changed)
    if path not in SECTIONS:
      try:
        changed[name] = value
      except TypeError as error:
        raise UserError(f"{where}.{name}: {error}") from error
    elif isinstance(value, Mapping | ConfigDict):
      changed[name] = with_changes(changed[name], value, f"{where}.{name}", path)
    else:
      raise UserError(f"{where}.{name} is a section, set its fields instead of {value!r}")
  return changed


def task_of_run(config: Mapping[str, Any]) -> ConfigDict:
  """config.task from the config.json of a run, which an earlier version may have written.

  Fields that the run's version did not have get their defaults.

  Raises:
    UserError: the section has a field that no version has had.
  """
  changes: dict[str, Any] = {}
  for name, value in config.items():
    section, _, field = MOVED.get(name, name).rpartition(".")
    (changes.setdefault(section, {}) if section else changes)[field] = value
  default = ConfigDict(dataclasses.asdict(TaskConfig()))
  return with_changes(default, changes, "the run's config.task")
