"""Which names of a program its tests use.

The tests get only these from the program. All other names they must define or import themselves: a
helper that the tests lack would otherwise come from the program, which could define it so that any
answer passes.
"""

import ast
import builtins
import functools
import importlib
import symtable
import sys
from collections.abc import Sequence

from poise_jax.verifiers.base import UnusableError
from poise_jax.verifiers.sandbox.calls import ALIASES
from poise_jax.verifiers.sandbox.usual_imports import usual_builtins


def program_names(setup: str, tests: Sequence[str], listed: Sequence[str]) -> list[str]:
  """The names that tests take from a program.

  They are those that the reference lists, and Solution. If it lists none and the tests do not use
  Solution, they are the one name that the tests use without defining it. A test that needs another
  name, which nothing defines, fails.

  Args:
    setup: Python source that runs before each test.
    tests: Python sources.
    listed: the entry point and the other names that the reference lists.

  Raises:
    UnusableError: a listed name is not a public identifier, or it is not clear which of several
      names the tests take from the program.
  """
  for name in listed:
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
      raise UnusableError(f"the reference of verifier code lists {name!r}, which is no public name")
  free = set().union(*(_free_names(f"{setup}\n{test}") for test in tests))
  if listed or "Solution" in free:
    return [*listed, "Solution"]
  unknown = sorted(name for name in free - set(vars(builtins)) if name[0] != "_")
  if len(unknown) > 1:
    unknown = [name for name in unknown if name not in _usual_names()]
  if len(unknown) == 1:
    return unknown
  if not unknown:
    raise UnusableError("the reference of verifier code has tests that use no name of a program")
  raise UnusableError(
    f"the reference of verifier code has tests that use {', '.join(unknown)}, which neither they "
    'nor "setup" define; list the names that a program must define in "names"'
  )


@functools.cache
def _usual_names():
  return frozenset(usual_builtins())


@functools.lru_cache(maxsize=1024)
def _free_names(source):
  """The global names that a source uses but does not define, without those of modules."""
  try:
    compile(source, "tests", "exec", dont_inherit=True)
    top, tree = symtable.symtable(source, "tests", "exec"), ast.parse(source)
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    problem = f"has a test that is not Python: {error}"
    raise UnusableError(f"the reference of verifier code {problem}") from error
  used, defined = set(), set()
  tables = [top]
  while tables:
    table = tables.pop()
    tables += table.get_children()
    for symbol in table.get_symbols():
      if table is top or symbol.is_declared_global():
        if symbol.is_assigned() or symbol.is_imported():
          defined.add(symbol.get_name())
      if symbol.is_referenced() and (table is top or symbol.is_global()):
        used.add(symbol.get_name())
  free = used - defined - {"__name__"}
  return frozenset(free - _star_names(tree) - _modules(tree))


def _star_names(tree):
  """The names that `from module import *` defines, where the module is one of Python's own."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.names[0].name == "*" and not node.level:
      if node.module.partition(".")[0] in sys.stdlib_module_names:
        module = importlib.import_module(node.module)
        names |= set(getattr(module, "__all__", None) or vars(module))
  return names


def _modules(tree):
  """The names of modules that are only used for their attributes; the tests import these."""
  names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
  bases = [
    node.value.id
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
  ]
  modules = {name for name in bases if name in sys.stdlib_module_names or name in ALIASES}
  return {name for name in modules if names.count(name) == bases.count(name)}
