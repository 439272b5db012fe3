"""Checkpoints: which ones are kept, what a resumed run restores, other meshes, damaged files.

Run as a script, this file trains on fake devices.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import STEPS, lines, tiny

from experiments.run_differences import differences
from poise_jax import models
from poise_jax.models.io import run_checkpoint
from poise_jax.training import loop
from poise_jax.training.checkpoints import DAMAGED, Checkpoints
from poise_jax.training.logging import Logger
from poise_jax.types import TrainState

ROOT = pathlib.Path(__file__).parents[2]


def train_with_a_stop(config, folder, monkeypatch, stop):
  """Trains with an interruption in step `stop`, between its samples and its metrics; resumes."""

  def stop_there(self, step, metrics):
    if step == stop:
      raise KeyboardInterrupt
    log(self, step, metrics)

  log = Logger.log
  with monkeypatch.context() as patch:
    patch.setattr(Logger, "log", stop_there)
    with pytest.raises(KeyboardInterrupt):
      loop.train(config, str(folder))
  assert run_checkpoint.steps_of(folder)[-1] == stop - 1
  with (folder / "metrics.jsonl").open("a") as file:
    file.write('{"step": 3, "reward/me')  # as a killed process leaves it
  assert lines(folder / "samples.jsonl")[-1]["step"] == stop
  loop.train(config, str(folder))


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(finished_run, tmp_path, monkeypatch):
  folder = tmp_path / "run"
  train_with_a_stop(tiny(profile_steps=(2, 2)), folder, monkeypatch, stop=2)
  assert differences(folder, finished_run) == ["checkpoint: config"]
  assert list((folder / "profile").rglob("*.trace.json.gz"))
  elapsed = [row["time/elapsed"] for row in lines(folder / "metrics.jsonl")]
  assert elapsed == sorted(elapsed)  # the clock continues
  starts = lines(folder / "provenance.jsonl")
  assert [(row["step"], row["config_changes"]) for row in starts] == [(0, []), (1, [])]


@pytest.mark.parametrize("algorithm", ["dapo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_critics_and_carried_over_groups_resume_bit_for_bit(tmp_path, monkeypatch, algorithm):
  """With verdicts by the length of a text, groups are mixed often enough to be carried over."""
  changes = dict(verifier__function="user_rewards:odd", warm_start__steps=0)
  changes |= dict(rollout__n=2 if algorithm == "dapo" else 1)
  changes |= dict(seed=0)  # with this seed step 2 has surplus groups
  changes |= dict(eval_every=3, rollouts=8, collect__max_generations=4)
  uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
  loop.train(tiny(algorithm, **changes), str(uninterrupted))
  rows = lines(uninterrupted / "metrics.jsonl")[1:]
  if algorithm == "dapo":
    assert [row["collect/groups"] for row in rows] == [4] * STEPS
    assert rows[1]["collect/carried_out"] > 0 < rows[2]["collect/carried_in"]
    assert rows[2]["collect/generated_total"] == sum(row["collect/generated"] for row in rows)
    tokens = [sum(row[f"{part}/tokens"] for row in rows) for part in ("rollout", "collect")]
    assert tokens[0] < tokens[1] <= rows[2]["collect/generated_total"] * 10
  else:
    assert all("critic/explained_variance" in row for row in rows)
  train_with_a_stop(tiny(algorithm, **changes), resumed, monkeypatch, stop=3)
  assert differences(resumed, uninterrupted) == []


def test_differences_between_runs_are_named(finished_run, run_copy):
  """The comparison that the tests above rely on."""
  (run_copy / "answers" / "step_2.jsonl").unlink()
  file = run_copy / "metrics.jsonl"
  file.write_text(file.read_text().replace('"rollout/tokens": ', '"rollout/tokens": 1', 1))
  shutil.rmtree(run_copy / "checkpoints" / str(STEPS))
  names = differences(run_copy, finished_run)
  assert names[:3] == ["metrics.jsonl", "answers/step_2.jsonl", "checkpoint: step"]
  assert "checkpoint: params['embed_tokens']['embedding']" in names


def test_a_finished_run_returns_at_once_and_continues_with_more_steps(
  finished_run, run_copy, capsys
):
  before = {path: path.read_bytes() for path in finished_run.rglob("*.json*")}
  loop.train(tiny(), str(finished_run))
  assert "has finished all 3 steps; nothing to do" in capsys.readouterr().out
  assert before == {path: path.read_bytes() for path in finished_run.rglob("*.json*")}

  loop.train(tiny(steps=4), str(run_copy), allow_config_change=True)
  assert "after step 3 with steps: 3 -> 4" in " ".join(capsys.readouterr().out.split())
  rows = lines(run_copy / "metrics.jsonl")
  assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
  assert rows[:4] == lines(finished_run / "metrics.jsonl")
  assert json.loads((run_copy / "config.json").read_text())["steps"] == 4
  assert lines(run_copy / "provenance.jsonl")[-1]["config_changes"] == ["steps: 3 -> 4"]


def test_resuming_loads_no_weights_of_the_source(finished_run, tmp_path, monkeypatch):
  changes = dict(model__source=str(finished_run), warm_start__steps=0)
  loop.train(tiny(steps=1, **changes), str(tmp_path / "run"))

  def fail(*_):
    raise AssertionError("loaded initial weights")

  monkeypatch.setattr(loop, "initial_params", fail)
  loop.train(tiny(steps=2, **changes), str(tmp_path / "run"), allow_config_change=True)
  assert [row["step"] for row in lines(tmp_path / "run" / "metrics.jsonl")] == [0, 1, 2]


def test_a_checkpoint_of_another_model_is_an_error_and_stays(run_copy):
  before = (run_copy / "config.json").read_bytes()
  changes = {"model__shape__hidden_size": 64, "steps": 4}
  with pytest.raises(
    ValueError, match=r"belongs to another model .*\(checkpoint: .*32.*, config: .*64.*\)"
  ):
    loop.train(tiny(**changes), str(run_copy), allow_config_change=True)
  assert (run_copy / "config.json").read_bytes() == before
  with pytest.raises(ValueError, match="another model or algorithm.*--workdir"):
    loop.train(tiny("rloo", steps=4), str(run_copy), allow_config_change=True)
  assert run_checkpoint.steps_of(run_copy)[-1] == STEPS and not (run_copy / DAMAGED).exists()


def test_models_load_reads_a_run_and_its_checkpoints(finished_run):
  config, params = models.load(finished_run)
  assert config.hidden_size == 32
  stored = run_checkpoint.read(finished_run / "checkpoints" / str(STEPS), "params", None)
  for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(stored), strict=True):
    np.testing.assert_array_equal(x, y)
  _, before = models.load(finished_run / "checkpoints" / str(STEPS - 1), jnp.bfloat16)
  embedding = before["embed_tokens"]["embedding"]
  assert embedding.dtype == jnp.bfloat16
  assert (np.asarray(embedding, np.float32) != params["embed_tokens"]["embedding"]).any()
  ids = models.load_tokenizer(finished_run).encode("1 + 2")
  assert ids == models.load_tokenizer(finished_run / "tokenizer.model").encode("1 + 2")


# The following tests need no training.


def make_state(value):
  """A small stand-in for the loop's state."""
  zero = jnp.zeros((), jnp.int32)
  params = {"a": {"kernel": jax.random.normal(jax.random.key(value), (100, 100))}}
  state = TrainState(zero + value, params, (jnp.full(7, value, jnp.bfloat16),), zero, zero)
  return state, {"buffer": jnp.arange(5) + value}, (), {"position": np.int64(value)}


def save(workdir, steps, keep_every=0, best=0):
  with Checkpoints(workdir, keep_every) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step), {"best": {"step": min(best, step)}})


def restore(workdir):
  """Restores the newest checkpoint, checks every array, and returns its step."""
  abstract_state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_state(0))
  with Checkpoints(workdir) as checkpoints:
    tree, about = checkpoints.restore(abstract_state)
  expected = make_state(about["step"])
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
  return about["step"]


def test_the_newest_two_the_best_and_every_fourth_checkpoint_are_kept(tmp_path):
  save(tmp_path, range(1, 6), keep_every=4, best=3)
  save(tmp_path, range(6, 11), keep_every=4, best=3)  # a resumed run keeps the same ones
  assert run_checkpoint.steps_of(tmp_path) == [3, 4, 8, 9, 10]


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
  save(tmp_path, [1, 2])
  folder = tmp_path / "checkpoints"
  shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp-17")
  assert restore(tmp_path) == 2
  save(tmp_path, [3])
  assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_with_a_missing_or_truncated_file_a_checkpoint_or_the_one_before_is_restored(
  tmp_path, capfd
):
  save(tmp_path / "whole", [1, 2])
  assert restore(tmp_path / "whole") == 2
  two = tmp_path / "whole" / "checkpoints" / "2"
  outcomes = {}
  for file in sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file()):
    for damage in ("missing", "truncated"):
      broken = pathlib.Path(shutil.copytree(tmp_path / "whole", tmp_path / "broken"))
      path = broken / "checkpoints" / "2" / file
      if damage == "missing":
        path.unlink()
      else:
        os.truncate(path, path.stat().st_size // 2)
      capfd.readouterr()
      restored = restore(broken)
      stderr = capfd.readouterr().err
      if restored == 1:
        warning = f"warning: checkpoint {broken / 'checkpoints' / '2'} is damaged ("
        assert stderr.startswith(warning) and stderr.count("\n") == 1  # no traceback
        assert [p.name for p in (broken / DAMAGED).iterdir()] == ["2"]
        if restored not in outcomes.values():  # once is enough
          save(broken, [2])
          assert restore(broken) == 2  # its place is free for a new one
      else:
        assert "damaged" not in stderr and not (broken / DAMAGED).exists()
      outcomes[str(file), damage] = restored
      shutil.rmtree(broken)
  assert set(outcomes.values()) == {1, 2}
  assert outcomes["params/_METADATA", "missing"] == outcomes["about/metadata", "truncated"] == 1
  large = max((p for p in two.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  for damage in ("missing", "truncated"):
    assert outcomes[str(large.relative_to(two)), damage] == 1


def test_if_no_checkpoint_can_be_read_none_is_moved(tmp_path):
  save(tmp_path, [1, 2])
  for step in ("1", "2"):
    shutil.rmtree(tmp_path / "checkpoints" / step / "params")
  with pytest.raises(OSError, match=f"no checkpoint in .* --overwrite={tmp_path.name}"):
    restore(tmp_path)
  assert run_checkpoint.steps_of(tmp_path) == [1, 2] and not (tmp_path / DAMAGED).exists()


# Other meshes.

DEVICES = dict(
  rollouts=16, eval_batch=16, train__minibatch_size=16, train__microbatch_size=16, reference_every=0
)
DEVICES |= dict(checkpoint_every=2, steps=4, eval_every=4, train__loss__kl_coef=0.0)


def start(devices, *workdirs):
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  flags = os.environ.get("XLA_FLAGS", "")  # none where this file is a script
  env["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
  env["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
  return subprocess.Popen(
    [sys.executable, __file__, *map(str, workdirs)], env=env, cwd=ROOT, stdout=subprocess.PIPE
  )


@pytest.fixture(scope="module")
def run_on_eight(tmp_path_factory):
  """Workdir of a run on 8 devices."""
  workdir = tmp_path_factory.mktemp("eight") / "run"
  assert start(8, workdir).wait(timeout=600) == 0
  return workdir


@pytest.mark.slow  # test_processes.py resumes a run of two processes with one
@pytest.mark.parametrize("devices", [1, 4])
def test_a_run_on_8_devices_continues_on_fewer(run_on_eight, tmp_path, devices):
  """Compares all gradients, through Adam's first moments, but parameters only where the gradient is
  above its noise, as in test_sharding.py: Adam's first steps are as large as the learning rate
  however small the gradient is."""
  folder = shutil.copytree(run_on_eight, tmp_path / "run")
  shutil.rmtree(folder / "checkpoints" / "4")
  assert start(devices, folder).wait(timeout=600) == 0
  start_of_last = lines(folder / "provenance.jsonl")[-1]
  assert len(start_of_last["devices"]) == devices and start_of_last["step"] == 2
  rows = lines(folder / "metrics.jsonl")
  assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
  for row, other in zip(rows, lines(run_on_eight / "metrics.jsonl"), strict=True):
    for name in {*row, *other}:
      # Each device has slots and passes of its own, so these shares depend on their number.
      if not name.startswith("time/") and "/useful_" not in name:
        assert row[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
  compared, expected, actual = 0, arrays(run_on_eight), arrays(folder)
  for name, value in actual.items():
    if "/mu/" in name:
      param = name.rpartition("/mu/")[2]
      np.testing.assert_allclose(value, expected[name], atol=1e-5 * expected["norm"])
      large = np.abs(expected[name]) > 1e-4 * expected["norm"]
      difference = np.abs(actual[f"params/{param}"] - expected[f"params/{param}"])
      assert difference[large].max(initial=0) < 1e-5
      compared += large.sum()
  assert compared > 1000


def arrays(workdir):
  """Path of each array of the newest checkpoint -> the array; "norm" -> norm of the moments mu."""
  checkpoint = run_checkpoint.find(workdir)
  flat = {
    f"{item}/" + jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
    for item in ("params", "rest")
    for path, leaf in jax.tree.leaves_with_path(run_checkpoint.read(checkpoint, item, None))
  }
  moments = [value for name, value in flat.items() if "/mu/" in name]
  return {**flat, "norm": float(np.sqrt(sum((value**2).sum() for value in moments)))}


if __name__ == "__main__":
  loop.train(tiny(**DEVICES), sys.argv[1])
