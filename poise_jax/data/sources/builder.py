"""A Source as a TFDS dataset, built once and read back without TensorFlow.

A row becomes a dict of the texts TEXTS, whose `reference` is JSON, as are the `turns` in front of
the question where the source has a column of chats. The numbers of rows read and of rows left out
are stored with the data, beside the checksums of the files.
"""

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator
from decimal import Decimal

import tensorflow_datasets as tfds

from poise_jax.data.sources import messages, readers
from poise_jax.data.sources.catalog import SOURCES, Source
from poise_jax.errors import UserError, unknown_name
from poise_jax.verifiers import Check, require_usable

TEXTS = ("question", "answer", "worked", "domain", "difficulty", "reference")
READING = 3  # how rows become examples; files on this machine are read again where it has changed
# Verifiers by their references: text, where a number becomes text; data, which text spells as JSON.
TEXTUAL = ("math", "choice", "exact", "numeric", "last_integer")
STRUCTURED = ("code", "constraints", "tool_call", "reasoning_gym", "countdown")


class ProblemsConfig(tfds.core.BuilderConfig):
  """The TFDS config of one dataset.

  The name of a dataset built from local files ends in a fingerprint of the files and the columns,
  so that other files make another dataset.
  """

  def __init__(self, source: Source, paths: dict[str, pathlib.Path] | None = None):
    self.source, self.paths = source, paths
    self.checksums = {
      name: readers.checksum(path, source.sha256.get(name)) for name, path in (paths or {}).items()
    }
    name = source.name
    if paths:
      columns = {k: c if isinstance(c, str) else c[0] for k, c in source.columns.items()}
      parts = [READING, columns, source.domain, source.verifier, source.files, self.checksums]
      name += "-" + hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    super().__init__(name=name, description=f"{source.name}: {source.citation}")


class Problems(tfds.core.GeneratorBasedBuilder):
  """Questions with verifiable answers, `tfds.builder("problems/NAME")` for a NAME in SOURCES."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [ProblemsConfig(source) for source in SOURCES.values()]

  def _info(self):
    source = self.builder_config.source
    self.counts = tfds.core.MetadataDict()
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.builder_config.description,
      features=tfds.features.FeaturesDict(dict.fromkeys(_texts(source), tfds.features.Text())),
      homepage=source.home or None,
      citation=source.citation,
      license=source.license,
      metadata=self.counts,
      disable_shuffling=True,  # a benchmark's questions keep the order of the file
    )

  def _split_generators(self, manager):
    source, paths = self.builder_config.source, self.builder_config.paths
    if not paths:
      paths = {name: pathlib.Path(path) for name, path in _downloaded(source, manager).items()}
    checksums = self.builder_config.checksums
    self.counts["sha256"] = checksums or {
      name: readers.checksum(path, source.sha256.get(name)) for name, path in paths.items()
    }
    return {
      split: self._generate_examples(split, [(pathlib.Path(n).suffix, paths[n]) for n in names])
      for split, names in source.files.items()
    }

  def _generate_examples(self, split, formats_and_paths):
    source, counts = self.builder_config.source, Counter()
    yield from enumerate(usable_examples(source, split, formats_and_paths, counts))
    self.counts[split] = dict(counts)
    if not counts["kept"]:
      paths = ", ".join(str(path) for _, path in formats_and_paths)
      rows = f"rows, but all were left out: {dict(counts)}" if counts["rows"] else "no rows"
      raise UserError(f"the {split} split of {source.name} is empty: {paths} contains {rows}")


def load(
  source: Source, split: str, folder: str = "", data_dir: str = ""
) -> tuple[list[dict], dict[str, int]]:
  """The examples of a split in the order of the files; builds the dataset on first use.

  Args:
    source: a value of SOURCES, or a user's own source.
    split: "train" or "test".
    folder: folder with the publisher's files as folder/NAME/PATH, PATH as in source.files; empty:
      they are downloaded from source.home. The paths of a user's own source stand alone.
    data_dir: folder of the built datasets; empty: TFDS's default, ~/tensorflow_datasets.

  Returns:
    Dicts with the keys TEXTS, all texts except `reference`, which is data; with a column of chats
    `turns`, the pairs (role, content) in front of the question; of a user's own files `row`, the
    whole row by columns; and the number of rows left out, by reason.

  Raises:
    UserError: there is no such split; a file's checksum differs from the expected one; a row is
      malformed, lacks a column, an answer or a question, or repeats an id (with file and line).
    OSError: a file is missing and cannot be downloaded.
  """
  if split not in source.files:
    raise UserError(f"dataset {source.name} has no {split} split; it has {', '.join(source.files)}")
  paths = _local(source, folder)
  published = not paths and source is SOURCES.get(source.name)
  config = source.name if published else ProblemsConfig(source, paths)
  with _quiet():
    builder = Problems(data_dir=data_dir or None, config=config, file_format="array_record")
  with _quiet() if paths else contextlib.nullcontext():
    builder.download_and_prepare()
  data = builder.as_data_source(split=split)
  examples = []
  for start in range(0, len(data), 1024):  # reading single records is several times slower
    for row in data.__getitems__(range(start, min(start + 1024, len(data)))):
      example = {name: row[name].decode() for name in _texts(source)}
      for name in {"reference", "row"} & example.keys():
        example[name] = json.loads(example[name])
      if "turns" in example:
        example["turns"] = tuple(map(tuple, json.loads(example["turns"])))
      examples.append(example)
  counts = builder.info.metadata[split]
  return examples, {k: n for k, n in counts.items() if k not in ("rows", "kept")}


@contextlib.contextmanager
def _quiet():
  """Leaves out what TFDS says of a user's own files, which would mislead: that it downloads, and
  that their config is a custom one. Its bars stay, since large files take minutes."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logger.setLevel(level)


def find(name: str) -> Source:
  """The dataset of that name; raises UserError if there is none."""
  if name not in SOURCES:
    raise unknown_name("dataset", name, SOURCES)
  return SOURCES[name]


def normalized(question: str) -> str:
  """The question with single spaces, so that repetitions compare equal."""
  return " ".join(question.split())


def usable_examples(
  source: Source,
  split: str,
  formats_and_paths: Iterable[tuple[str, pathlib.Path]],
  counts: Counter[str],
) -> Iterator[dict[str, str]]:
  """Yields the examples of a split, without rows that are filtered out or repeated.

  A training question is used once. Held-out questions are a benchmark and stay as they are.

  Args:
    source: the dataset.
    split: "train" or "test".
    formats_and_paths: format (see readers.rows) and path of each file.
    counts: updated with the numbers of rows, of rows kept, and of rows left out by reason.
  """
  ids, questions = {}, {}
  for format, path in formats_and_paths:
    for location, row in readers.rows(path, format):
      counts["rows"] += 1
      example, id = _example(source, location, row)
      if id is not None:
        if id in ids:
          raise UserError(f"{location}: the id {id!r} repeats that of {ids[id]}")
        ids[id] = location
      if not source.keep(example["question"]):
        counts["another language"] += 1
        continue
      if split == "train":
        question = normalized(example.get("turns", "") + example["question"])
        if question in questions:
          same = questions[question] == example["reference"]
          counts["repeated" if same else "repeated with another answer"] += 1
          continue
        questions[question] = example["reference"]
      counts["kept"] += 1
      yield example


def _example(source, location, row):
  """An example and its id (None without an id column) from a row."""
  get = functools.partial(_field, source, location, row)
  turns, question = _asked(source, location, get)
  answer = get("answer")
  reference = _reference(source, location, answer)
  answer_text = (
    reference if isinstance(reference, str) else json.dumps(reference, ensure_ascii=False)
  )
  difficulty = get("difficulty")
  example = {
    "question": question.strip(),
    "answer": answer_text,
    "worked": get("worked") or answer_text,
    "domain": get("domain") or source.domain,
    "difficulty": source.name + (f"/{difficulty}" if difficulty not in (None, "") else ""),
    "reference": json.dumps(reference),
  }
  if "messages" in source.columns:
    example["turns"] = json.dumps(turns, ensure_ascii=False)
  if _keeps_rows(source):
    example["row"] = json.dumps(row, default=str)
  for name in ("worked", "domain"):
    if not isinstance(example[name], str):
      raise UserError(
        f"{location}: the {name} in column {_column(source, name)!r} must be text, got "
        f"{example[name]!r:.60}"
      )
  for name, text in example.items():
    if (half := readers.surrogate(text)) and name not in ("reference", "row"):
      raise UserError(
        f"{location}: the {name} contains {half}, half of a character; was it cut in the middle?"
      )
  return example, get("id")


def _texts(source):
  texts = (*TEXTS, "turns") if "messages" in source.columns else TEXTS
  return (*texts, "row") if _keeps_rows(source) else texts


def _keeps_rows(source):
  """Whether a reward function may ask for columns: those of a user's own files."""
  return not source.home and source.name not in SOURCES


def _asked(source, location, get):
  """The turns of a chat in front of the question, and the question."""
  if "messages" in source.columns:
    where = f"{location}: the chat in column {_column(source, 'messages')!r}"
    *turns, (_, question) = messages.turns(get("messages"), where)
    return turns, question
  question, where = get("question"), f"{location}: the question in column"
  if not isinstance(question, str):
    raise UserError(f"{where} {_column(source, 'question')!r} must be text, got {question!r:.60}")
  if not question.strip():
    raise UserError(f"{where} {_column(source, 'question')!r} is empty")
  return [], question


def _reference(source, location, answer):
  """The reference in the form that the verifier expects: text or data.

  Raises:
    UserError: it is missing, has another form, or no response to it can be right.
  """
  where = f"{location}: the answer in column {_column(source, 'answer')!r}"
  blank = answer is None or (isinstance(answer, str) and not answer.strip())
  if blank or (answer == [] and source.verifier in TEXTUAL):  # other lists may be empty: no calls
    raise UserError(f"{where} is missing")
  try:
    if source.verifier == "structure":
      reference = _data(answer)
    elif source.verifier in STRUCTURED:
      reference = _data(json.loads(answer) if isinstance(answer, str) else answer)
    elif isinstance(answer, str | int | float | Decimal) and not isinstance(answer, bool):
      reference = _text(answer)
    elif source.verifier == "exact" and isinstance(answer, list):
      reference = [_text(text) for text in answer]  # all of them are right
    elif source.verifier in TEXTUAL:
      raise TypeError("must be text or a number")
    else:
      reference = _data(answer)
    require_usable(Check(source.verifier, reference, source.options))
  except TypeError as error:
    raise UserError(
      f"{where} {error} for verifier {source.verifier!r}, got {answer!r:.60}"
    ) from None
  except (ValueError, RecursionError) as error:
    raise UserError(f"{where} cannot be used: {error}") from error
  return reference


def _text(answer):
  """An answer as text, numbers in their shortest form."""
  if isinstance(answer, bool) or not isinstance(answer, str | int | float | Decimal):
    raise TypeError("must be text or a number")
  if isinstance(answer, float | Decimal) and answer == int(answer):
    answer = int(answer)
  return f"{answer.normalize():f}" if isinstance(answer, Decimal) else str(answer).strip()


def _data(answer):
  """An answer as the data that JSON reads back."""

  def number(value):
    if not isinstance(value, Decimal):
      raise TypeError("must be text, a number or JSON data")
    return int(value) if value == int(value) else float(value)

  return json.loads(json.dumps(answer, default=number))


def _column(source, name):
  column = source.columns[name]
  return column if isinstance(column, str) else column[0]


def _field(source, location, row, name):
  """The value of the column that the source names for `name`; None if it names none."""
  if name not in source.columns:
    return None
  column, value = _column(source, name), row
  for part in [column] if column in row else column.split("."):
    if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
      value = value[int(part)]
    elif isinstance(value, dict) and part in value:
      value = value[part]
    else:
      raise UserError(
        f"{location} has no column {column!r} for the {name}; "
        + (f"set --config.task.dataset.own.{name} to one of " if _keeps_rows(source) else "it has ")
        + ", ".join(row)
      )
  convert = source.columns[name]
  if isinstance(value, float | Decimal) and not math.isfinite(value):
    return None  # libraries write a missing value as NaN
  if isinstance(convert, str) or value is None:
    return value
  try:
    return convert[1](value)
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(f"{location}: column {column!r} contains no {name}: {error}") from error


def _local(source, folder):
  """{name: path} of the files on this machine; None if they must be downloaded."""
  published = source.name in SOURCES
  if source.home and not folder:
    return None
  names = [name for names in source.files.values() for name in names]
  if published and not folder:
    raise UserError(
      f"dataset {source.name} has no known download address; put {', '.join(names)} into "
      f"FOLDER/{source.name}/ and set task.dataset.folder=FOLDER"
    )
  base = pathlib.Path(folder, source.name) if published else pathlib.Path()
  paths = {name: base / name for name in names}
  for path in paths.values():
    if not path.is_file():
      hint = f"; download it from {source.home}" if source.home else ""
      raise FileNotFoundError(f"dataset {source.name} needs the file {path}{hint}")
  return paths


def _downloaded(source, manager):
  """{name: path} of the files, downloaded."""
  from poise_jax.models.io.sources import unreachable  # reading local files needs no model

  separator = "/resolve/main/" if source.home.startswith("https://huggingface.co/") else "/"
  names = [name for names in source.files.values() for name in names]
  try:
    if reason := unreachable(source.home):
      raise OSError(reason)
    return manager.download({name: source.home + separator + name for name in names})
  except Exception as error:  # of requests, TFDS or the file system
    reason = " ".join(str(error).split())
    raise OSError(
      f"cannot download dataset {source.name} from {source.home} ({reason:.200}); put its files "
      f"into FOLDER/{source.name}/ and set task.dataset.folder=FOLDER: {', '.join(names)}"
    ) from error
