"""From the answer of a row to a reference: missing values, numbers, several answers, JSON text."""

import datetime
import json
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from poise_jax.data import sources
from poise_jax.errors import UserError
from poise_jax.verifiers import Check, verify

tfds.disable_progress_bar()


def load(folder, rows, verifier="math", **fields):
  """The examples of a user's own file: JSONL from a text or from rows, parquet from a table."""
  path = folder / ("rows.parquet" if isinstance(rows, pyarrow.Table) else "rows.jsonl")
  if isinstance(rows, pyarrow.Table):
    pyarrow.parquet.write_table(rows, path)
  else:
    path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows))
  columns = dict(question="question", answer="answer") | fields.pop("columns", {})
  source = sources.Source("own", {"train": (str(path),)}, columns, verifier=verifier, **fields)
  return sources.load(source, "train", data_dir=str(folder / "built"))[0]


def references(folder, answers, verifier="math", **fields):
  """The references that a column of answers becomes."""
  if isinstance(answers, pyarrow.Array):
    questions = pyarrow.array([f"q{i}" for i in range(len(answers))])
    rows = pyarrow.table({"question": questions, "answer": answers})
  else:
    rows = [{"question": f"q{i}", "answer": answer} for i, answer in enumerate(answers)]
  return [example["reference"] for example in load(folder, rows, verifier, **fields)]


@pytest.mark.parametrize("kind", [pyarrow.float32(), pyarrow.float16(), pyarrow.float64()])
def test_floats_are_as_they_were_written(tmp_path, kind):
  answers = pyarrow.array([0.1, 2.5, -7.25, 3.0, 0.7], pyarrow.float64()).cast(kind)
  assert references(tmp_path, answers) == ["0.1", "2.5", "-7.25", "3", "0.7"]


def test_floats_inside_other_types(tmp_path):
  kind = pyarrow.struct(
    {"a": pyarrow.list_(pyarrow.float32()), "m": pyarrow.map_(pyarrow.string(), pyarrow.float32())}
  )
  answers = pyarrow.array([{"a": [0.1, None, 0.3], "m": [("k", 0.7)]}, {"a": None}], kind)
  expected = [{"a": [0.1, None, 0.3], "m": [["k", 0.7]]}, {"a": None, "m": None}]
  assert references(tmp_path, answers, "structure") == expected


@pytest.mark.parametrize(
  "digits,text", [("12.50", "12.5"), ("8.00", "8"), ("-0.07", "-0.07"), ("1200", "1200")]
)
def test_a_decimal_is_a_number(tmp_path, digits, text):
  answers = pyarrow.array([Decimal(digits)], pyarrow.decimal128(12, 2))
  assert references(tmp_path, answers) == [text]
  (reference,) = references(tmp_path, answers, "structure")
  assert reference == float(text) and type(reference) in (int, float)
  (reference,) = references(tmp_path, answers, "numeric")
  assert verify(Check("numeric", reference), f"Answer: {text}").score == 1


@pytest.mark.parametrize("answer", ["NaN", "Infinity", "-Infinity", "null", '""', '" "', "1e999"])
@pytest.mark.parametrize("verifier", ["math", "numeric", "structure", "user_rewards:half"])
def test_a_missing_answer(tmp_path, answer, verifier):
  rows = f'{{"question": "q?", "answer": 1}}\n{{"question": "r?", "answer": {answer}}}\n'
  with pytest.raises(
    UserError, match="rows.jsonl, line 2: the answer in column 'answer' is missing"
  ):
    load(tmp_path, rows, verifier)


@pytest.mark.parametrize(
  "values,kind",
  [
    ([1.0, float("nan")], pyarrow.float32()),
    ([1.0, float("inf")], pyarrow.float64()),
    ([Decimal("1.5"), None], pyarrow.decimal128(5, 2)),
    (["1", None], pyarrow.string()),
  ],
)
def test_a_missing_answer_in_parquet(tmp_path, values, kind):
  with pytest.raises(UserError, match="rows.parquet, row 2: the answer .* is missing"):
    references(tmp_path, pyarrow.array(values, kind))


def test_missing_values_of_optional_columns(tmp_path):
  nan = float("nan")
  table = pyarrow.table({"question": ["q?"], "answer": [5.0], "level": [nan], "id": [nan]})
  columns = {"difficulty": "level", "id": "id"}
  (example,) = load(tmp_path, table, columns=columns)
  assert (example["difficulty"], example["answer"]) == ("own", "5")


def test_exact_takes_several_references(tmp_path):
  answers = [["eight", "8"], "eight", [8, 8.5], 8]
  found = references(tmp_path, answers, "exact")
  assert found == [["eight", "8"], "eight", ["8", "8.5"], "8"]
  for answer in ("Answer: eight", r"\boxed{8}"):
    assert verify(Check("exact", found[0]), answer).score == 1
  assert verify(Check("exact", found[0]), "Answer: nine").score == 0
  lists = pyarrow.array([["a", "b"]], pyarrow.list_(pyarrow.string()))
  assert references(tmp_path, lists, "exact") == [["a", "b"]]


CALL = {"name": "now", "arguments": {"zone": 1}}


@pytest.mark.parametrize(
  "verifier,reference",
  [
    ("tool_call", [CALL]),
    ("tool_call", CALL | {"arguments": json.dumps(CALL["arguments"])}),
    ("tool_call", []),
    ("code", {"inputs": ["1\n2"], "outputs": ["3"], "fn_name": "f"}),
    ("constraints", [{"kind": "no_commas"}]),
    ("countdown", {"numbers": [3, 4], "target": 12}),
  ],
)
def test_references_that_are_data_may_be_json_text(tmp_path, verifier, reference):
  rows = [reference, json.dumps(reference)]
  assert references(tmp_path, rows, verifier) == [reference, reference]


def test_a_users_function_takes_any_reference(tmp_path):
  answers = [{"a": [1, None]}, ["x"], "y", 2.5, [{"b": True}]]
  expected = [{"a": [1, None]}, ["x"], "y", "2.5", [{"b": True}]]
  assert references(tmp_path, answers, "user_rewards:half") == expected


@pytest.mark.parametrize(
  "verifier,answer,message",
  [
    ("math", "$ $", "reference of verifier math is empty"),
    ("choice", "E2", "must be one of A"),
    ("choice", "b", "must be one of A"),
    ("exact", [], "is missing"),
    ("exact", ["a", ["b"]], "must be text or a number for verifier 'exact'"),
    ("exact", [True], "must be text or a number"),
    ("exact", {"a": 1}, "must be text or a number"),
    ("numeric", "twelve", "must be a number, got 'twelve'"),
    ("last_integer", "12.5", "must be a whole number in plain digits"),
    ("last_integer", "1,200", "whole number in plain digits"),
    ("last_integer", "012", "whole number in plain digits"),
    ("countdown", "12", "must be {"),
    ("countdown", {"numbers": [3, 4]}, "must be {"),
    ("countdown", {"numbers": ["3", "4"], "target": 7}, "must be {"),
    ("countdown", {"numbers": [3, 4], "target": "7"}, "must be {"),
    ("countdown", {"numbers": [], "target": 7}, "must be {"),
    ("constraints", [], "at least one constraint"),
    ("constraints", [{"kind": "wrods", "at_least": 2}], "did you mean 'words'"),
    ("constraints", [{"kind": "words", "at_least": 9, "at_most": 2}], "no count is at least 9"),
    ("constraints", [{"kind": "words", "exactly": -1}], "no count is at least 0 and at most -1"),
    ("constraints", [{"kind": "words", "at_least": "two"}], "malformed"),
    ("constraints", [{"kind": "json", "keys": "name"}], "keys must be a list"),
    ("constraints", [{"kind": "one_of", "texts": "yes"}], "texts must be a list"),
    ("constraints", [{"kind": "starts_with", "text": 5}], "malformed"),
    ("constraints", [{"kind": "matches", "pattern": "("}], "malformed"),
    ("constraints", "no commas", "cannot be used"),
    ("constraints", {"kind": "no_commas"}, "malformed"),
    ("tool_call", CALL | {"arguments": "zone=1"}, "malformed"),
    ("tool_call", "now()", "cannot be used"),
    ("code", {"inputs": ["1"], "outputs": ["two"], "fn_name": "f"}, "output 1 'two'"),
    ("code", {"tests": ["assert f(1"]}, "not Python"),
    ("code", "assert f(1)", "cannot be used"),
    ("reasoning_gym", {"dataset": "chain_sum"}, "needs a dataset and an entry"),
    ("reasoning_gym", {"dataset": "sums", "entry": {"answer": "1"}}, "no generator 'sums'"),
  ],
)
def test_a_reference_that_no_response_matches_is_an_error(tmp_path, verifier, answer, message):
  with pytest.raises(UserError) as error:
    references(tmp_path, [answer], verifier)
  assert "rows.jsonl, line 1: the answer in column 'answer'" in str(error.value)
  assert message in str(error.value)


def test_options_that_the_verifier_does_not_have(tmp_path):
  with pytest.raises(UserError, match="line 1.*options of verifier exact: .*'ignore_cases'"):
    references(tmp_path, ["a"], "exact", options={"ignore_cases": True})
  with pytest.raises(UserError, match="line 1.*unknown extract 'box'"):
    references(tmp_path, ["a"], "exact", options={"extract": "box"})
  with pytest.raises(UserError, match="line 1.*tolerances of verifier numeric must be at least 0"):
    references(tmp_path, [5], "numeric", options={"relative": -0.1})


def test_values_that_are_no_data(tmp_path):
  days = pyarrow.array([datetime.date(2020, 1, 2)])
  for verifier in ("math", "structure", "user_rewards:half"):
    with pytest.raises(UserError, match=r"row 1: the answer .*, got datetime.date\(2020, 1, 2\)"):
      references(tmp_path, days, verifier)


@pytest.mark.parametrize("column", ["question", "answer", "worked", "domain", "level"])
def test_half_a_character_has_a_file_and_a_line(tmp_path, column):
  row = {"question": "q?", "answer": "1", "worked": "w", "domain": "d", "level": "easy"}
  rows = json.dumps(row) + "\n" + json.dumps(row | {column: "cut \ud83d"}) + "\n"
  columns = {"worked": "worked", "domain": "domain", "difficulty": "level"}
  name = columns.get(column, "difficulty" if column == "level" else column)
  with pytest.raises(UserError, match=rf"rows.jsonl, line 2: the {name} contains \\ud83d, half of"):
    load(tmp_path, rows, columns=columns)
  whole = load(tmp_path, [row | {column: "whole \U0001f600"}], columns=columns)
  assert "\U0001f600" in json.dumps(whole, ensure_ascii=False)


def test_half_a_character_in_data(tmp_path):
  with pytest.raises(UserError, match=r"line 1: the answer contains \\udc00"):
    references(tmp_path, [[["a", {"b\udc00": 1}]]], "structure")


@pytest.mark.parametrize("answer", ["9" * 5000, "[" * 100_000 + "]" * 100_000])
def test_json_that_python_cannot_read(tmp_path, answer):
  rows = f'{{"question": "q?", "answer": 1}}\n{{"question": "r?", "answer": {answer}}}\n'
  with pytest.raises(UserError, match="rows.jsonl, line 2 cannot be read"):
    load(tmp_path, rows)


def test_text_that_is_not_utf_8_in_parquet(tmp_path):
  column = pyarrow.StringArray.from_buffers(
    1, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")
  )
  with pytest.raises(UserError, match="rows.parquet, row 1.* is not UTF-8"):
    load(tmp_path, pyarrow.table({"question": column, "answer": ["1"]}))
