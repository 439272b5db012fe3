"""Tasks from datasets: a user's own columns, several sets, no held-out question in training."""

import dataclasses
import json

import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from poise_jax.data import tasks
from poise_jax.data.tasks import dataset
from poise_jax.data.tasks.config import DatasetConfig, OwnConfig, TaskConfig
from poise_jax.errors import UserError

tfds.disable_progress_bar()


@pytest.fixture
def make(tmp_path):
  """make(train_on, test_on, train=rows, test=rows, gsm8k=rows, ...) -> Task."""

  def make(train_on="own", test_on="", hold_out=1, seed=0, train=(), test=(), gsm8k=(), **own):
    own = dict(question="q", answer="a") | own
    for split, rows in (("train", train), ("test", test)):
      if rows:
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        own[split] = str(path)
    (tmp_path / "gsm8k").mkdir(exist_ok=True)
    for split in ("train", "test"):
      rows = [{"question": q, "answer": f"so\n#### {a}"} for q, a in gsm8k]
      (tmp_path / "gsm8k" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folders = (str(tmp_path), str(tmp_path / "built"))
    return dataset.make(
      DatasetConfig(train_on, test_on, *folders, OwnConfig(**own)), hold_out, seed
    )

  return make


ROWS = [{"q": f"{i}?", "a": i, "kind": "xy"[i % 2], "how": f"it is {i}"} for i in range(20)]


def test_columns_become_an_example(make):
  task = make(
    train=ROWS,
    test_on="own",
    test=[{"q": "held?", "a": "7", "kind": "y", "how": "out"}],
    domain="kind",
    worked="how",
    difficulty="kind",
    verifier="numeric",
    options={"absolute": 0.1},
  )
  (example,) = task.test
  assert (example.question, example.answer, example.worked) == ("held?", "7", "out")
  assert (example.domain, example.difficulty) == ("y", "own/y")
  check = example.check
  assert (check.verifier, check.reference, check.options) == ("numeric", "7", {"absolute": 0.1})
  assert len(task.train) == 20 and task.domains == ("x", "y") and task.left_out == {}


CHATS = [
  [("user", "2 + 2?")],
  [("system", "Be brief."), ("user", "2 + 2?")],
  [("user", "Hi"), ("assistant", "Hello"), ("user", "3 + 3?")],
  [("system", "Be brief."), ("user", "2 + 2?")],  # repeated
]


def chat_rows(form):
  chats = [[dict(role=role, content=text) for role, text in chat] for chat in CHATS]
  return [{"chat": form(chat), "a": i // 3} for i, chat in enumerate(chats)]


@pytest.mark.parametrize("form", [lambda chat: chat, json.dumps])
def test_a_column_of_chats_keeps_all_turns(make, form):
  held = [{"chat": form([dict(role="user", content="2 + 2?")]), "a": 0}]
  task = make(train=chat_rows(form), test=held, test_on="own", messages="chat")
  assert [(e.turns, e.question) for e in task.train] == [
    ((("system", "Be brief."),), "2 + 2?"),
    ((("user", "Hi"), ("assistant", "Hello")), "3 + 3?"),
  ]
  assert task.test[0].turns == () and task.test[0].asked == "2 + 2?"
  # A chat is held out or repeated as a whole, not by its last turn.
  assert task.left_out == {"own, train: repeated with another answer": 1, "held out as well": 1}


@pytest.mark.parametrize(
  "chat,message",
  [
    ("2 + 2?", "line 1: the chat in column 'chat' is not a list of turns, nor JSON of one"),
    ([], "must be a list of turns"),
    (None, "must be a list of turns"),
    ({"role": "user", "content": "?"}, "must be a list of turns"),
    (["2 + 2?"], "turn 1, must have a role of system, user, assistant"),
    ([{"role": "human", "content": "?"}], "turn 1, must have a role .* got .*human"),
    ([{"role": "user", "content": [{"type": "text"}]}], "turn 1, must have a content of text"),
    ([{"role": "user", "content": " "}], "turn 1, must have a content of text"),
    (
      [{"role": "user", "content": "?"}, {"role": "system", "content": "!"}],
      "turn 2, is the system's, which must be the first",
    ),
    (
      [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}],
      "turn 2, is the last one and must be the user's",
    ),
    ([{"role": "user", "content": "\ud800?"}], "half of a character"),
  ],
)
def test_a_chat_that_is_none_has_a_file_and_a_line(make, chat, message):
  with pytest.raises(UserError, match=message):
    make(train=[{"chat": chat, "a": 1}, *ROWS], messages="chat")


def test_chats_need_a_chat_template():
  config = ConfigDict(dataclasses.asdict(TaskConfig(name="dataset")))
  config.dataset.own.messages = "chat"
  with pytest.raises(UserError, match="own.messages='chat' .* needs task.chat=True"):
    tasks.make(config, 0)


def test_held_out_rows_depend_on_the_seed_and_are_not_trained_on(make):
  tasks = [make(train=ROWS, hold_out=5, seed=seed) for seed in (0, 0, 1)]
  assert tasks[0] == tasks[1] and tasks[0].test != tasks[2].test
  for task in tasks:
    train, test = ([e.question for e in split] for split in (task.train, task.test))
    assert len(test) == 5 and sorted(train + test) == sorted(row["q"] for row in ROWS)


def test_held_out_and_repeated_questions_are_left_out_and_counted(make):
  gsm8k = [("0?", 0), ("new?", 1), ("held?", 2)]
  task = make(
    train_on="own, gsm8k",
    test_on="own",
    train=[*ROWS[:3], ROWS[0], {"q": " held?", "a": 2}],
    test=[{"q": "held?", "a": 2}],
    gsm8k=gsm8k,
  )
  assert [e.question for e in task.train] == ["0?", "1?", "2?", "new?"]
  assert [e.question for e in task.test] == ["held?"]
  assert task.left_out == {
    "own, train: repeated": 1,
    "held out as well": 2,
    "in another dataset as well": 1,
  }


@pytest.mark.parametrize("hold_out", [0, 20, 21])
def test_holding_out_no_row_or_all_rows_is_an_error(make, hold_out):
  with pytest.raises(ValueError, match=f"task.test={hold_out} must be .* less than the 20"):
    make(train=ROWS, hold_out=hold_out)


def test_unused_files_and_unknown_datasets_are_an_error(make):
  with pytest.raises(ValueError, match="task.dataset.own.test names files, but"):
    make(train=ROWS, test=ROWS)
  with pytest.raises(ValueError, match="set --config.task.dataset.own.train=FILE"):
    make(test_on="own", test=ROWS)
  with pytest.raises(ValueError, match="unknown dataset 'gsm8'; did you mean 'gsm8k'"):
    make(train_on="gsm8")
