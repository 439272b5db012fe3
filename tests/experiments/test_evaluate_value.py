"""The command experiments.evaluate_value on runs of a few seconds, and its mistakes."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_run import tiny

from experiments import evaluate_value
from poise_jax import estimators
from poise_jax.models.io import run_checkpoint
from poise_jax.training import loop, values

ROOT = pathlib.Path(__file__).parents[2]


def stored(checkpoint):
  return evaluate_value.run_config(run_checkpoint.about(checkpoint)["config"])


def files_of(folder):
  return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_the_command_on_a_run(finished_run, tmp_path):
  before = files_of(finished_run)
  command = [sys.executable, "-m", "experiments.evaluate_value", f"--run={finished_run}"]
  done = subprocess.run(
    [*command, "--samples=3", f"--out={tmp_path / 'out'}"], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert "| all | poise | 16 |" in done.stdout and "MAE, avg@3" in done.stdout
  assert "sampling" in done.stdout  # the progress bar
  content = json.loads((tmp_path / "out" / "results.json").read_text())
  assert content["step"] == 3 and content["provenance"]["command"][1:3] == command[1:3]
  assert done.stdout.split("\n| ")[1] in (tmp_path / "out" / "README.md").read_text()
  assert files_of(finished_run) == before  # the run is only read


def test_the_config_of_a_run_is_read_back(finished_run):
  config = stored(run_checkpoint.find(finished_run))
  assert config.to_dict() == tiny().to_dict()  # tuples, too
  old = json.loads(tiny().to_json())
  del old["probe"]["min_rows"]
  old["task"]["kinds"] = old["task"].pop("arithmetic")["kinds"]
  old["gone"] = 1
  config = evaluate_value.run_config(old)
  assert config.probe.min_rows == 256 and config.task.arithmetic.kinds == ("1+", "1-")


def test_predictions_are_those_of_the_runs_probe(finished_run, monkeypatch):
  """Each prediction is the probe's on the features of its own answer; the rewards are those of the
  same answers. The probe of a tiny run predicts 0, so it gets weights."""
  seen = []
  make = estimators.make

  def recording(name, context):
    estimator = make(name, context)

    def predict(state, experience):
      coef = jax.random.normal(jax.random.key(0), state.probes.coef.shape)
      probes = state.probes.replace(coef=0.02 * coef, intercept=state.probes.intercept + 0.5)
      state = state.replace(probes=probes)
      predictions = estimator.predict(state, experience)
      seen.append((jax.device_get((state, experience)), np.asarray(predictions)))
      return predictions

    return estimator._replace(predict=predict)

  def odd(experiment, judge, examples, rollouts):
    assert len(examples) == len(rollouts.tokens)
    return np.asarray(rollouts.mask.sum(-1) % 2, np.float32)

  monkeypatch.setattr(estimators, "make", recording)
  monkeypatch.setattr(values.step, "score", odd)
  checkpoint = run_checkpoint.find(finished_run)
  result, step = values.measure(stored(checkpoint), checkpoint, samples=2)
  assert step == 3 and result.rewards.shape == result.predictions.shape == (16, 3)
  assert np.isfinite(result.predictions).all() and len(set(result.predictions.ravel())) > 16
  rows = []
  for (state, experience), predictions in seen:
    coef, mean = state.probes.coef[0], state.probes.mean[0]
    raw = (experience.rollouts.features - mean) @ coef + state.probes.intercept[0]
    np.testing.assert_allclose(predictions, np.clip(raw, 0, 1), atol=1e-4)
    rows += zip(experience.rewards.tolist(), predictions.tolist(), strict=True)
  known = {(tuple(r), tuple(np.float32(p))) for r, p in rows}  # the last batch repeats a prompt
  assert all(
    (tuple(r.tolist()), tuple(p)) in known
    for r, p in zip(result.rewards, result.predictions, strict=True)
  )


def test_before_the_first_fit_there_is_the_spread_of_the_values(tmp_path):
  config = tiny(steps=1, probe__bootstrap_steps=5, rollouts=8)
  loop.train(config, str(tmp_path / "run"))
  for name in run_checkpoint.steps_of(tmp_path / "run"):
    text = evaluate_value.evaluate(tmp_path / "run" / "checkpoints" / str(name), 2, None)
    assert "| all | 16 |" in text and "| poise |" not in text
    assert "16 of 16 prompts have no prediction" in text and "no fitted probe" in text


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_a_critic_and_a_run_without_either(algorithm, tmp_path):
  config = tiny(algorithm, steps=1)
  config.warm_start.steps = 0
  loop.train(config, str(tmp_path / "run"))
  checkpoint = run_checkpoint.find(tmp_path / "run")
  result, _ = values.measure(stored(checkpoint), checkpoint, samples=2)
  assert np.isfinite(result.predictions).all() == (algorithm == "ppo")
  if algorithm == "ppo":
    assert (result.predictions == result.predictions[:, :1]).all()  # it reads the prompt alone
    assert len(np.unique(result.predictions[:, 0])) > 8
  text = evaluate_value.evaluate(tmp_path / "run", 2, None)
  assert (f"| all | {algorithm} |" in text) == (algorithm == "ppo")


def test_mistakes_are_named(finished_run, tmp_path):
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "notes.txt").touch()
  empty = tmp_path / "run"
  empty.mkdir()
  shutil.copy(finished_run / "config.json", empty)
  for arguments, message in (
    ((finished_run, 0, None), "--samples=0 must be at least 1"),
    ((tmp_path, 2, None), "is neither the workdir of a run nor a checkpoint"),
    ((finished_run, 2, tmp_path / "full"), "is not empty and holds no evaluation"),
    ((empty, 2, None), "has no whole checkpoint yet"),
  ):
    with pytest.raises((ValueError, OSError), match=message):
      evaluate_value.evaluate(*arguments)


def test_a_missing_run_is_named_without_jax():
  command = [sys.executable, "-m", "experiments.evaluate_value"]
  for arguments, message in (([], "--run=DIR is missing"), (["x"], "unexpected argument 'x'")):
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr
