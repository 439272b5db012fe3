"""The workdir of a run: which configs it accepts, and how a run starts again."""

import json

import pytest
from tiny_run import tiny

from poise_jax.training.workdir import open_workdir


@pytest.fixture
def run(tmp_path):
  """A folder with a config, a checkpoint and metrics."""
  folder = tmp_path / "run"
  assert open_workdir(folder, tiny()) == []
  (folder / "checkpoints" / "3").mkdir(parents=True)
  (folder / "metrics.jsonl").write_text("{}\n")
  return folder


def content(folder):
  return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_the_same_config_is_accepted(run):
  before = content(run)
  assert open_workdir(run, tiny()) == []
  assert content(run) == before


def test_another_config_is_an_error_that_lists_the_differences(run):
  before = content(run)
  with pytest.raises(ValueError, match="train.learning_rate: 0.0002 -> 0.5") as error:
    open_workdir(run, tiny(train__learning_rate=0.5))
  assert "rollouts" not in str(error.value)  # only the differences
  assert "--allow_config_change" in str(error.value) and "--overwrite=run" in str(error.value)
  assert content(run) == before


@pytest.mark.parametrize("began", ["", "metrics.jsonl", "checkpoints/0"])
def test_a_run_that_has_not_begun_takes_another_config_and_other_data(tmp_path, began):
  folder = tmp_path / "run"
  open_workdir(folder, tiny())
  for name in ("data.json", "metrics.jsonl", "provenance.jsonl"):
    (folder / name).write_text("{}\n" if name == began or name != "metrics.jsonl" else "")
  (folder / began).mkdir(parents=True, exist_ok=True) if "/" in began else None
  if began:
    with pytest.raises(ValueError, match="seed: 2 -> 1"):
      open_workdir(folder, tiny(seed=1))
  else:
    assert open_workdir(folder, tiny(seed=1)) == []
    assert json.loads((folder / "config.json").read_text())["seed"] == 1
  assert (folder / "data.json").exists() == bool(began)
  assert (folder / "provenance.jsonl").exists()


def test_an_allowed_change_is_returned_and_not_written_yet(run):
  before = content(run)
  assert open_workdir(run, tiny(steps=9, seed=1), allow_config_change=True) == [
    "seed: 2 -> 1",
    "steps: 3 -> 9",
  ]
  assert content(run) == before


def test_overwrite_needs_the_name_of_the_folder(run):
  before = content(run)
  for name in ("yes", "runs", str(run)):
    with pytest.raises(ValueError, match="is not the name of .*--overwrite=run") as error:
      open_workdir(run, tiny(), overwrite=name)
    assert name in str(error.value)
  assert content(run) == before
  assert open_workdir(run, tiny(seed=1), overwrite="run") == []
  assert [path.name for path in run.iterdir()] == ["config.json"]
  assert json.loads((run / "config.json").read_text())["seed"] == 1


def test_a_folder_that_holds_no_run_is_never_overwritten(tmp_path):
  (tmp_path / "thesis.tex").write_text("years of work")
  for overwrite in ("", tmp_path.name):
    with pytest.raises(ValueError, match="is not empty and holds no run"):
      open_workdir(tmp_path, tiny(), overwrite=overwrite)
  assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_accepted(tmp_path):
  (tmp_path / "config.partial").write_text('{"see')  # by a process killed while it wrote
  assert open_workdir(tmp_path, tiny()) == []
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_damaged_config_is_an_error(run):
  (run / "config.json").write_text('{"see')
  with pytest.raises(ValueError, match="config.json is not valid JSON"):
    open_workdir(run, tiny())
  with pytest.raises(ValueError, match="is not valid JSON .*--overwrite=run"):
    open_workdir(run, tiny(), allow_config_change=True)
  assert open_workdir(run, tiny(), overwrite="run") == []
