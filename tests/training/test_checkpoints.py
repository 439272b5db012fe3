"""Checkpoints: what stays, what is read again, on which mesh, and what is said of damaged ones. Run
as a script, this file trains on as many fake devices as it is told."""

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
  """Stopped in step `stop`, after its samples were written and before its metrics were; resumed."""

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


def test_a_resumed_run_equals_a_straight_one_bit_for_bit(straight, tmp_path, monkeypatch):
  folder = tmp_path / "run"
  train_with_a_stop(tiny(profile_steps=(2, 2)), folder, monkeypatch, stop=2)
  assert differences(folder, straight) == ["checkpoint: config"]
  assert list((folder / "profile").rglob("*.trace.json.gz"))
  elapsed = [row["time/elapsed"] for row in lines(folder / "metrics.jsonl")]
  assert elapsed == sorted(elapsed)  # the clock goes on where it was
  starts = lines(folder / "provenance.jsonl")
  assert [(row["step"], row["config_changes"]) for row in starts] == [(0, []), (1, [])]


@pytest.mark.parametrize("algorithm", ["dapo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_critics_and_carried_over_groups_resume_bit_for_bit(tmp_path, monkeypatch, algorithm):
  """Verdicts by the length of a text: groups differ often enough to be carried over."""
  changes = dict(verifier__function="user_rewards:odd", warm_start__steps=0)
  changes |= dict(rollout__n=2 if algorithm == "dapo" else 1)
  changes |= dict(seed=0)  # of which step 2 has groups left over
  changes |= dict(eval_every=3, rollouts=8, collect__max_generations=4)
  straight, resumed = tmp_path / "straight", tmp_path / "resumed"
  loop.train(tiny(algorithm, **changes), str(straight))
  rows = lines(straight / "metrics.jsonl")[1:]
  if algorithm == "dapo":
    assert [row["collect/groups"] for row in rows] == [4] * STEPS
    assert rows[1]["collect/carried_out"] > 0 < rows[2]["collect/carried_in"]
    assert rows[2]["collect/generated_total"] == sum(row["collect/generated"] for row in rows)
    tokens = [sum(row[f"{part}/tokens"] for row in rows) for part in ("rollout", "collect")]
    assert tokens[0] < tokens[1] <= rows[2]["collect/generated_total"] * 10
  else:
    assert all("critic/explained_variance" in row for row in rows)
  train_with_a_stop(tiny(algorithm, **changes), resumed, monkeypatch, stop=3)
  assert differences(resumed, straight) == []


def test_differences_between_runs_are_seen(straight, copy):
  """The comparison that the tests above rely on."""
  (copy / "answers" / "step_2.jsonl").unlink()
  file = copy / "metrics.jsonl"
  file.write_text(file.read_text().replace('"rollout/tokens": ', '"rollout/tokens": 1', 1))
  shutil.rmtree(copy / "checkpoints" / str(STEPS))
  found = differences(copy, straight)
  assert found[:3] == ["metrics.jsonl", "answers/step_2.jsonl", "checkpoint: step"]
  assert "checkpoint: params['embed_tokens']['embedding']" in found


def test_a_finished_run_returns_at_once_and_goes_on_with_more_steps(straight, copy, capsys):
  before = {path: path.read_bytes() for path in straight.rglob("*.json*")}
  loop.train(tiny(), str(straight))
  assert "has finished all 3 steps; nothing to do" in capsys.readouterr().out
  assert before == {path: path.read_bytes() for path in straight.rglob("*.json*")}

  loop.train(tiny(steps=4), str(copy), allow_config_change=True)
  rows = lines(copy / "metrics.jsonl")
  assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
  assert rows[:4] == lines(straight / "metrics.jsonl")
  assert json.loads((copy / "config.json").read_text())["steps"] == 4
  assert lines(copy / "provenance.jsonl")[-1]["config_changes"] == ["steps: 3 -> 4"]


def test_a_checkpoint_of_another_model_is_named_and_left_alone(copy):
  before = (copy / "config.json").read_bytes()
  changes = {"model__shape__hidden_size": 64, "steps": 4}
  with pytest.raises(ValueError, match="is of another model .*32.* there, .*64.* by the config"):
    loop.train(tiny(**changes), str(copy), allow_config_change=True)
  assert (copy / "config.json").read_bytes() == before
  with pytest.raises(ValueError, match="another model or algorithm.*--workdir"):
    loop.train(tiny("rloo", steps=4), str(copy), allow_config_change=True)
  assert run_checkpoint.steps_of(copy)[-1] == STEPS and not (copy / DAMAGED).exists()


def test_models_load_reads_a_run_and_its_checkpoints(straight):
  config, params = models.load(straight)
  assert config.hidden_size == 32
  stored = run_checkpoint.read(straight / "checkpoints" / str(STEPS), "params", None)
  for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(stored), strict=True):
    np.testing.assert_array_equal(x, y)
  _, before = models.load(straight / "checkpoints" / str(STEPS - 1), jnp.bfloat16)
  embedding = before["embed_tokens"]["embedding"]
  assert embedding.dtype == jnp.bfloat16
  assert (np.asarray(embedding, np.float32) != params["embed_tokens"]["embedding"]).any()
  ids = models.load_tokenizer(straight).encode("1 + 2")
  assert ids == models.load_tokenizer(straight / "tokenizer.model").encode("1 + 2")


# The rest needs no training.


def remembered(value):
  """A small stand-in for what the loop remembers."""
  zero = jnp.zeros((), jnp.int32)
  params = {"a": {"kernel": jax.random.normal(jax.random.key(value), (100, 100))}}
  state = TrainState(zero + value, params, (jnp.full(7, value, jnp.bfloat16),), zero, zero)
  return state, {"buffer": jnp.arange(5) + value}, (), {"position": np.int64(value)}


def save(workdir, steps, keep_every=0, best=0):
  with Checkpoints(workdir, keep_every) as checkpoints:
    for step in steps:
      checkpoints.save(step, remembered(step), {"best": {"step": min(best, step)}})


def restore(workdir):
  """The step that was restored, after a look at every array."""
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), remembered(0))
  with Checkpoints(workdir) as checkpoints:
    tree, about = checkpoints.restore(like)
  expected = remembered(about["step"])
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
  return about["step"]


def test_the_newest_two_the_best_and_every_so_many_stay(tmp_path):
  save(tmp_path, range(1, 6), keep_every=4, best=3)
  save(tmp_path, range(6, 11), keep_every=4, best=3)  # a resumed run goes on with the same
  assert run_checkpoint.steps_of(tmp_path) == [3, 4, 8, 9, 10]


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
  save(tmp_path, [1, 2])
  folder = tmp_path / "checkpoints"
  shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp-17")
  assert restore(tmp_path) == 2
  save(tmp_path, [3])
  assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]


def test_any_missing_or_truncated_file_is_harmless_or_leads_to_the_checkpoint_before(
  tmp_path, capfd
):
  save(tmp_path / "whole", [1, 2])
  assert restore(tmp_path / "whole") == 2
  two = tmp_path / "whole" / "checkpoints" / "2"
  outcomes = {}
  for file in sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file()):
    for how in ("missing", "truncated"):
      broken = pathlib.Path(shutil.copytree(tmp_path / "whole", tmp_path / "broken"))
      path = broken / "checkpoints" / "2" / file
      if how == "missing":
        path.unlink()
      else:
        os.truncate(path, path.stat().st_size // 2)
      capfd.readouterr()
      outcomes[str(file), how] = restored = restore(broken)
      said = capfd.readouterr().err
      if restored == 1:
        warning = f"warning: checkpoint {broken / 'checkpoints' / '2'} is damaged ("
        assert said.startswith(warning) and said.count("\n") == 1  # no pages of tracebacks
        assert [p.name for p in (broken / DAMAGED).iterdir()] == ["2"]
        save(broken, [2])
        assert restore(broken) == 2  # its place is free for a new one
      else:
        assert "damaged" not in said and not (broken / DAMAGED).exists()
      shutil.rmtree(broken)
  assert set(outcomes.values()) == {1, 2}
  assert outcomes["params/_METADATA", "missing"] == outcomes["about/metadata", "truncated"] == 1
  large = max((p for p in two.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  for how in ("missing", "truncated"):
    assert outcomes[str(large.relative_to(two)), how] == 1


def test_without_a_whole_checkpoint_nothing_is_moved(tmp_path):
  save(tmp_path, [1, 2])
  for step in ("1", "2"):
    shutil.rmtree(tmp_path / "checkpoints" / step / "params")
  with pytest.raises(OSError, match=f"no checkpoint in .* --overwrite={tmp_path.name}"):
    restore(tmp_path)
  assert run_checkpoint.steps_of(tmp_path) == [1, 2] and not (tmp_path / DAMAGED).exists()


# On other meshes.

DEVICES = dict(
  rollouts=16, eval_batch=16, train__minibatch_size=16, train__microbatch_size=16, reference_every=0
)
DEVICES |= dict(checkpoint_every=2, steps=4, eval_every=4, train__loss__kl_coef=0.0)


def start(devices, *workdirs):
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
  env["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
  return subprocess.Popen(
    [sys.executable, __file__, *map(str, workdirs)], env=env, cwd=ROOT, stdout=subprocess.PIPE
  )


def test_a_run_of_8_devices_goes_on_with_1_and_with_4(tmp_path):
  """Gradients everywhere, parameters where the gradient is above its noise, as in
  test_sharding.py: Adam's first steps are of the size of the learning rate however small it is."""
  eight = tmp_path / "8"
  assert start(8, eight).wait(timeout=600) == 0
  folders = {devices: tmp_path / str(devices) for devices in (1, 4)}
  for folder in folders.values():
    shutil.copytree(eight, folder)
    shutil.rmtree(folder / "checkpoints" / "4")
  processes = {devices: start(devices, folder) for devices, folder in folders.items()}
  assert [process.wait(timeout=600) for process in processes.values()] == [0, 0]
  expected_rows = lines(eight / "metrics.jsonl")
  expected = arrays(eight)
  for devices, folder in folders.items():
    assert len(lines(folder / "provenance.jsonl")[-1]["devices"]) == devices
    assert lines(folder / "provenance.jsonl")[-1]["step"] == 2
    rows = lines(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    for row, other in zip(rows, expected_rows, strict=True):
      for name in {*row, *other}:
        if not name.startswith("time/"):
          assert row[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5), name
    compared, found = 0, arrays(folder)
    for name, value in found.items():
      if "/mu/" in name:
        param = name.rpartition("/mu/")[2]
        np.testing.assert_allclose(value, expected[name], atol=1e-5 * expected["norm"])
        large = np.abs(expected[name]) > 1e-4 * expected["norm"]
        difference = np.abs(found[f"params/{param}"] - expected[f"params/{param}"])
        assert difference[large].max(initial=0) < 1e-5
        compared += large.sum()
    assert compared > 1000


def arrays(workdir):
  """path -> array of the newest checkpoint, and the norm of Adam's first moments."""
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
