"""The meaning of each config field: the comment beside its definition.

A comment behind a definition belongs to it; without one, the comment lines directly above do. So a
meaning is written once, where a reader of the code needs it as well.
"""

import ast
import inspect
import io
import tokenize
from collections.abc import Callable

from configs import common


def fields() -> dict[str, str]:
  """The meaning of each field of `common.default` by its dotted name; "" without a comment."""
  meanings = {}
  source = inspect.getsource(common)
  comment_of = _comments(source)
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Assign):
      root, _, name = ast.unparse(node.targets[0]).partition(".")
      if root == "config" and name:
        meanings[name] = comment_of(node)
  for section, dataclass in common.SECTIONS.items():
    source = inspect.getsource(dataclass)
    comment_of = _comments(source)
    for node in ast.parse(source).body[0].body:
      if isinstance(node, ast.AnnAssign):
        meanings[f"{section}.{node.target.id}"] = comment_of(node)
  return meanings


def _comments(source: str) -> Callable[[ast.AST], str]:
  """A function from a node of `source` to the comment that belongs to it."""
  behind, alone = {}, {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      comments = behind if token.line[: token.start[1]].strip() else alone
      comments[token.start[0]] = token.string.lstrip("# ")

  def comment_of(node):
    if node.end_lineno in behind:
      return behind[node.end_lineno]
    first = node.lineno
    while first - 1 in alone:
      first -= 1
    return " ".join(alone[line] for line in range(first, node.lineno))

  return comment_of
