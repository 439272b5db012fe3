"""A user's own function, named as "path/to/file.py:function" or "package.module:function"."""

import difflib
import functools
import importlib
import importlib.util
import inspect
import pathlib
import types
from collections.abc import Callable
from typing import Any

from poise_jax.errors import UserError

FORMS = "'path/to/file.py:function' or 'package.module:function'"


def is_own(name: str) -> bool:
  """Whether a name has the form of an own function's: something on both sides of a colon."""
  module, _, function = name.rpartition(":")
  return bool(module and function)


@functools.cache
def load(name: str) -> Callable[..., Any]:
  """The function of that name; a relative path starts from the working directory.

  Raises:
    UserError: its file is missing or does not run, or it has no such function.
  """
  module_name, _, function = name.rpartition(":")
  is_file = module_name.endswith(".py")
  if is_file and not pathlib.Path(module_name).is_file():
    raise UserError(f"there is no file {module_name} in {pathlib.Path.cwd()}")
  try:
    module = _file(module_name) if is_file else importlib.import_module(module_name)
  except Exception as error:  # importing a user's module may raise anything
    hint = "; install its package or add its folder to PYTHONPATH"
    hint = hint if isinstance(error, ModuleNotFoundError) else ""
    raise UserError(
      f"{module_name} does not load: {type(error).__name__}: {error}{hint}"
    ) from error
  if not hasattr(module, function):
    raise UserError(f"{module_name} has no function {function!r}{_offer(module, function)}")
  loaded = getattr(module, function)
  if not callable(loaded):
    raise UserError(
      f"{function} is a {type(loaded).__name__}, not a function{_offer(module, function)}"
    )
  return loaded


def algorithm_name(algorithm: str, estimator: str) -> str:
  """What a run's algorithm is called: with an own estimator, its function before the preset.

  Args:
    algorithm: the preset, config.algorithm.
    estimator: config.estimator.
  """
  own = estimator.rpartition(":")[2]
  return f"{own} ({algorithm})" if is_own(estimator) else algorithm


def source_of(name: str) -> pathlib.Path | None:
  """The file of a function, found without running it; None if it has none."""
  module = name.rpartition(":")[0]
  if module.endswith(".py"):
    return pathlib.Path(module)
  try:
    spec = importlib.util.find_spec(module)
  except (ImportError, ValueError):
    return None
  return pathlib.Path(spec.origin) if spec and spec.has_location else None


@functools.cache
def _file(path: str) -> types.ModuleType:
  """The module in a file, which need not be on the import path."""
  spec = importlib.util.spec_from_file_location(f"own_{pathlib.Path(path).stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _offer(module, wanted):
  """The functions that a module defines itself, the nearest first, as the end of a sentence."""
  names = [
    name
    for name, value in vars(module).items()
    if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_"
  ]
  nearest = difflib.get_close_matches(wanted, names, 1)
  names = [*nearest, *(name for name in names if name not in nearest)]
  return f"; its functions are {', '.join(names[:10])}" if names else "; it defines none"
