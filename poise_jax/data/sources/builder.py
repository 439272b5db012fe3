"""A Source as a TFDS dataset, built once and read back without TensorFlow.

Each row becomes {question, answer, worked, difficulty, reference}; the last is JSON. What was read
and what was left out is counted, and stored with the data beside the files' checksums.
"""

import functools
import hashlib
import json
import pathlib
from collections import Counter
from collections.abc import Iterator

import tensorflow_datasets as tfds

from poise_jax.data.sources import files
from poise_jax.data.sources.sources import SOURCES, Source
from poise_jax.errors import UserError, unknown_name

TEXTS = ("question", "answer", "worked", "domain", "difficulty", "reference")
STRUCTURED = ("code", "structure", "constraints", "tool_call", "reasoning_gym", "countdown")


class ProblemsConfig(tfds.core.BuilderConfig):
  """One dataset. With local files its name ends in a fingerprint of them and of the columns, so
  that other files make another dataset."""

  def __init__(self, source: Source, paths: dict[str, pathlib.Path] | None = None):
    self.source, self.paths = source, paths
    self.sums = {name: _checked(source, name, path) for name, path in (paths or {}).items()}
    name = source.name
    if paths:
      columns = {k: c if isinstance(c, str) else c[0] for k, c in source.columns.items()}
      parts = [columns, source.domain, source.verifier, source.files, self.sums]
      name += "-" + hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    super().__init__(name=name, description=f"{source.name}: {source.citation}")


class Problems(tfds.core.GeneratorBasedBuilder):
  """Questions with verifiable answers: `tfds.builder("problems/gsm8k")`; see SOURCES."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [ProblemsConfig(source) for source in SOURCES.values()]

  def _info(self):
    source = self.builder_config.source
    self.counts = tfds.core.MetadataDict()
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.builder_config.description,
      features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in TEXTS}),
      homepage=source.home or None,
      citation=source.citation,
      license=source.license,
      metadata=self.counts,
      disable_shuffling=True,  # file order: a benchmark's questions keep their numbers
    )

  def _split_generators(self, manager):
    source, paths = self.builder_config.source, self.builder_config.paths
    if not paths:
      paths = {name: pathlib.Path(path) for name, path in _downloaded(source, manager).items()}
    sums = self.builder_config.sums or {n: _checked(source, n, path) for n, path in paths.items()}
    self.counts["sha256"] = sums
    return {
      split: self._generate_examples(split, [(pathlib.Path(n).suffix, paths[n]) for n in names])
      for split, names in source.files.items()
    }

  def _generate_examples(self, split, named):
    source, counts = self.builder_config.source, Counter()
    yield from enumerate(kept(source, split, named, counts))
    self.counts[split] = dict(counts)
    if not counts["kept"]:
      read = f"{counts['rows']} rows, none of use: {dict(counts)}" if counts["rows"] else "no row"
      where = ", ".join(str(path) for _, path in named)
      raise UserError(f"the {split} split of {source.name} is empty: {where} held {read}")


def load(
  source: Source, split: str, folder: str = "", data_dir: str = ""
) -> tuple[list[dict], dict[str, int]]:
  """The examples of a split, in the order of its files; builds the dataset the first time.

  Args:
    source: a value of SOURCES, or a user's own.
    split: "train" or "test".
    folder: where the owner's files are, as folder/NAME/PATH (the paths of source.files); empty:
      they are fetched from source.home. A source without a home has paths of its own.
    data_dir: where built datasets are kept; empty: TFDS's own place, ~/tensorflow_datasets.

  Returns:
    Dicts with the texts TEXTS, but for `reference`, which is data; and how many rows were left out,
    by reason.

  Raises:
    UserError: there is no such split; a file's checksum is not the expected one; a row is broken,
      has no such column, no answer or no text, or repeats an id (with file and line).
    OSError: a file is neither there nor to be fetched.
  """
  if split not in source.files:
    raise UserError(
      f"dataset {source.name} has no {split} split; it has {', '.join(source.files)}"
    )
  paths = _local(source, folder)
  published = not paths and source is SOURCES.get(source.name)
  config = source.name if published else ProblemsConfig(source, paths)
  builder = Problems(data_dir=data_dir or None, config=config, file_format="array_record")
  builder.download_and_prepare()
  data = builder.as_data_source(split=split)
  examples = []
  for start in range(0, len(data), 1024):  # a record at a time is several times slower
    for row in data.__getitems__(range(start, min(start + 1024, len(data)))):
      example = {name: row[name].decode() for name in TEXTS}
      examples.append(example | {"reference": json.loads(example["reference"])})
  counts = builder.info.metadata[split]
  return examples, {k: n for k, n in counts.items() if k not in ("rows", "kept")}


def find(name: str) -> Source:
  """The dataset of that name; ValueError for an unknown one, listing all."""
  if name not in SOURCES:
    raise unknown_name("dataset", name, SOURCES)
  return SOURCES[name]


def same_question(question: str) -> str:
  """What two askings of one question have in common: its words, whatever the space around them."""
  return " ".join(question.split())


def kept(source: Source, split: str, named, counts: Counter) -> Iterator[dict]:
  """The examples of files [(format, path)]; counts rows, what is kept and what is not, and why.

  Training questions are kept once. Held-out ones are a benchmark and stay as they are.
  """
  ids, questions = {}, {}
  for form, path in named:
    for place, row in files.rows(path, form):
      counts["rows"] += 1
      example, id = _example(source, place, row)
      if id is not None:
        if id in ids:
          raise UserError(f"{place}: the id {id!r} stands in {ids[id]} already; ids must differ")
        ids[id] = place
      if not source.keep(example["question"]):
        counts["another language"] += 1
        continue
      if split == "train":
        question = same_question(example["question"])
        if question in questions:
          same = questions[question] == example["reference"]
          counts["repeated" if same else "repeated with another answer"] += 1
          continue
        questions[question] = example["reference"]
      counts["kept"] += 1
      yield example


def _example(source, place, row):
  get = functools.partial(_field, source, place, row)
  question, answer = get("question"), get("answer")
  if not isinstance(question, str):
    raise UserError(
      f"{place}: the question in column {_column(source, 'question')!r} is {question!r:.60}, a "
      f"{type(question).__name__} where text is needed"
    )
  if answer is None or (isinstance(answer, str) and not answer.strip()):
    raise UserError(f"{place}: the answer in column {_column(source, 'answer')!r} is missing")
  if not question.strip():
    raise UserError(f"{place}: the question in column {_column(source, 'question')!r} is empty")
  if source.verifier not in STRUCTURED:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
      raise UserError(
        f"{place}: the answer in column {_column(source, 'answer')!r} is {answer!r:.60}, where "
        f"verifier {source.verifier!r} needs text or a number"
      )
    answer = f"{answer:.0f}" if isinstance(answer, float) and answer.is_integer() else str(answer)
  shown = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
  difficulty = get("difficulty")
  example = {
    "question": question.strip(),
    "answer": shown.strip(),
    "worked": get("worked") or shown.strip(),
    "domain": get("domain") or source.domain,
    "difficulty": source.name + (f"/{difficulty}" if difficulty not in (None, "") else ""),
    "reference": json.dumps(answer.strip() if isinstance(answer, str) else answer),
  }
  for name in ("worked", "domain"):
    if not isinstance(example[name], str):
      raise UserError(
        f"{place}: the {name} in column {_column(source, name)!r} is {example[name]!r:.60}, not "
        "text"
      )
  return example, get("id")


def _column(source, name):
  column = source.columns[name]
  return column if isinstance(column, str) else column[0]


def _field(source, place, row, name):
  """What stands in the column that the source names for `name`; None if it names none."""
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
        f"{place} has no column {column!r} for the {name}; its columns are {', '.join(row)}"
      )
  convert = source.columns[name]
  if isinstance(convert, str) or value is None:
    return value
  try:
    return convert[1](value)
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(f"{place}: column {column!r} holds no {name}: {error}") from error


def _local(source, folder):
  """{name: path} of its files on this machine; None where they are to be fetched."""
  known = source.name in SOURCES
  if source.home and not folder:
    return None
  names = [name for names in source.files.values() for name in names]
  if known and not folder:
    raise UserError(
      f"dataset {source.name} has no known address to be fetched from; put it into "
      f"FOLDER/{source.name}/ as {', '.join(names)} and set task.folder=FOLDER"
    )
  base = pathlib.Path(folder, source.name) if known else pathlib.Path()
  paths = {name: base / name for name in names}
  for path in paths.values():
    if not path.is_file():
      where = f"; fetch it from {source.home}" if source.home else ""
      raise FileNotFoundError(f"dataset {source.name} needs the file {path}{where}")
  return paths


def _downloaded(source, manager):
  """{name: path} of its files, fetched."""
  between = "/resolve/main/" if source.home.startswith("https://huggingface.co/") else "/"
  names = [name for names in source.files.values() for name in names]
  try:
    return manager.download({name: source.home + between + name for name in names})
  except Exception as error:  # requests', TFDS's and the file system's own
    reason = " ".join(str(error).split())
    raise OSError(
      f"cannot fetch dataset {source.name} from {source.home} ({reason:.200}); put its files into "
      f"FOLDER/{source.name}/ and set task.folder=FOLDER: {', '.join(names)}"
    ) from error


def _checked(source, name, path):
  """The file's checksum.

  Raises:
    UserError: the source, or a SHA256SUMS beside the file, says another one.
  """
  found, expected, by = files.sha256(path), source.sha256.get(name), "its definition"
  sums = path.with_name("SHA256SUMS")
  if sums.is_file():
    lines = [line.split(maxsplit=1) for line in sums.read_text().splitlines() if line.strip()]
    listed = {line[-1].strip().lstrip("*"): line[0] for line in lines}
    if path.name in listed:
      expected, by = listed[path.name], str(sums)
  if expected and found != expected.lower():
    raise UserError(
      f"{path} has the SHA-256 checksum {found}, but {by} says {expected}: it is damaged or "
      "another version; fetch it again"
    )
  return found
