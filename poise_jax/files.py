"""Files written whole or not at all, and folders that belong to one configuration."""

import contextlib
import errno
import json
import os
import pathlib
from typing import Any

from poise_jax.errors import UserError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def write_whole(path: pathlib.Path, text: str):
  """Replaces a file at once: a reader sees the old one or the new one, never half of it."""
  partial = path.with_name(f".{path.name}.partial")
  # Half a surrogate pair cannot be UTF-8; a model may still have said it.
  partial.write_text(text, encoding="utf-8", errors="backslashreplace")
  os.replace(partial, path)


@contextlib.contextmanager
def disk_explained(workdir: pathlib.Path):
  """Raises OSError with the way out where `workdir` could not be written."""
  try:
    yield
  except OSError as error:
    if error.errno not in _DISK:
      raise
    raise OSError(
      f"could not write to {workdir} ({error}); free space or make it writable, then the same "
      "command goes on after the last checkpoint"
    ) from error


def claim(
  folder: pathlib.Path,
  file: str,
  content: dict[str, Any],
  thing: str,
  flag: str,
  otherwise: str = "delete this one",
):
  """Creates a folder with a JSON file that says whose it is, or checks that it is this very one's.

  Args:
    folder: is made if need be.
    file: name of the JSON file in it.
    content: of the file.
    thing: what the folder is to hold, such as "a run".
    flag: of the command line that chooses the folder.
    otherwise: what else can be done about another content.

  Raises:
    UserError: the folder holds a thing with another content, or something else altogether.
  """
  path = folder / file
  content = json.loads(json.dumps(content))
  if path.exists():
    try:
      before = json.loads(path.read_text())
    except ValueError as error:
      raise UserError(f"{path} is not valid JSON ({error}); choose another {flag}") from error
    if changed := differences(before, content):
      raise UserError(
        f"{folder} holds {thing} with another configuration ({'; '.join(changed)}); "
        f"choose another {flag}, or {otherwise}"
      )
    return
  partial = path.with_suffix(".partial")  # may be left of a process that died here
  if folder.exists() and any(item != partial for item in folder.iterdir()):
    raise UserError(
      f"{folder} is not empty and holds no {thing.split()[-1]}; choose another {flag}"
    )
  folder.mkdir(parents=True, exist_ok=True)
  partial.write_text(json.dumps(content, indent=2) + "\n")
  os.replace(partial, path)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
  """'a.b: 1 -> 2' for every leaf that two JSON trees do not have in common."""
  a, b = flat(before), flat(after)
  return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in sorted(a | b) if a.get(k) != b.get(k)]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  """{"a.b": leaf} of a JSON tree."""
  if not isinstance(tree, dict):
    return {prefix[:-1]: tree}
  return {k: v for name, sub in tree.items() for k, v in flat(sub, f"{prefix}{name}.").items()}
