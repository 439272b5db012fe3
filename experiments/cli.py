"""What all commands share: help that explains the config, and errors that are one sentence.

A command defines its flags with absl and ends in `cli.run(main)`. One that takes a config file
calls `cli.define_config()` first. Nothing here imports jax, so that a mistyped flag does not wait.
"""

import difflib
import functools
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
from collections.abc import Callable

import rich.console
import rich.table
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.text import Text

DEBUG = flags.DEFINE_bool("debug", False, "show the traceback of an error")

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ("poise_jax", "experiments", "configs")  # whose errors are sentences for the user
TYPES = {  # what absl calls a flag's type
  "int": "a whole number",
  "float": "a number",
  "bool": "true or false",
  "tuple": "a tuple",
}
INTERRUPTED = 130  # the shell's exit code for SIGINT


class UsageError(Exception):
  """One sentence about what was typed, or about a config file."""


def define_config():
  """--config=FILE.py[:ALGORITHM] and --config.FIELD=VALUE; its holder, None if it was not given."""
  holder = config_flags.DEFINE_config_file("config", help_string="FILE.py[:ALGORITHM]")
  flags.FLAGS["config"].parser = _ConfigParser()  # the library's own errors are tracebacks as text
  return holder


def define_distributed():
  """--distributed, of commands that several processes can run together; its holder."""
  return flags.DEFINE_string(
    "distributed",
    "",
    "several processes (docs/scaling.md): auto on TPU pods and Slurm, or ADDRESS:PORT,COUNT,INDEX",
  )


def run(main: Callable[[list[str]], None], passed_on: str = ""):
  """main(argv without flags), as a command; what begins with `passed_on` comes with the rest."""
  reader = functools.partial(parse, passed_on=passed_on)
  app.run(functools.partial(guarded, main), flags_parser=reader)


def guarded(main: Callable[[list[str]], None], argv: list[str]):
  """Calls main(argv); what goes wrong is one sentence on stderr and exit code 1."""
  logging.set_verbosity(logging.WARNING)
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
  """Reads the flags and returns what else was typed; --help explains and exits."""
  others = [a for a in argv if passed_on and a.startswith(passed_on)]
  argv = [a for a in argv if a not in others]
  asked = [a for a in argv if a not in ("--help", "-help", "-h", "-?")]
  try:
    if len(asked) < len(argv):
      show_help(asked)
      sys.exit()
    if any(a.startswith("--config.") for a in argv) and not _file(argv):
      raise UsageError("--config.FIELD=VALUE needs --config=FILE.py in front of it")
    return [*flags.FLAGS(argv), *others]
  except (Exception, KeyboardInterrupt) as error:
    if "--debug" in argv:
      raise
    if isinstance(error, KeyboardInterrupt):
      sys.exit(INTERRUPTED)
    sys.exit(f"error: {sentence(error)}")


def sentence(error: Exception) -> str:
  """What to tell a user. An error that nobody raised on purpose says what it is, and where."""
  text = " ".join(str(error).split())
  if isinstance(error, flags.IllegalFlagValueError):
    return _illegal_value(text)
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
    return (
      "out of memory; lower train.microbatch_size, rollouts or rollout.max_new_tokens, or set "
      "train.remat=full; --dry_run says what needs how much. "
      f"({text[:200] or type(error).__name__})"
    )
  if isinstance(error, (UsageError, flags.Error, OSError)):
    return text
  frames = traceback.extract_tb(error.__traceback__)
  if frames and _ours(frames[-1]) and frames[-1].line.startswith("raise "):
    return text
  where = next((frame for frame in reversed(frames) if _ours(frame)), None)
  place = f" in {_short(where.filename)}, line {where.lineno}" if where else ""
  return (
    f"{type(error).__name__}{place}: {text}. Nobody foresaw this: it may be a bug; --debug shows "
    "the traceback to report"
  )


def show_help(argv: list[str]):
  """Prints what a command is, its flags and, if it has one, its config."""
  console = rich.console.Console(highlight=False)
  main = sys.modules["__main__"]
  console.print(Text((main.__doc__ or "").strip()), soft_wrap=True)
  _show(
    console,
    "flags",
    (
      (f"--{name}", "" if flag.default is None else flag.default_as_str.strip("'"), flag.help)
      for name, flag in _flags_of_ours()
    ),
  )
  if "config" not in flags.FLAGS:
    return
  from configs import common, meanings  # imports jax, while the user reads what is there already

  _show(console, "ALGORITHM", meanings.algorithms().items())
  config = common.default(next(iter(common.ALGORITHMS)))
  if _file(argv) and isinstance(flags.FLAGS["config"].parser, _ConfigParser):
    flags.FLAGS(argv)
    config = flags.FLAGS.config
  show_config(config, console)


def show_config(config: ConfigDict, console: rich.console.Console, explain: bool = True):
  """Prints a config's fields by section, in the order of their definition, with their meanings.
  Values that are not the default of the config's algorithm are in bold, the default beside them."""
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
      meaning = meaning_of.get(name, "") if explain else ""
      rows.append((name.rpartition(".")[2], shown, meaning))
    _show(console, f"--config.{section}." if section else "--config.", rows)


def dry_run(config: ConfigDict):
  """Prints the config and what a run of it takes; compiles a step.

  Raises:
    UsageError: it would not fit into the memory.
  """
  console = rich.console.Console(highlight=False)
  show_config(config, console, explain=False)
  with console.status("setting up") as status:
    from poise_jax.planning import memory
    from poise_jax.training.build import build

    plan = memory.dry_run(build(config.copy_and_resolve_references()), status.update)
  show_plan(console, plan)
  if not plan.fits:
    raise UsageError(plan.verdict)
  console.print(f"\n{plan.verdict}")


def show_plan(console: rich.console.Console, plan):
  """Prints a planning.memory.MemoryReport except its verdict."""
  _show(console, "sizes", ((name, f"{value:,}") for name, value in plan.sizes.items()))

  def mib(size):
    return f"{size / 2**20:,.1f}"

  for when, sizes in (
    ("always", plan.always),
    ("while sampling", plan.sampling),
    ("while updating", plan.updating),
  ):
    title = f"memory, MiB a device: {when}"
    _show(console, title, ((name, mib(size)) for name, size in sizes.items()))
  _show(
    console,
    "programs, MiB a device: as XLA says where it took time to compile them",
    (
      (
        name,
        f"in {p.seconds:.1f} s",
        f"arguments {mib(p.arguments)}, outputs {mib(p.outputs)}, temporary {mib(p.temporary)}",
      )
      for name, p in plan.programs.items()
    ),
  )


def flat(config: ConfigDict, prefix: str = "") -> dict:
  """{dotted name: value}; the empty sections are left out."""
  fields = {}
  for name, value in config.items():
    inside = isinstance(value, ConfigDict)
    fields |= flat(value, f"{prefix}{name}.") if inside else {prefix + name: value}
  return fields


class _ConfigParser(flags.ArgumentParser):
  """Loads FILE.py[:NAME]; raises UsageError for what is wrong with it, or with --config.FIELD."""

  def parse(self, argument):
    """The config, all of whose overrides exist."""
    config = load_config(argument)
    for name in overrides(sys.argv):
      check_field(config, name)
    return config

  def flag_type(self):
    """As absl names it."""
    return "config file"


def load_config(argument: str) -> ConfigDict:
  """get_config(NAME) of FILE.py[:NAME].

  Raises:
    UsageError: one sentence about the file, with the line that is wrong.
  """
  file, colon, name = argument.partition(":")
  path = pathlib.Path(file)
  if not path.is_file():
    near = difflib.get_close_matches(path.stem, _known_configs(), 1)
    raise UsageError(
      f"--config={file}: there is no such file"
      + (f"; did you mean configs/{near[0]}.py?" if near else "")
      + f" configs/ has {', '.join(_known_configs())}"
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
    raise UsageError(_of_config_file(path, error)) from error
  if not isinstance(config, ConfigDict):
    raise UsageError(f"get_config of {file} returned {type(config).__name__}, not a ConfigDict")
  return config


def check_field(config: ConfigDict, name: str):
  """Raises UsageError if `config` has no field of that dotted name; says which one is meant."""
  fields = flat(config)
  plain = name.partition("[")[0]  # --config.task.kinds[0] is a field, too
  if plain in fields:
    return
  inside = [field for field in fields if field.startswith(f"{name}.")]
  if inside:
    raise UsageError(
      f"--config.{name} is a section; set its fields, such as --config.{inside[0]}=VALUE"
    )
  leaf = name.rpartition(".")[2]
  near = [field for field in fields if field.rpartition(".")[2] == leaf]
  if not near:
    near = difflib.get_close_matches(name, fields, 1, 0.7)
  if not near:
    leaves = {field.rpartition(".")[2]: field for field in fields}
    near = [leaves[match] for match in difflib.get_close_matches(leaf, leaves, 1)]
  meant = " or ".join(f"--config.{field}" for field in near)
  raise UsageError(
    f"--config.{name}: the config has no such field; "
    + (f"did you mean {meant}?" if near else "--help lists all")
  )


def _of_config_file(path, error):
  """One sentence of what went wrong inside a config file, with its line."""
  text = " ".join(str(error).split())
  frames = traceback.extract_tb(error.__traceback__)
  lines = [f.lineno for f in frames if pathlib.Path(f.filename).resolve() == path.resolve()]
  if isinstance(error, SyntaxError):
    lines, text = [error.lineno], error.msg
  said = isinstance(error, ValueError) and frames[-1].line.startswith("raise ")
  text = text if said else f"{type(error).__name__}: {text}"
  return f"{path}, line {lines[-1]}: {text}" if lines else f"{path}: {text}"


def _illegal_value(text):
  """absl's complaint about a value, in terms of what the flag wants."""
  found = re.match(r"flag --([\w.\[\]]+)=(.*?): ", text)
  if not found or found[1] not in flags.FLAGS:
    return text.removeprefix("flag ")
  flag = flags.FLAGS[found[1]]
  wanted = TYPES.get(flag.parser.flag_type(), "a value of another kind")
  default = tuple(flag.default) if isinstance(flag.default, list) else flag.default
  was = "" if default in (None, "") else f", as {_written(default)} is"
  return f"--{found[1]}={found[2]}: it must be {wanted}{was}"


def overrides(argv: list[str]) -> list[str]:
  """The dotted names that --config.NAME=VALUE sets."""
  return [m[1] for a in argv if (m := re.match(r"--?(?:no)?config\.([^=]+)", a))]


def _file(argv):
  """Whether a config file is named."""
  return any(re.match(r"--?config(=|$)", a) for a in argv)


def _known_configs():
  files = (ROOT / "configs").glob("*.py")
  return sorted(f.stem for f in files if "def get_config" in f.read_text())


def _ours(frame):
  """Whether a traceback's frame is in the project's code, or in a config file."""
  try:
    return pathlib.Path(frame.filename).resolve().relative_to(ROOT).parts[0] in ROOMS
  except ValueError:
    return False


def _short(filename):
  return pathlib.Path(filename).resolve().relative_to(ROOT)


def _flags_of_ours():
  """(name, flag) of the flags that a command or this module defined, in order of name."""
  for module, found in flags.FLAGS.flags_by_module_dict().items():
    if not module.startswith(("absl.", "ml_collections.")):
      yield from ((flag.name, flag) for flag in found if "." not in flag.name)


def _written(value):
  """A value as one would type it behind --config.field=."""
  return value if isinstance(value, str) and value else repr(value)


def _show(console, title, rows):
  """Prints a title and a table of rows, the last column of which takes what room is left."""
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
