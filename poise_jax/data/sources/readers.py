"""Readers of JSONL, JSON, CSV and parquet files.

Every error names the file and the line (JSONL, CSV) or row.
"""

import csv
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

from poise_jax.errors import UserError

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
csv.field_size_limit(2**30)  # a field may contain a whole table or a program's tests
# Rows that are read at once: pyarrow refuses more than 2 GiB of text in a nested column, which
# LiveCodeBench's tests reach with a few hundred rows.
PARQUET_ROWS = 64


def rows(path: pathlib.Path, format: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (location, row) for every row; a location is "train.jsonl, line 7", for example.

  Args:
    path: the file.
    format: one of FORMATS; a downloaded file's own name may lack the suffix.

  Raises:
    UserError: the format is unknown, or the file or one of its rows is malformed.
    OSError: the file cannot be read.
  """
  readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
  if format not in readers:
    raise UserError(f"{path} has the unknown format {format!r}; choose from {', '.join(FORMATS)}")
  for location, row in readers[format](path):
    if not isinstance(row, dict):
      raise UserError(f"{location}: a row must be an object with named columns, got {row!r:.60}")
    yield location, row


def sha256(path: pathlib.Path) -> str:
  """The file's checksum in the format of `sha256sum`."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def surrogate(text: str) -> str:
  """The first half of a surrogate pair in a text, as JSON escapes it; "" if there is none.

  Such a code is no character and has no UTF-8, but JSON can spell it and Python's strings hold it.
  """
  half = re.search("[\ud800-\udfff]", text)
  return f"\\u{ord(half[0]):04x}" if half else ""


def _parsed(text, location):
  """The data of a JSON text, except for mistakes in its syntax."""
  try:
    return json.loads(text)
  except (json.JSONDecodeError, UnicodeDecodeError):
    raise
  except (ValueError, RecursionError) as error:  # too many digits, or levels
    raise UserError(f"{location} cannot be read: {error}") from error


def _jsonl(path):
  with path.open("rb") as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      location = f"{path}, line {number}"
      try:
        yield location, _parsed(line, location)
      except UnicodeDecodeError as error:
        raise UserError(f"{location} is not UTF-8 ({error.reason})") from error
      except json.JSONDecodeError as error:
        raise UserError(f"{location} is not JSON: {error.msg} at column {error.colno}") from error


def _text(path):
  content = path.read_bytes()
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    raise UserError(f"{path}, line {line} is not UTF-8 ({error.reason})") from error


def _json(path):
  try:
    content = _parsed(_text(path), path)
  except json.JSONDecodeError as error:
    location = f"{path}, line {error.lineno}, column {error.colno}"
    hint = "; a file with one object a line must end in .jsonl" if error.msg == "Extra data" else ""
    raise UserError(f"{location} is not JSON: {error.msg}{hint}") from error
  if not isinstance(content, list):
    raise UserError(f"{path} must contain a list of rows, got {content!r:.60}")
  for number, row in enumerate(content, 1):
    yield f"{path}, row {number}", row


def _csv(path):
  reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
  try:
    for row in reader:
      location = f"{path}, line {reader.line_num}"
      if None in row or None in row.values():
        raise UserError(
          f"{location}: the number of fields differs from the {len(reader.fieldnames)} columns of "
          "line 1"
        )
      yield location, row
  except csv.Error as error:
    raise UserError(f"{path}, line {reader.reader.line_num} is not CSV: {error}") from error


def _parquet(path):
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      types = {field.name: field.type for field in file.schema_arrow}
      short = {name: kind for name, kind in types.items() if _has_short_floats(kind)}
      batches = file.iter_batches(PARQUET_ROWS)
      rows = (batch.slice(i, 1) for batch in batches for i in range(batch.num_rows))
      for number, row in enumerate(rows, 1):
        (row,) = row.to_pylist()
        row |= {name: _shortest(row[name], kind) for name, kind in short.items()}
        yield f"{path}, row {number}", row
  except pyarrow.ArrowException as error:
    reason = " ".join(str(error).split())
    raise UserError(f"{path} is damaged or not a parquet file: {reason}") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{path}, row {number} is not UTF-8 ({error.reason})") from error


def _has_short_floats(kind):
  """Whether a type of parquet has floats of 32 or 16 bits in it."""
  inside = [kind.field(i).type for i in range(kind.num_fields)]
  return kind in (pyarrow.float32(), pyarrow.float16()) or any(map(_has_short_floats, inside))


def _shortest(value, kind):
  """A value of such a type, where floats are as they were written: 0.1, not 0.10000000149."""
  if value is None:
    return None
  if isinstance(value, float) and kind in (pyarrow.float32(), pyarrow.float16()):
    return float(str(kind.to_pandas_dtype()(value)))
  if isinstance(value, dict):
    return {name: _shortest(x, kind.field(name).type) for name, x in value.items()}
  if isinstance(value, list) and pyarrow.types.is_map(kind):
    return [(_shortest(k, kind.key_type), _shortest(x, kind.item_type)) for k, x in value]
  return [_shortest(x, kind.value_type) for x in value] if isinstance(value, list) else value


def checksum(path: pathlib.Path, expected: str | None = None) -> str:
  """The SHA-256 checksum of a file.

  Args:
    path: the file; a SHA256SUMS beside it, in the format of sha256sum, may list it.
    expected: the checksum in the dataset's definition, for which SHA256SUMS counts where it lists
      the file.

  Raises:
    UserError: it differs from the expected one.
  """
  actual, origin = sha256(path), "its definition"
  sums = path.with_name("SHA256SUMS")
  if sums.is_file():
    lines = [line.split(maxsplit=1) for line in sums.read_text().splitlines() if line.strip()]
    listed = {line[-1].strip().lstrip("*"): line[0] for line in lines}
    if path.name in listed:
      expected, origin = listed[path.name], str(sums)
  if expected and actual != expected.lower():
    raise UserError(
      f"{path} has the SHA-256 checksum {actual}, but {origin} says {expected}; it is damaged or "
      "another version, download it again"
    )
  return actual
