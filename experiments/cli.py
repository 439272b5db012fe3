"""What all commands share: help that explains the config, and errors that are one sentence.

A command defines its flags with absl and ends in `cli.run(main)`. One that takes a config file
calls `cli.define_config()` first. Nothing here imports jax, so that a mistyped flag is reported at
once.
"""

import difflib
import functools
import importlib.util
import inspect
import pathlib
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import rich.console
import rich.table
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.text import Text

from experiments import overrides
from experiments.overrides import UsageError, flat
from poise_jax import provenance
from poise_jax.errors import UserError

if TYPE_CHECKING:
  from poise_jax.planning import memory

DEBUG = flags.DEFINE_bool("debug", False, "show the traceback of an error")

ROOT = pathlib.Path(__file__).parents[1]
LIBRARIES = [pathlib.Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
TYPES = {  # absl's name of a flag type -> its description in an error
  "int": "a whole number",
  "float": "a number",
  "bool": "true or false",
  "tuple": "a tuple",
}
INTERRUPTED = 130  # the shell's exit code for SIGINT


def define_config() -> flags.FlagHolder:
  """Defines --config=FILE.py[:ALGORITHM] and --config.FIELD=VALUE; value None if not given."""
  holder = config_flags.DEFINE_config_file("config", help_string="FILE.py[:ALGORITHM]")
  flags.FLAGS["config"].parser = _ConfigParser()  # the library's own errors are tracebacks as text
  return holder


def define_distributed() -> flags.FlagHolder:
  """Defines --distributed, for commands that several processes can run together."""
  return flags.DEFINE_string(
    "distributed",
    "",
    "several processes (docs/scaling.md): auto on TPU pods and Slurm, or ADDRESS:PORT,COUNT,INDEX",
  )


def run(main: Callable[[list[str]], None], passed_on: str = ""):
  """Runs main(argv without flags) as a command.

  Args:
    main: gets the program's name and the arguments that are not flags.
    passed_on: prefix of further arguments that main gets unread.
  """
  reader = functools.partial(parse, passed_on=passed_on)
  app.run(functools.partial(guarded, main), flags_parser=reader)


def guarded(main: Callable[[list[str]], None], argv: list[str]):
  """Calls main(argv); an error becomes one sentence on stderr and exit code 1."""
  logging.set_verbosity(logging.WARNING)
  provenance.started()
  try:
    main(argv)
  except KeyboardInterrupt:
    if DEBUG.value:
      raise
    print("interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED)
  except Exception as error:
    if DEBUG.value:
      raise
    sys.exit(f"error: {sentence(error)}")


def parse(argv: list[str], passed_on: str = "") -> list[str]:
  """Parses the flags and returns all other arguments; --help prints the help and exits."""
  others = [a for a in argv if passed_on and a.startswith(passed_on)]
  argv = [a for a in argv if a not in others]
  without_help = [a for a in argv if a not in ("--help", "-help", "-h", "-?")]
  try:
    if len(without_help) < len(argv):
      show_help(without_help)
      sys.exit()
    if any(a.startswith("--config.") for a in argv) and not _names_config(argv):
      raise UsageError("--config.FIELD=VALUE needs --config=FILE.py in front of it")
    return [*_read_flags(argv), *others]
  except (Exception, KeyboardInterrupt) as error:
    if "--debug" in argv:
      raise
    if isinstance(error, KeyboardInterrupt):
      sys.exit(INTERRUPTED)
    sys.exit(f"error: {sentence(error)}")


def refuse_arguments(argv: list[str], hint: str = ""):
  """Raises UsageError if main gets an argument that is not a flag; `hint` says how to fix it."""
  if len(argv) > 1:
    raise UsageError(f"unexpected argument {argv[1]!r}{hint and '; '}{hint}")


def _read_flags(argv):
  """Reads the flags; returns the other arguments."""
  others = flags.FLAGS(overrides.last_of_each(argv))
  if "config" in flags.FLAGS and isinstance(flags.FLAGS["config"].value, ConfigDict):
    overrides.restore(flags.FLAGS["config"].value, sys.argv)
  return others


def sentence(error: Exception) -> str:
  """The message for a user: a mistake's own text, or where to look for a bug.

  UserError and absl's flag errors are mistakes, OSError is a failure of the system, and running out
  of memory has advice of its own. Every other type is a bug.
  """
  if isinstance(error, flags.IllegalFlagValueError) and isinstance(error.__context__, UserError):
    error = error.__context__  # absl wraps every ValueError of a parser
  text = " ".join(str(error).split())
  if isinstance(error, flags.IllegalFlagValueError):
    return _illegal_value(text)
  if isinstance(error, (UserError, flags.Error, OSError)):
    return text
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
    return (
      "out of memory; lower train.microbatch_size, rollouts or rollout.max_new_tokens, or set "
      "train.remat=full; --dry_run shows what needs how much. "
      f"({text[:200] or type(error).__name__})"
    )
  return (
    f"unexpected error, probably a bug: {type(error).__name__}{_place(error)}: {text}; rerun with "
    "--debug for the traceback to report"
  )


def show_help(argv: list[str]):
  """Prints a command's description, its flags and, if it has one, its config."""
  console = rich.console.Console(highlight=False)
  main = sys.modules["__main__"]
  console.print(Text((main.__doc__ or "").strip()), soft_wrap=True)
  _show(
    console,
    "flags",
    (
      (f"--{name}", "" if flag.default is None else flag.default_as_str.strip("'"), flag.help)
      for name, flag in _project_flags()
    ),
  )
  if "config" not in flags.FLAGS:
    return
  from configs import common  # imports jax, while the user reads the first part

  algorithms = common.ALGORITHMS.items()
  _show(console, "ALGORITHM", ((name, f"{a.meaning} ({a.source})") for name, a in algorithms))
  config = common.default(next(iter(common.ALGORITHMS)))
  if _names_config(argv) and isinstance(flags.FLAGS["config"].parser, _ConfigParser):
    _read_flags(argv)
    config = flags.FLAGS.config
  show_config(config, console)


def show_config(config: ConfigDict, console: rich.console.Console, explain: bool = True):
  """Prints a config's fields by section in the order of their definition.

  Args:
    config: values that are not the default of its algorithm are in bold, the default beside them.
    console: where to print.
    explain: whether to print each field's meaning.
  """
  from configs import common, meanings

  defaults = flat(common.default(config.get("algorithm", next(iter(common.ALGORITHMS)))))
  meaning_of, fields = meanings.fields(), flat(config)
  sections = {}
  for name in dict.fromkeys([*meaning_of, *fields]):
    if name in fields:
      sections.setdefault(name.rpartition(".")[0], {})[name] = fields[name]
  for section, values in sections.items():
    rows = []
    for name, value in values.items():
      shown = Text(_written(value))
      if name not in defaults or value != defaults[name]:
        shown.stylize("bold")
        if name in defaults:
          shown.append(f" (default {_written(defaults[name])})", "dim")
      # Keys that a user chooses, such as those of task.reasoning.levels, mean what the field does.
      meaning = meaning_of.get(name, meaning_of.get(section, "")) if explain else ""
      rows.append((name.rpartition(".")[2], shown, meaning))
    _show(console, f"--config.{section}." if section else "--config.", rows)


def dry_run(config: ConfigDict):
  """Prints the config, a prompt and the sizes and memory of a run; compiles a step.

  Raises:
    UsageError: the run does not fit into memory.
  """
  console = rich.console.Console(highlight=False)
  show_config(config, console, explain=False)
  with console.status("setting up") as status:
    from poise_jax.evaluation.judge import Judge
    from poise_jax.planning import memory
    from poise_jax.training import preview
    from poise_jax.training.build import build
    from poise_jax.verifiers.pool import Pool

    experiment = build(config.copy_and_resolve_references())
    with Pool(1, experiment.verifier.time_limit) as pool:
      judge = Judge(pool, experiment.verifier)
      judge.load(example.check for example in preview.examples(experiment.task))
      asked = preview.preview(experiment, judge)
    report = memory.dry_run(experiment, status.update)
  console.print("\n[bold]what the model is asked[/bold]")
  console.print(asked, markup=False, soft_wrap=True)
  show_plan(console, report)
  if not report.fits:
    raise UsageError(report.verdict)
  console.print(f"\n{report.verdict}")


def show_plan(console: rich.console.Console, report: "memory.MemoryReport"):
  """Prints a memory report without its verdict."""
  _show(console, "sizes", ((name, f"{value:,}") for name, value in report.sizes.items()))

  def mib(size):
    return f"{size / 2**20:,.1f}"

  for phase, sizes in (
    ("always", report.always),
    ("while sampling", report.sampling),
    ("while updating", report.updating),
  ):
    title = f"memory per device, MiB: {phase}"
    _show(console, title, ((name, mib(size)) for name, size in sizes.items()))
  _show(
    console,
    "compiled programs, MiB per device as reported by XLA",
    (
      (
        name,
        f"compiled in {p.seconds:.1f} s",
        f"arguments {mib(p.arguments)}, outputs {mib(p.outputs)}, temporary {mib(p.temporary)}",
      )
      for name, p in report.programs.items()
    ),
  )


class _ConfigParser(flags.ArgumentParser):
  """Loads FILE.py[:NAME]; raises UsageError if the file or a --config.FIELD is wrong."""

  def parse(self, argument):
    """The config, after a check that every overridden field exists."""
    config = load_config(argument)
    overrides.check(config, sys.argv)
    overrides.prepare(config, sys.argv)
    return config

  def flag_type(self):
    """The type's name in absl's messages."""
    return "config file"


def load_config(argument: str) -> ConfigDict:
  """get_config(NAME) of FILE.py[:NAME].

  Raises:
    UsageError: the file is missing or fails; the message names the file and the line.
  """
  file, colon, name = argument.partition(":")
  path = pathlib.Path(file)
  if not path.is_file():
    nearest = difflib.get_close_matches(path.stem, _shipped_configs(), 1)
    here = pathlib.Path.cwd() == ROOT
    folder = "configs" if here else str(ROOT / "configs")  # a path that exists from here
    hint = f"did you mean {folder}/{nearest[0]}.py? " if nearest else ""
    raise UsageError(
      f"--config={file}: no such file{'' if here else f' in {pathlib.Path.cwd()}'}; {hint}"
      f"{folder}/ has {', '.join(_shipped_configs())}"
    )
  if path.suffix != ".py":
    raise UsageError(f"--config={file} is not a Python file with a get_config")
  try:
    spec = importlib.util.spec_from_file_location("experiment_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
      raise UsageError(f"{file} has no function get_config(algorithm)")
    arguments = (name,) if colon else ()
    try:
      inspect.signature(get_config).bind(*arguments)
    except TypeError:
      takes = "takes no :NAME" if colon else "needs a :NAME"
      raise UsageError(f"--config={argument}: get_config of {file} {takes}") from None
    config = get_config(*arguments)
  except UsageError:
    raise
  except Exception as error:
    raise UsageError(_config_file_error(path, error)) from error
  if not isinstance(config, ConfigDict):
    raise UsageError(f"get_config of {file} returned {type(config).__name__}, not a ConfigDict")
  return config


def _place(error: Exception) -> str:
  """' in FILE, line N': the last line of a traceback that is not in an installed library."""
  for frame in reversed(traceback.extract_tb(error.__traceback__)):
    path = pathlib.Path(frame.filename).resolve()
    if path.is_file() and not any(path.is_relative_to(folder) for folder in LIBRARIES):
      path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
      return f" in {path}, line {frame.lineno}"
  return ""


def _config_file_error(path: pathlib.Path, error: Exception) -> str:
  """The message for an error that a config file raises, with the file's line."""
  text = " ".join(str(error).split())
  frames = traceback.extract_tb(error.__traceback__)
  lines = [f.lineno for f in frames if pathlib.Path(f.filename).resolve() == path.resolve()]
  if isinstance(error, SyntaxError):
    lines, text = [error.lineno], error.msg
  if not isinstance(error, UserError):
    text = f"{type(error).__name__}: {text}"
  return f"{path}, line {lines[-1]}: {text}" if lines else f"{path}: {text}"


def _illegal_value(text: str) -> str:
  """absl's message about a value, rewritten to say what the flag takes."""
  match = re.match(r"flag --([\w.\[\]]+)=(.*?): ", text)
  if not match or match[1] not in flags.FLAGS:
    return text.removeprefix("flag ")
  flag = flags.FLAGS[match[1]]
  expected = TYPES.get(flag.parser.flag_type(), "a value of another kind")
  default = tuple(flag.default) if isinstance(flag.default, list) else flag.default
  example = "" if default in (None, "") else f", such as {_written(default)}"
  return f"--{match[1]} must be {expected}{example}, got {match[2]}"


def _names_config(argv: list[str]) -> bool:
  """Whether --config is given."""
  return any(re.match(r"--?config(=|$)", a) for a in argv)


def _shipped_configs() -> list[str]:
  """Names of the config files in configs/."""
  files = (ROOT / "configs").glob("*.py")
  return sorted(f.stem for f in files if "def get_config" in f.read_text())


def _project_flags() -> Iterable[tuple[str, flags.Flag]]:
  """(name, flag) of the flags that a command or this module defines, by name."""
  for module, flag_list in flags.FLAGS.flags_by_module_dict().items():
    if not module.startswith(("absl.", "ml_collections.")):
      yield from ((flag.name, flag) for flag in flag_list if "." not in flag.name)


def _written(value: object) -> str:
  """A value as typed after --config.FIELD=."""
  return value if isinstance(value, str) and value else repr(value)


def _show(console: rich.console.Console, title: str, rows: Iterable[Iterable[str | Text]]):
  """Prints a title and a table of rows; the last column takes the remaining width."""
  rows = [[cell if isinstance(cell, Text) else Text(str(cell)) for cell in row] for row in rows]
  table = rich.table.Table(box=None, show_header=False)
  columns = max(len(row) for row in rows)
  for i in range(columns):
    middle = 0 < i < columns - 1
    table.add_column(no_wrap=i == 0, overflow="fold", max_width=40 if middle else None)
  for row in rows:
    table.add_row(*row)
  console.print(f"\n[bold]{title}[/bold]")
  console.print(table)
