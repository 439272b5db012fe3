"""Overrides of a config on the command line: checks, and two forms that ml_collections refuses.

--config.FIELD[0]=VALUE sets an element of a tuple, and --config.FIELD.KEY=VALUE adds a key to a
field whose keys are free.
"""

import ast
import collections.abc
import difflib
import functools
import re
import typing

from ml_collections import ConfigDict

from experiments.other_names import OTHER_NAMES
from poise_jax.errors import UserError


class UsageError(UserError):
  """A command line or a config file that cannot be used."""


def flat(config: ConfigDict, prefix: str = "") -> dict[str, object]:
  """{dotted name: value}, without empty sections."""
  fields = {}
  for name, value in config.items():
    section = isinstance(value, ConfigDict)
    fields |= flat(value, f"{prefix}{name}.") if section else {prefix + name: value}
  return fields


def check(config: ConfigDict, argv: list[str]):
  """Raises UsageError if `argv` overrides a field that `config` does not have."""
  for name, _ in _given(argv):
    check_field(config, name)


def check_field(config: ConfigDict, name: str):
  """Raises UsageError if `config` has no field of that dotted name; suggests the nearest one."""
  fields = flat(config)
  for part in name.split(".") if is_free(name) else ():
    if not part.isidentifier():
      raise UsageError(
        f"--config.{name}: {part!r} cannot be set on the command line, where names are letters, "
        "digits and underscores; set it in the config file"
      )
  name = name.partition("[")[0]  # --config.task.arithmetic.kinds[0] is a field, too
  if name in fields or is_free(name):
    return
  if name in mappings():
    raise UsageError(f"--config.{name} is a section; set its keys, as --config.{name}.KEY=VALUE")
  inside = [field for field in fields if field.startswith(f"{name}.")]
  if inside:
    raise UsageError(
      f"--config.{name} is a section; set its fields, such as --config.{inside[0]}=VALUE"
    )
  leaf = name.rpartition(".")[2]
  if known := OTHER_NAMES.get(leaf):
    meant = " or ".join(f"--config.{field}" for field in known.fields)
    raise UsageError(
      f"--config.{name}: the config has no such field; here it is {meant}"
      + (f" ({known.note})" if known.note else "")
    )
  nearest = [field for field in fields if field.rpartition(".")[2] == leaf]
  if not nearest:
    nearest = difflib.get_close_matches(name, fields, 1, 0.7)
  if not nearest:
    leaves = {field.rpartition(".")[2]: field for field in fields}
    nearest = [leaves[match] for match in difflib.get_close_matches(leaf, leaves, 1)]
  meant = " or ".join(f"--config.{field}" for field in nearest)
  raise UsageError(
    f"--config.{name}: the config has no such field; "
    + (f"did you mean {meant}?" if nearest else "--help lists all fields")
  )


def last_of_each(argv: list[str]) -> list[str]:
  """`argv` without a --config.FIELD=VALUE whose field is given again: the last one counts.

  Otherwise the flags library would put the values of a tuple one after the other.
  """
  last = {argument.partition("=")[0]: i for i, argument in enumerate(argv)}
  return [
    argument
    for i, argument in enumerate(argv)
    if not re.match(r"--?config\.[^=]+=", argument) or last[argument.partition("=")[0]] == i
  ]


def prepare(config: ConfigDict, argv: list[str]):
  """Makes `config` ready for the overrides in `argv`, which the config library then applies.

  Tuples whose elements are set become lists until `restore`; new keys get a value of the right
  type, which is that of the Python literal after the =, or else text.

  Raises:
    UsageError: a field has no elements, or not so many, or is set whole as well.
  """
  given = {name for name, _ in _given(argv)}
  for name, value in _given(argv):
    plain, bracket, index = name.partition("[")
    if bracket:
      if plain in given:
        raise UsageError(
          f"--config.{plain} is given whole and as --config.{name}; give one of the two"
        )
      _to_list(config, plain, index)
    elif is_free(name):
      _add(config, name, _read(value))


def restore(config: ConfigDict, argv: list[str]):
  """Turns the lists that `prepare` made back into tuples."""
  for name, _ in _given(argv):
    plain, bracket, _ = name.partition("[")
    if bracket:
      section, leaf = _holder(config, plain)
      _replace(section, leaf, tuple(section[leaf]))


@functools.cache
def mappings() -> list[str]:
  """Dotted names of the fields whose keys are free, such as task.dataset.own.options."""
  from configs import common  # imports jax

  fields = []
  for section, dataclass in common.SECTIONS.items():
    for name, kind in typing.get_type_hints(dataclass).items():
      if typing.get_origin(kind) is collections.abc.Mapping:
        fields.append(f"{section}.{name}")
  return fields


def is_free(name: str) -> bool:
  """Whether a config may lack the field of a dotted name: a key of such a field, or a field of
  model.shape."""
  from configs import common

  section, _, leaf = name.rpartition(".")
  field = next((field for field in mappings() if name.startswith(f"{field}.")), "")
  shape = section == "model.shape" and leaf in common.SECTIONS[section].__dataclass_fields__
  return bool(field) or shape


def _given(argv):
  """(dotted name, value as text) of each --config.NAME=VALUE; that of a switch is True or False."""
  for i, argument in enumerate(argv):
    if not (match := re.match(r"--?(no)?config\.([^=]+)(=?)(.*)", argument, re.DOTALL)):
      continue
    switch, name, equals, value = match.groups()
    if not equals:
      following = argv[i + 1] if i + 1 < len(argv) and not switch else "-"
      value = str(not switch) if following.startswith("-") else following
    yield name, value


def _read(text):
  """The value of a Python literal or of true and false, else the text itself."""
  if text.lower() in ("true", "false"):
    return text.lower() == "true"
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    return text
  value = tuple(value) if isinstance(value, list) else value
  return value if isinstance(value, bool | int | float | str | tuple | dict) else text


def _add(config, name, value):
  """Sets a field that `config` may lack, and the sections above it."""
  with config.unlocked():
    *sections, leaf = name.split(".")
    for section in sections:
      if section not in config:
        config[section] = ConfigDict()
      config = config[section]
      if not isinstance(config, ConfigDict):
        raise UsageError(f"--config.{name}: {section} is a value, not a section")
    if leaf not in config:
      config[leaf] = value


def _holder(config, name):
  """The section that holds the field of a dotted name, and its last part."""
  *sections, leaf = name.split(".")
  for section in sections:
    config = config[section]
  return config, leaf


def _to_list(config, name, index):
  """Makes a list of a tuple one of whose elements is set."""
  section, leaf = _holder(config, name)
  values, place = section[leaf], _read(index.removesuffix("]"))
  if not isinstance(values, tuple | list) or type(place) is not int:
    raise UsageError(f"--config.{name}[{index}: {name}={values!r} has no element of that index")
  if not -len(values) <= place < len(values):
    raise UsageError(
      f"--config.{name}[{index}: {name} has {len(values)} elements; set all of them, such as "
      f'--config.{name}="{values or (1, 2)!r}"'
    )
  _replace(section, leaf, list(values))


def _replace(section, leaf, value):
  """Sets a field to a value of another type; plain assignment makes a tuple of the list again."""
  with section.unlocked():
    del section[leaf]
    section[leaf] = value
