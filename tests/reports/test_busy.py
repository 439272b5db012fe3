"""The picture of busy rows: its file, its numbers, and runs without it."""

import json

import numpy as np
import pytest
from test_run_report import write_run

from poise_jax.reports import busy, run_log


def picture(folder):
  (card,) = busy.cards(run_log.read(folder))
  return card.title, card.note, str(card.figure.body())


def test_the_newest_step_is_shown(tmp_path):
  folder = write_run(tmp_path / "run")
  busy.write(folder, 6, 4, np.array([4, 4, 4]))
  busy.write(folder, 7, 8, np.array([8, 8, 6, 1, 1]))
  title, note, body = picture(folder)
  assert title == "Rows that draw a token at step 7"
  assert note == "dashed: all 8 slots; 60% are busy on average, over 5 decode steps"
  assert body.count("L") >= 9  # a level for each decode step


@pytest.mark.parametrize("steps", [1, 200, 201, 12_345])
def test_files_are_small_and_keep_the_mean(tmp_path, steps):
  folder = write_run(tmp_path / "run")
  rows = np.random.default_rng(0).integers(0, 512, steps)
  busy.write(folder, 3, 512, rows)
  path = folder / busy.FILE
  assert path.stat().st_size < 4000
  content = json.loads(path.read_text())
  assert content["decode_steps"] == steps and len(content["busy"]) == min(steps, busy.POINTS)
  assert np.mean(content["busy"]) == pytest.approx(rows.mean(), rel=0.01)
  _, note, body = picture(folder)
  assert f"{rows.mean() / 512:.0%} are busy" in note and "nan" not in body


def test_runs_without_decode_steps_have_no_figure(tmp_path):
  folder = write_run(tmp_path / "run")
  assert list(busy.cards(run_log.read(folder))) == []
  busy.write(folder, 1, 8, np.array([], np.int64))
  assert list(busy.cards(run_log.read(folder))) == []
