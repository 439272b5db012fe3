"""Files that are replaced in one go, and folders that belong to one configuration."""

import contextlib
import errno
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from poise_jax.errors import UserError

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def write_whole(path: pathlib.Path, text: str):
  """Replaces a file in one go: a reader sees the old text or the new one, never half of it."""
  partial = path.with_name(f".{path.name}.partial")
  # A model can generate half of a surrogate pair, which UTF-8 cannot encode.
  partial.write_text(text, encoding="utf-8", errors="backslashreplace")
  os.replace(partial, path)


@contextlib.contextmanager
def disk_explained(workdir: pathlib.Path) -> Iterator[None]:
  """Adds how to fix it to an OSError that was raised because `workdir` could not be written."""
  try:
    yield
  except OSError as error:
    if error.errno not in _DISK:
      raise
    raise OSError(
      f"could not write to {workdir} ({error}); free space or make it writable, then run the same "
      "command again to continue after the last checkpoint"
    ) from error


def claim(
  folder: pathlib.Path,
  file: str,
  content: dict[str, Any],
  thing: str,
  flag: str,
  otherwise: str = "delete this one",
):
  """Creates a folder with a JSON file that identifies it, or checks the file of an existing one.

  Args:
    folder: created if it does not exist.
    file: name of the JSON file.
    content: configuration of the thing, in JSON types.
    thing: contents of the folder, such as "a run".
    flag: command-line flag that sets the folder.
    otherwise: alternative to another folder if the configurations differ.

  Raises:
    UserError: the folder holds a thing with another configuration, or something else.
  """
  path = folder / file
  content = json.loads(json.dumps(content))
  if path.exists():
    try:
      before = json.loads(path.read_text())
    except ValueError as error:
      raise UserError(f"{path} is not valid JSON ({error}); choose another {flag}") from error
    if changes := differences(before, content):
      raise UserError(
        f"{folder} holds {thing} with another configuration ({'; '.join(changes)}); "
        f"choose another {flag}, or {otherwise}"
      )
    return
  partial = path.with_suffix(".partial")  # may exist if a process died here
  if folder.exists() and any(item != partial for item in folder.iterdir()):
    raise UserError(
      f"{folder} is not empty and holds no {thing.split()[-1]}; choose another {flag}"
    )
  folder.mkdir(parents=True, exist_ok=True)
  partial.write_text(json.dumps(content, indent=2) + "\n")
  os.replace(partial, path)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
  """'a.b: 1 -> 2' for every leaf in which two JSON trees differ."""
  a, b = flat(before), flat(after)
  return [f"{k}: {a.get(k)!r} -> {b.get(k)!r}" for k in sorted(a | b) if a.get(k) != b.get(k)]


def known(tree: Any) -> Any:
  """A JSON tree with None for numbers that are not finite, which JSON does not have."""
  if isinstance(tree, dict):
    return {name: known(sub) for name, sub in tree.items()}
  if isinstance(tree, list | tuple):
    return [known(sub) for sub in tree]
  return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  """The leaves of a JSON tree by their path: {"a.b": leaf}."""
  if not isinstance(tree, dict):
    return {prefix[:-1]: tree}
  return {k: v for name, sub in tree.items() for k, v in flat(sub, f"{prefix}{name}.").items()}
