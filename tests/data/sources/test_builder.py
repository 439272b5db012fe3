"""Building a dataset: errors with file and line, counts, downloads and checksums."""

import dataclasses
import functools
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from poise_jax.data import sources
from poise_jax.data.sources import readers

tfds.disable_progress_bar()
GOOD = {"question": "q?", "answer": "1"}


@pytest.fixture
def folder(tmp_path):
  """A folder for source files and built datasets."""
  return tmp_path


def load(folder, content, file="rows.jsonl", split="train", **fields):
  """Builds a user's own dataset from one file; content is text, bytes or JSONL rows."""
  path = folder / file
  if isinstance(content, list):
    content = "".join(json.dumps(row) + "\n" for row in content)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  columns = dict(question="question", answer="answer") | fields.pop("columns", {})
  source = sources.Source("own", {split: (str(path),)}, columns, **fields)
  return sources.load(source, split, data_dir=str(folder / "built"))


@pytest.mark.parametrize(
  "content,file,message",
  [
    ('{"question": "q?", "answer": "1"}\n\n{"question": "a\n', "rows.jsonl", r"line 3 is not JSON"),
    (b'{"question": "q?", "answer": 1}\n{"question": "\xff"}', "rows.jsonl", "line 2 is not UTF-8"),
    (
      '{"question": "q?", "answer": "1"}\n["q?", "1"]\n',
      "rows.jsonl",
      "line 2: a row must be an obj",
    ),
    ("[{}, ]", "rows.json", r"rows.json, line 1, column \d is not JSON"),
    ('{"a": 1}\n{"a": 2}', "rows.json", "line 2.*Extra data; a file with one object a line"),
    ('{"rows": []}', "rows.json", "rows.json must contain a list of rows"),
    (
      "question,answer\nq?,1\nq,?,2\n",
      "rows.csv",
      "line 3: the number of fields differs from the 2",
    ),
    ("question,answer\nq?\n", "rows.csv", "line 2: the number of fields differs"),
    ('question,answer\n"q"?,1\n', "rows.csv", "line 2 is not CSV"),
    (b"question,answer\nq\xff,1\n", "rows.csv", "line 2 is not UTF-8"),
    (b"PAR1 and then nothing", "rows.parquet", "rows.parquet is damaged or not a parquet file"),
    ("question\tanswer", "rows.tsv", r"'.tsv'; choose from .jsonl, .json, .csv, .parquet"),
    ("", "rows.jsonl", "the train split of own is empty: .*rows.jsonl contains no rows"),
    ("[]", "rows.json", "train split of own is empty"),
    ("question,answer\n", "rows.csv", "train split of own is empty"),
  ],
)
def test_errors_in_malformed_files_name_the_line(folder, content, file, message):
  with pytest.raises(ValueError, match=message):
    load(folder, content, file)
  assert not list((folder / "built").rglob("*.array_record*"))  # no partial dataset remains


@pytest.mark.parametrize(
  "row,message",
  [
    ({"prompt": "q?", "answer": "1"}, "line 2 has no column 'question' for the question; set "),
    (
      {"question": "q?"},
      "line 2 has no column 'answer' for the answer; "
      "set --config.task.dataset.own.answer to one of question$",
    ),
    (
      {"question": 5, "answer": "1"},
      "line 2: the question in column 'question' must be text, got 5",
    ),
    ({"question": ["q"], "answer": "1"}, r"line 2: the question .* must be text, got \['q'\]"),
    ({"question": None, "answer": "1"}, "line 2: the question .* got None"),
    ({"question": " ", "answer": "1"}, "line 2: the question in column 'question' is empty"),
    ({"question": "q?", "answer": None}, "line 2: the answer in column 'answer' is missing"),
    ({"question": "q?", "answer": ""}, "line 2: the answer in column 'answer' is missing"),
    ({"question": "q?", "answer": ["1"]}, r"line 2: the answer .* verifier 'math', got \['1'\]"),
    ({"question": "q?", "answer": True}, "line 2: the answer .* for verifier 'math', got True"),
  ],
)
def test_errors_in_rows_name_the_line(folder, row, message):
  with pytest.raises(ValueError, match=message):
    load(folder, [GOOD, row])


def test_building_from_local_files_says_nothing_of_downloads_and_custom_configs(
  folder, caplog, capsys
):
  load(folder, [GOOD, {**GOOD, "question": "another?"}])
  assert not caplog.records and not capsys.readouterr().out


def test_ids_must_be_unique(folder):
  rows = [GOOD | {"id": i} for i in (7, 8, 7)]
  with pytest.raises(ValueError, match="line 3: the id 7 repeats that of .*rows.jsonl, line 1"):
    load(folder, rows, columns={"id": "id"})


def test_errors_in_values_name_the_column(folder):
  source = sources.find("gsm8k")
  with pytest.raises(ValueError, match="line 1: column 'answer' contains no answer: .*'####'"):
    load(folder, [GOOD], columns=source.columns)
  with pytest.raises(ValueError, match="line 1: the domain in column 'kind' must be text, got 3"):
    load(folder, [GOOD | {"kind": 3}], columns={"domain": "kind"})


def test_all_formats_give_the_same_examples(folder):
  rows = [{"question": "a, “b”?", "answer": "1\n2"}, {"question": "c", "answer": "x"}]
  text = 'question,answer\n"a, “b”?","1\n2"\nc,x\n'
  parquet = pyarrow.BufferOutputStream()
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
  datasets = [
    load(folder, rows),
    load(folder, json.dumps(rows), "rows.json"),
    load(folder, text, "rows.csv"),
    load(folder, parquet.getvalue().to_pybytes(), "rows.parquet"),
  ]
  assert datasets[0] == datasets[1] == datasets[2] == datasets[3]
  assert [e["question"] for e in datasets[0][0]] == ["a, “b”?", "c"]


@pytest.mark.slow
def test_a_nested_column_may_have_more_than_two_gigabytes(folder):
  """As LiveCodeBench's tests in GURU; needs 5 GB of memory."""
  count, kind = 290, pyarrow.struct([("ground_truth", pyarrow.string())])
  part = pyarrow.StructArray.from_arrays([["x" * 8_000_000] * 29], fields=list(kind))
  column = pyarrow.chunked_array([part] * (count // 29))
  table = pyarrow.table({"reward_model": column})
  path, options = folder / "rows.parquet", dict(compression="zstd", use_dictionary=False)
  pyarrow.parquet.write_table(table, path, row_group_size=count, **options)
  assert sum(1 for _ in readers.rows(path, ".parquet")) == count


def test_columns_may_be_nested_and_numbers_become_text(folder):
  rows = [
    {"chat": [{"text": "one?"}], "gold": {"value": 1}, "a.b": "deep"},
    {"chat": [{"text": "two?"}], "gold": {"value": 2.5}, "a.b": "flat"},
    {"chat": [{"text": "three?"}], "gold": {"value": 3.0}, "a.b": "flat"},
  ]
  columns = dict(question="chat.0.text", answer="gold.value", domain="a.b", difficulty="gold.value")
  examples, _ = load(folder, rows, columns=columns)
  assert [e["question"] for e in examples] == ["one?", "two?", "three?"]
  assert [e["reference"] for e in examples] == ["1", "2.5", "3"]
  assert [e["domain"] for e in examples] == ["deep", "flat", "flat"]
  assert examples[0]["difficulty"] == "own/1"
  with pytest.raises(ValueError, match="no column 'chat.1.text' for the question"):
    load(folder, rows, columns=columns | {"question": "chat.1.text"})


def test_only_training_questions_are_deduplicated(folder):
  rows = [GOOD, GOOD | {"question": " q?  "}, GOOD | {"answer": "2"}, GOOD | {"question": "r?"}]
  examples, left_out = load(folder, rows)
  assert [e["question"] for e in examples] == ["q?", "r?"]
  assert left_out == {"repeated": 1, "repeated with another answer": 1}
  examples, left_out = load(folder, rows, split="test")
  assert len(examples) == 4 and left_out == {}


def test_examples_have_the_order_of_the_file(folder):
  rows = [GOOD | {"question": f"{i}?"} for i in range(3000)]  # several read batches
  examples, _ = load(folder, rows)
  assert [e["question"] for e in examples] == [row["question"] for row in rows]


def test_changed_content_or_columns_make_another_dataset(folder):
  other = [GOOD | {"answer": "2", "n": "3"}]
  assert load(folder, [GOOD])[0][0]["reference"] == "1"
  assert load(folder, other)[0][0]["reference"] == "2"
  assert load(folder, other, columns={"answer": "n"})[0][0]["reference"] == "3"
  before = {path: path.stat().st_mtime_ns for path in (folder / "built").rglob("*.array_record*")}
  load(folder, [GOOD])
  assert before == {p: p.stat().st_mtime_ns for p in (folder / "built").rglob("*.array_record*")}


def test_structured_answers_stay_data(folder):
  row = GOOD | {"answer": {"numbers": [1, 2], "target": 3}}
  examples, _ = load(folder, [row], verifier="countdown")
  assert examples[0]["reference"] == row["answer"]
  assert json.loads(examples[0]["answer"]) == row["answer"]


def test_checksums_are_recorded_and_compared(folder):
  load(folder, [GOOD])
  path = folder / "rows.jsonl"
  actual = hashlib.sha256(path.read_bytes()).hexdigest()
  (built,) = (folder / "built").rglob("1.0.0/metadata.json")
  recorded = json.loads(built.read_text())
  assert recorded["sha256"] == {str(path): actual}
  assert recorded["train"] == {"rows": 1, "kept": 1}
  load(folder, [GOOD], sha256={str(path): actual.upper()})
  with pytest.raises(ValueError, match=f"checksum {actual}, but its definition says 00; it is dam"):
    load(folder, [GOOD], sha256={str(path): "00"})
  (folder / "SHA256SUMS").write_text(f"{'1' * 64}  other.jsonl\n{'2' * 64} *rows.jsonl\n")
  with pytest.raises(ValueError, match="SHA256SUMS says 2222"):
    load(folder, [GOOD])


def test_errors_name_missing_files_and_splits(folder):
  math_500 = sources.find("math_500")
  with pytest.raises(FileNotFoundError, match="needs the file .*/math_500/test.jsonl; download"):
    sources.load(math_500, "test", str(folder))
  with pytest.raises(ValueError, match="dataset math_500 has no train split; it has test"):
    sources.load(math_500, "train", str(folder))
  with pytest.raises(
    ValueError, match="amc_2024 has no known .*; put test.jsonl into FOLDER/amc_2024/"
  ):
    sources.load(sources.find("amc_2024"), "test")
  with pytest.raises(ValueError, match="unknown dataset 'math_50'; did you mean 'math_500'"):
    sources.find("math_50")


@pytest.fixture
def server(folder):
  """The address of a local server of the folder "publisher"."""
  (folder / "publisher").mkdir()
  handler = functools.partial(
    http.server.SimpleHTTPRequestHandler, directory=str(folder / "publisher")
  )
  handler.log_message = lambda *_: None
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()


def test_files_are_downloaded(folder, server):
  for split, question in (("train", "a?"), ("test", "b?")):
    row = {"question": question, "answer": "#### 3"}
    (folder / "publisher" / f"{split}.jsonl").write_text(json.dumps(row))
  gsm8k = dataclasses.replace(sources.find("gsm8k"), name="downloaded", home=server)
  for split, question in (("train", "a?"), ("test", "b?")):
    examples, _ = sources.load(gsm8k, split, data_dir=str(folder / "built"))
    assert [e["question"] for e in examples] == [question]
  wrong = dataclasses.replace(gsm8k, name="wrong", sha256={"test.jsonl": "00"})
  with pytest.raises(ValueError, match="but its definition says 00"):
    sources.load(wrong, "test", data_dir=str(folder / "built"))


def test_a_failed_download_says_where_to_put_the_files(folder, server):
  missing = dataclasses.replace(sources.find("gsm8k"), name="missing", home=server)
  message = "cannot download dataset missing from http.*task.dataset.folder=FOLDER: "
  with pytest.raises(OSError, match=message):
    sources.load(missing, "train", data_dir=str(folder / "built"))


def test_tensorflow_is_never_imported(folder):
  program = """
import sys
from poise_jax.data import sources
from poise_jax.data.sources import readers
source = sources.Source("own", {"train": (sys.argv[1],)}, dict(question="q", answer="a"))
for _ in range(2):  # built, then read back
  examples, _ = sources.load(source, "train", data_dir=sys.argv[2])
assert examples[0]["question"] == "q?", examples
assert not {"tensorflow", "jax", "torch"} & set(sys.modules)
"""
  (folder / "rows.csv").write_text("q,a\nq?,1\n")
  root = pathlib.Path(sources.__file__).parents[3]
  command = [sys.executable, "-c", program, str(folder / "rows.csv"), str(folder / "built")]
  process = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True)
  assert process.returncode == 0, process.stderr.decode()
