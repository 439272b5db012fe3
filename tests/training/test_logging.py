"""The sinks of a run's metrics: what they hold after a run that was interrupted and resumed."""

import collections
import io
import json
import struct
import sys
import time

import pytest
import rich.console
from ml_collections import ConfigDict
from tensorboardX.proto.event_pb2 import Event

from poise_jax.training import logging


def config(loggers=(), steps=6, best_by="greedy"):
  return ConfigDict(
    dict(
      algorithm="poise",
      seed=0,
      steps=steps,
      rollouts=4,
      log_samples=1,
      rollout=dict(n=1),
      model=dict(source=""),
      train=dict(max_grad_norm=1.0),
      loggers=loggers,
      eval=dict(best_by=best_by),
    )
  )


def open_logger(folder, start, loggers=(), steps=6):
  (folder / "config.json").write_text(config(loggers, steps).to_json())
  return logging.Logger(folder, config(loggers, steps), start, time.perf_counter())


def log(logger, steps):
  for step in steps:
    logger.samples([sample(step), sample(step)])
    logger.log(step, {"reward/mean": step / 10, "probe/mae": float("nan")})


def sample(step):
  numbers = dict(reward=1.0, baseline=0.5, advantage=0.5)
  return dict(step=step, question="?", answer="!", difficulty="1", response="é\ud800", **numbers)


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_step_is_twice_in_the_files_of_a_resumed_run(tmp_path):
  with open_logger(tmp_path, 0) as logger:
    log(logger, range(4))
  before = rows(tmp_path / "metrics.jsonl")
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "reward/me')
  with open_logger(tmp_path, 2) as logger:
    assert rows(tmp_path / "metrics.jsonl") == before[:3]
    log(logger, range(3, 6))
  written = rows(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in written] == list(range(6))
  assert [row["reward/mean"] for row in written] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
  assert not any("probe/mae" in row for row in written)  # was not measured
  steps = [row["step"] for row in rows(tmp_path / "samples.jsonl")]
  assert steps == [step for step in range(6) for _ in range(2)]


def test_a_run_without_a_checkpoint_starts_again_with_step_0(tmp_path):
  for _ in range(2):
    with open_logger(tmp_path, -1) as logger:
      log(logger, range(2))
  assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [0, 1]
  assert len(rows(tmp_path / "samples.jsonl")) == 4


def test_tensorboard_shows_every_step_once(tmp_path):
  for start, steps in ((0, range(4)), (2, range(3, 6))):
    with open_logger(tmp_path, start, ["tensorboard"]) as logger:
      log(logger, steps)
    time.sleep(1.1)  # the files' names have seconds in them
  counts = {}
  for path in sorted((tmp_path / "tensorboard").iterdir()):
    for event in events(path):
      if event.HasField("session_log"):  # TensorBoard replaces the steps from here on
        counts = {step: count for step, count in counts.items() if step < event.step}
      for value in event.summary.value:
        if value.tag == "reward/mean":
          assert value.simple_value == pytest.approx(event.step / 10)
          counts[event.step] = counts.get(event.step, 0) + 1
  assert counts == dict.fromkeys(range(6), 1)


def events(path):
  """The records of an event file. Each has a length, its checksum, a message and its checksum."""
  data, offset = path.read_bytes(), 0
  while offset < len(data):
    (length,) = struct.unpack_from("<Q", data, offset)
    yield Event.FromString(data[offset + 12 : offset + 12 + length])
    offset += 16 + length


def test_wandb_offline_gets_every_step_once_under_one_id(tmp_path, monkeypatch):
  pytest.importorskip("wandb", reason="python -m pip install wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  monkeypatch.setenv("WANDB_PROJECT", "probes")
  for start, steps in ((0, range(4)), (2, range(3, 6))):
    with open_logger(tmp_path, start, ["wandb"]) as logger:
      log(logger, steps)
  sent, ids = collections.Counter(), set()
  for path in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb")):
    for record in wandb_records(path.read_bytes()):
      if record.HasField("run"):
        ids.add((record.run.run_id, record.run.project, record.run.display_name))
      items = {(i.key or "/".join(i.nested_key)): i.value_json for i in record.history.item}
      if "reward/mean" in items:
        assert float(items["reward/mean"]) == int(items["_step"]) / 10
        sent[int(items["_step"])] += 1
  assert sent == dict.fromkeys(range(6), 1)
  stored = json.loads((tmp_path / "wandb.json").read_text())
  assert ids == {(stored["id"], "probes", tmp_path.name)}


def wandb_records(data):
  """The records of an offline run: a LevelDB log, blocks of 32 KiB after a header of 7 bytes."""
  from wandb.proto import wandb_internal_pb2

  offset, record = 7, b""
  while offset + 7 <= len(data):
    rest = 32768 - offset % 32768  # of the block
    if rest < 7:
      offset += rest
      continue
    length, kind = struct.unpack_from("<HB", data, offset + 4)
    record += data[offset + 7 : offset + 7 + length]
    offset += 7 + length
    if kind in (1, 4):  # a whole record, or the last part of one
      yield wandb_internal_pb2.Record.FromString(record)
      record = b""


def test_wandb_that_does_not_start_is_an_error_with_the_way_out(tmp_path, monkeypatch):
  wandb = pytest.importorskip("wandb", reason="python -m pip install wandb")

  def refuse(**_):
    raise wandb.Error("No API key configured")

  monkeypatch.setattr(wandb, "init", refuse)
  with pytest.raises(ValueError, match="No API key configured.*WANDB_MODE=offline"):
    open_logger(tmp_path, 0, ["wandb"])


def test_loggers_are_checked_and_wandb_is_imported_only_if_it_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)  # as if not installed
  logging.check_loggers(("tensorboard",))
  with open_logger(tmp_path, 0, ["tensorboard"]) as logger:
    log(logger, range(1))
  with pytest.raises(ValueError, match="not installed: python -m pip install wandb"):
    logging.check_loggers(("tensorboard", "wandb"))
  with pytest.raises(
    ValueError, match="unknown logger .* 'mlflow'; .*choose from tensorboard, wandb"
  ):
    logging.check_loggers(("mlflow",))


def test_the_time_left_does_not_count_compilation():
  screen = logging.Console(rich.console.Console(file=io.StringIO()), steps=100, start=0)
  assert screen.time_left(0, 1000.0) == ""
  assert screen.time_left(1, 1050.0) == ""  # step 1 includes compilation
  assert screen.time_left(2, 1052.0) == "0:03:16 left"
  assert screen.time_left(3, 1058.0) == "0:06:28 left"  # the mean of 2 and 6 seconds
  assert screen.time_left(100, 1060.0) == ""
  resumed = logging.Console(rich.console.Console(file=io.StringIO()), steps=100, start=50)
  assert resumed.time_left(51, 0.0) == ""
  assert resumed.time_left(52, 10.0) == "0:08:00 left"


def test_the_console_has_a_line_per_step_and_in_a_terminal_a_bar():
  for is_terminal in (False, True):
    out = io.StringIO()
    console = rich.console.Console(
      file=out, force_terminal=is_terminal, width=120, soft_wrap=True, highlight=False
    )
    screen = logging.Console(console, steps=3, start=0)
    screen.phase("warm start", 20, 70)
    screen.progress.refresh()
    screen.phase("evaluating")
    for step in range(4):
      screen.log(step, {"reward/mean": step / 4, "time/step": 1.5})
    screen.close()
    text = out.getvalue()
    assert ("\x1b" in text) == is_terminal
    if is_terminal:
      assert "━" in text and "3/3" in text and "evaluating" in text and "20/70" in text
    else:
      lines = text.splitlines()
      assert len(lines) == 4 and "━" not in text
      assert lines[1] == "step    1/3  reward 0.250  1.5 s"
      assert lines[2].startswith("step    2/3  reward 0.500  1.5 s  0:00:0")
      assert lines[2].endswith("left") and lines[3] == "step    3/3  reward 0.750  1.5 s"


def test_the_console_shows_r_beside_its_ceiling():
  out = io.StringIO()
  screen = logging.Console(rich.console.Console(file=out, width=120), steps=9, start=0)
  r = {"probe/pearson": 0.618}
  for step, values in enumerate([r, {**r, "probe/ceiling": 0.707}, {"probe/ceiling": 0.5}]):
    screen.log(step, {"reward/mean": 0.5, "policy/entropy": 0.25, **values})
  first, second, third = out.getvalue().splitlines()
  assert "reward 0.500  r 0.62  entropy 0.25" in first
  assert "reward 0.500  r 0.62 of 0.71  entropy 0.25" in second
  assert "reward 0.500  entropy 0.25" in third


@pytest.mark.parametrize(
  "best_by,shown", [("greedy", "greedy 0.250"), ("avg@8", "avg@8 0.125"), ("maj@4", "maj@4 0.750")]
)
def test_console_and_report_name_the_accuracy_that_best_goes_by(tmp_path, capsys, best_by, shown):
  (tmp_path / "config.json").write_text(config(best_by=best_by).to_json())
  metrics = {"eval/accuracy": 0.25, "eval/avg_at_8": 0.125, "eval/maj_at_4": 0.75}
  with logging.Logger(tmp_path, config(best_by=best_by), -1, time.perf_counter()) as logger:
    logger.log(0, metrics)
  assert f"held-out {shown}\n" in capsys.readouterr().out
  name, value = shown.split()
  page = (tmp_path / "report.html").read_text()
  assert f"<b>{value}</b><span>held-out accuracy, {name}</span>" in page


def test_the_report_is_written_at_evaluations_and_at_the_end(tmp_path):
  page = tmp_path / "report.html"
  with pytest.raises(KeyboardInterrupt):
    with open_logger(tmp_path, 0) as logger:
      logger.log(0, {"eval/accuracy": 0.25})
      first = page.read_text()
      logger.log(1, {"reward/mean": 0.625})
      assert page.read_text() == first
      raise KeyboardInterrupt
  assert "0.250" in first and "0.625" not in first
  assert "0.625" in page.read_text()


def test_a_report_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys):
  def fail(_):
    raise RuntimeError("[no] ink")

  monkeypatch.setattr(logging.run, "write", fail)
  with open_logger(tmp_path, 0) as logger:
    logger.log(0, {"eval/accuracy": 0.25})
    logger.log(1, {"reward/mean": 0.5})
  assert "report.html could not be written (RuntimeError: [no] ink)" in capsys.readouterr().out
  assert len(rows(tmp_path / "metrics.jsonl")) == 2


def test_a_warning_is_printed_once_and_is_in_metrics_and_report(tmp_path, capsys):
  metrics = {"reward/mean": 0.0, "reward/std": 0.0, "eval/accuracy": 0.0}
  for start, steps in ((-1, range(7)), (6, range(7, 9))):  # the second time, it is resumed
    with open_logger(tmp_path, start, steps=8) as logger:
      for step in steps:
        logger.log(step, metrics)
  printed = " ".join(capsys.readouterr().out.split())
  assert printed.count("warning:") == 1
  assert "step 5: warning: all responses of 5 steps earn the same, 0," in printed
  marked = [row["step"] for row in rows(tmp_path / "metrics.jsonl") if "warn/equal_rewards" in row]
  assert marked == [5, 6, 7, 8]
  page = (tmp_path / "report.html").read_text()
  assert page.count("<li>step 5: all responses of 5 steps earn the same, 0,") == 1


def test_the_console_line_has_the_shares_of_lost_responses(tmp_path, capsys):
  with open_logger(tmp_path, 0) as logger:
    logger.log(1, {"rollout/truncated_fraction": 0.874, "verifier/unparsable_fraction": 1.0})
  assert "truncated 87%  unparsable 100%" in capsys.readouterr().out
