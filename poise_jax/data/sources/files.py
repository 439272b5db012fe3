"""Rows of JSONL, JSON, CSV and parquet files, each with the place where it stands.

Every error names file and line (for JSONL and CSV) or row, and what to do.
"""

import csv
import hashlib
import io
import json
import pathlib
from collections.abc import Iterator

import pyarrow
import pyarrow.parquet

from poise_jax.errors import UserError

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
csv.field_size_limit(2**30)  # a field may hold a whole table or a program's tests


def rows(path: pathlib.Path, form: str) -> Iterator[tuple[str, dict]]:
  """Yields (place, row) for every row; place is such as "train.jsonl, line 7".

  Args:
    path: the file.
    form: one of FORMATS; the file's own name may say less.

  Raises:
    UserError: the format is unknown, or the file or one of its rows is broken.
    OSError: the file cannot be read.
  """
  readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
  if form not in readers:
    raise UserError(f"{path} ends in {form!r}; readable are {', '.join(FORMATS)}")
  for place, row in readers[form](path):
    if not isinstance(row, dict):
      raise UserError(f"{place}: a row is an object with named columns, not {row!r:.60}")
    yield place, row


def sha256(path: pathlib.Path) -> str:
  """The file's checksum as `sha256sum` prints it."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _jsonl(path):
  with path.open("rb") as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      place = f"{path}, line {number}"
      try:
        yield place, json.loads(line)
      except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 ({error.reason})") from error
      except json.JSONDecodeError as error:
        raise UserError(f"{place} is not JSON: {error.msg} at column {error.colno}") from error


def _text(path):
  content = path.read_bytes()
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    raise UserError(f"{path}, line {line} is not UTF-8 ({error.reason})") from error


def _json(path):
  try:
    content = json.loads(_text(path))
  except json.JSONDecodeError as error:
    where = f"line {error.lineno}, column {error.colno}"
    hint = "; one object a line is called .jsonl" if error.msg == "Extra data" else ""
    raise UserError(f"{path}, {where} is not JSON: {error.msg}{hint}") from error
  if not isinstance(content, list):
    raise UserError(f"{path} holds no list of rows, but {content!r:.60}")
  for number, row in enumerate(content, 1):
    yield f"{path}, row {number}", row


def _csv(path):
  reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
  try:
    for row in reader:
      place = f"{path}, line {reader.line_num}"
      if None in row or None in row.values():
        raise UserError(
          f"{place} has not as many fields as the {len(reader.fieldnames)} columns of line 1"
        )
      yield place, row
  except csv.Error as error:
    raise UserError(f"{path}, line {reader.reader.line_num} is not CSV: {error}") from error


def _parquet(path):
  try:
    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
      for batch in file.iter_batches(1024):
        for row in batch.to_pylist():
          number += 1
          yield f"{path}, row {number}", row
  except pyarrow.ArrowException as error:
    reason = " ".join(str(error).split())
    raise UserError(f"{path} is broken or no parquet file: {reason}") from error
