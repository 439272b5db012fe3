"""Building a dataset: what is refused, with file and line; what is counted; fetched files and
checksums; and that TensorFlow is never needed."""

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

from poise_jax.data import sources as datasets

tfds.disable_progress_bar()
GOOD = {"question": "q?", "answer": "1"}


@pytest.fixture
def folder(tmp_path):
  """A place for files and what is built of them."""
  return tmp_path


def load(folder, content, file="rows.jsonl", split="train", **fields):
  """Builds a user's own dataset of one file; content is text, bytes, or rows of JSONL."""
  path = folder / file
  if isinstance(content, list):
    content = "".join(json.dumps(row) + "\n" for row in content)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  columns = dict(question="question", answer="answer") | fields.pop("columns", {})
  source = datasets.Source("own", {split: (str(path),)}, columns, **fields)
  return datasets.load(source, split, data_dir=str(folder / "built"))


@pytest.mark.parametrize(
  "content,file,message",
  [
    ('{"question": "q?", "answer": "1"}\n\n{"question": "a\n', "rows.jsonl", r"line 3 is not JSON"),
    (b'{"question": "q?", "answer": 1}\n{"question": "\xff"}', "rows.jsonl", "line 2 is not UTF-8"),
    ('{"question": "q?", "answer": "1"}\n["q?", "1"]\n', "rows.jsonl", "line 2: a row is an obj"),
    ("[{}, ]", "rows.json", r"rows.json, line 1, column \d is not JSON"),
    ('{"a": 1}\n{"a": 2}', "rows.json", "line 2.*Extra data; one object a line is called .jsonl"),
    ('{"rows": []}', "rows.json", "rows.json holds no list of rows"),
    ("question,answer\nq?,1\nq,?,2\n", "rows.csv", "line 3 has not as many fields as the 2"),
    ("question,answer\nq?\n", "rows.csv", "line 2 has not as many fields"),
    ('question,answer\n"q"?,1\n', "rows.csv", "line 2 is not CSV"),
    (b"question,answer\nq\xff,1\n", "rows.csv", "line 2 is not UTF-8"),
    (b"PAR1 and then nothing", "rows.parquet", "rows.parquet is broken or no parquet file"),
    ("question\tanswer", "rows.tsv", r"'.tsv'; readable are .jsonl, .json, .csv, .parquet"),
    ("", "rows.jsonl", "the train split of own is empty: .*rows.jsonl held no row"),
    ("[]", "rows.json", "train split of own is empty"),
    ("question,answer\n", "rows.csv", "train split of own is empty"),
  ],
)
def test_broken_files_are_named_with_the_line(folder, content, file, message):
  with pytest.raises(ValueError, match=message):
    load(folder, content, file)
  assert not list((folder / "built").rglob("*.array_record*"))  # nothing half built is left


@pytest.mark.parametrize(
  "row,message",
  [
    ({"prompt": "q?", "answer": "1"}, "line 2 has no column 'question' for the question; its "),
    ({"question": "q?"}, "line 2 has no column 'answer' for the answer; its columns are question"),
    ({"question": 5, "answer": "1"}, "line 2: the question in column 'question' is 5, a int where"),
    ({"question": ["q"], "answer": "1"}, r"line 2: the question .* is \['q'\], a list"),
    ({"question": None, "answer": "1"}, "line 2: the question .* is None"),
    ({"question": " ", "answer": "1"}, "line 2: the question in column 'question' is empty"),
    ({"question": "q?", "answer": None}, "line 2: the answer in column 'answer' is missing"),
    ({"question": "q?", "answer": ""}, "line 2: the answer in column 'answer' is missing"),
    ({"question": "q?", "answer": ["1"]}, r"line 2: the answer .*\['1'\], where verifier 'math'"),
    ({"question": "q?", "answer": True}, "line 2: the answer .* is True, where verifier 'math'"),
  ],
)
def test_bad_rows_are_named_with_the_line(folder, row, message):
  with pytest.raises(ValueError, match=message):
    load(folder, [GOOD, row])


def test_ids_must_differ(folder):
  rows = [GOOD | {"id": i} for i in (7, 8, 7)]
  with pytest.raises(ValueError, match="line 3: the id 7 stands in .*rows.jsonl, line 1 already"):
    load(folder, rows, columns={"id": "id"})


def test_a_column_that_does_not_hold_what_it_should_is_named(folder):
  source = datasets.find("gsm8k")
  with pytest.raises(ValueError, match="line 1: column 'answer' holds no answer: .*'####'"):
    load(folder, [GOOD], columns=source.columns)
  with pytest.raises(ValueError, match="line 1: the domain in column 'kind' is 3, not text"):
    load(folder, [GOOD | {"kind": 3}], columns={"domain": "kind"})


def test_formats_say_the_same(folder):
  rows = [{"question": "a, “b”?", "answer": "1\n2"}, {"question": "c", "answer": "x"}]
  text = 'question,answer\n"a, “b”?","1\n2"\nc,x\n'
  parquet = pyarrow.BufferOutputStream()
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
  seen = [
    load(folder, rows),
    load(folder, json.dumps(rows), "rows.json"),
    load(folder, text, "rows.csv"),
    load(folder, parquet.getvalue().to_pybytes(), "rows.parquet"),
  ]
  assert seen[0] == seen[1] == seen[2] == seen[3]
  assert [e["question"] for e in seen[0][0]] == ["a, “b”?", "c"]


def test_columns_reach_into_fields_and_numbers_become_text(folder):
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


def test_training_questions_are_kept_once_and_held_out_ones_as_they_are(folder):
  rows = [GOOD, GOOD | {"question": " q?  "}, GOOD | {"answer": "2"}, GOOD | {"question": "r?"}]
  examples, left_out = load(folder, rows)
  assert [e["question"] for e in examples] == ["q?", "r?"]
  assert left_out == {"repeated": 1, "repeated with another answer": 1}
  examples, left_out = load(folder, rows, split="test")
  assert len(examples) == 4 and left_out == {}


def test_order_is_the_files_order(folder):
  rows = [GOOD | {"question": f"{i}?"} for i in range(3000)]  # more than are read at once
  examples, _ = load(folder, rows)
  assert [e["question"] for e in examples] == [row["question"] for row in rows]


def test_other_content_or_other_columns_make_another_dataset(folder):
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
  found = hashlib.sha256(path.read_bytes()).hexdigest()
  (built,) = (folder / "built").rglob("1.0.0/metadata.json")
  recorded = json.loads(built.read_text())
  assert recorded["sha256"] == {str(path): found}
  assert recorded["train"] == {"rows": 1, "kept": 1}
  load(folder, [GOOD], sha256={str(path): found.upper()})
  with pytest.raises(ValueError, match=f"checksum {found}, but its definition says 00: it is dam"):
    load(folder, [GOOD], sha256={str(path): "00"})
  (folder / "SHA256SUMS").write_text(f"{'1' * 64}  other.jsonl\n{'2' * 64} *rows.jsonl\n")
  with pytest.raises(ValueError, match="SHA256SUMS says 2222"):
    load(folder, [GOOD])


def test_missing_files_and_splits_are_named(folder):
  math_500 = datasets.find("math_500")
  with pytest.raises(FileNotFoundError, match="needs the file .*/math_500/test.jsonl; fetch it"):
    datasets.load(math_500, "test", str(folder))
  with pytest.raises(ValueError, match="dataset math_500 has no train split; it has test"):
    datasets.load(math_500, "train", str(folder))
  with pytest.raises(ValueError, match="amc_2024 has no known address .*amc_2024/ as test.jsonl"):
    datasets.load(datasets.find("amc_2024"), "test")
  with pytest.raises(ValueError, match="dataset 'math_50' is unknown; did you mean 'math_500'"):
    datasets.find("math_50")


@pytest.fixture
def server(folder):
  """Serves the folder "owner" on this machine; gives its address."""
  (folder / "owner").mkdir()
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder / "owner"))
  handler.log_message = lambda *_: None
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()


def test_files_are_fetched_where_there_is_a_network(folder, server):
  for split, question in (("train", "a?"), ("test", "b?")):
    row = {"question": question, "answer": "#### 3"}
    (folder / "owner" / f"{split}.jsonl").write_text(json.dumps(row))
  gsm8k = dataclasses.replace(datasets.find("gsm8k"), name="fetched", home=server)
  for split, question in (("train", "a?"), ("test", "b?")):
    examples, _ = datasets.load(gsm8k, split, data_dir=str(folder / "built"))
    assert [e["question"] for e in examples] == [question]
  wrong = dataclasses.replace(gsm8k, name="wrong", sha256={"test.jsonl": "00"})
  with pytest.raises(ValueError, match="but its definition says 00"):
    datasets.load(wrong, "test", data_dir=str(folder / "built"))


def test_what_cannot_be_fetched_says_where_to_put_it(folder, server):
  gone = dataclasses.replace(datasets.find("gsm8k"), name="gone", home=server)
  with pytest.raises(OSError, match="cannot fetch dataset gone from http.*task.folder=FOLDER: "):
    datasets.load(gone, "train", data_dir=str(folder / "built"))


def test_tensorflow_is_never_imported(folder):
  program = """
import sys
from poise_jax.data import sources as datasets
source = datasets.Source("own", {"train": (sys.argv[1],)}, dict(question="q", answer="a"))
for _ in range(2):  # built, then read back
  examples, _ = datasets.load(source, "train", data_dir=sys.argv[2])
assert examples[0]["question"] == "q?", examples
assert not {"tensorflow", "jax", "torch"} & set(sys.modules)
"""
  (folder / "rows.csv").write_text("q,a\nq?,1\n")
  root = pathlib.Path(datasets.__file__).parents[3]
  command = [sys.executable, "-c", program, str(folder / "rows.csv"), str(folder / "built")]
  done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True)
  assert done.returncode == 0, done.stderr.decode()
