"""A chat in a column of a data set: a list of turns, each with a role and a content."""

import json
from typing import Any

from poise_jax.errors import UserError

ROLES = ("system", "user", "assistant")


def turns(chat: Any, where: str) -> list[tuple[str, str]]:
  """The (role, content) of each turn; only the first may be the system's, the last is the user's.

  Args:
    chat: the value of the column: a list of {"role": ..., "content": ...}, or its JSON text.
    where: file, line and column, for errors.

  Raises:
    UserError: it is no such list.
  """
  if isinstance(chat, str):
    try:
      chat = json.loads(chat)
    except ValueError as error:
      raise UserError(f"{where} is not a list of turns, nor JSON of one: {error}") from error
  if not isinstance(chat, list) or not chat:
    raise UserError(f"{where} must be a list of turns with role and content, got {chat!r:.60}")
  return [_turn(turn, i, i == len(chat) - 1, where) for i, turn in enumerate(chat)]


def _turn(turn, i, last, where):
  where = f"{where}, turn {i + 1},"
  role, content = (
    turn.get(name) if isinstance(turn, dict) else None for name in ("role", "content")
  )
  if role not in ROLES:
    raise UserError(f"{where} must have a role of {', '.join(ROLES)}, got {turn!r:.60}")
  if not isinstance(content, str) or not content.strip():
    raise UserError(f"{where} must have a content of text, got {turn!r:.60}")
  if role == "system" and i:
    raise UserError(f"{where} is the system's, which must be the first")
  if last and role != "user":
    raise UserError(f"{where} is the last one and must be the user's, got {role!r}")
  return role, content
