"""configs/own_data.py: files, columns and a reward function of the user's own in one command."""

import json
import pathlib

import pytest

from configs import own_data
from poise_jax.data import tasks

ROWS = [{"problem": f"{i} + {i}", "solution": 2 * i, "level": i % 3} for i in range(80)]


def config_of(folder, suffix, **own):
  path = folder / f"rows{suffix}"
  lines = map(json.dumps, ROWS)
  path.write_text("\n".join(lines) if suffix == ".jsonl" else json.dumps(ROWS))
  config = own_data.get_config()
  own = {"train": str(path), "question": "problem", "answer": "solution", **own}
  config.task.dataset.data_dir = str(folder / "built")
  config.task.dataset.own.update(own)
  return config


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_rows_of_a_file_with_all_columns_and_without_the_word_downloading(tmp_path, capsys, suffix):
  source = tmp_path / "rewards.py"
  source.write_text("def close(reference, response, level):\n  return level / 10\n")
  config = config_of(tmp_path, suffix, verifier=f"{source}:close")
  for _ in range(2):  # the second time, it is built already
    task = tasks.make(config.task, config.seed)
    assert (len(task.train), len(task.test)) == (16, 64)
    for example in (*task.train, *task.test):
      row = ROWS[int(example.check.reference) // 2]
      assert example.check.row == row and example.question == row["problem"]
      assert example.check.verifier == f"{source}:close"
  printed = capsys.readouterr()
  assert "ownload" not in printed.out + printed.err


def test_a_file_that_is_not_named(tmp_path):
  config = own_data.get_config()
  with pytest.raises(ValueError, match="set --config.task.dataset.own.train=FILE"):
    tasks.make(config.task, 0)
  config = config_of(tmp_path, ".jsonl")
  config.task.dataset.test_on = "own"
  with pytest.raises(ValueError, match="set --config.task.dataset.own.test=FILE"):
    tasks.make(config.task, 0)
  assert pathlib.Path(config.task.dataset.own.train).exists()
