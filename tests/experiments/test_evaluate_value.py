"""The command experiments.evaluate_value on runs of a few seconds, and its mistakes."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from types import SimpleNamespace

import commands
import jax
import numpy as np
import pytest
from tiny_run import tiny

from poise_jax import estimators
from poise_jax.distributed import sharding
from poise_jax.errors import UserError
from poise_jax.models.io import run_checkpoint
from poise_jax.training import loop, values
from poise_jax.verifiers import Verdict
from poise_jax.verifiers.pool import Pool

evaluate_value = commands.load("evaluate_value")
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
  assert "| all prompts | poise | 16 | 3 |" in done.stdout and "A *ceiling* is" in done.stdout
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
  old["gone"] = old["train"]["gone"] = old["train"]["loss"]["gone"] = 1
  old["warm_start"]["gone"] = {"a": 2}
  old["eval"]["tasks"] = {"sums": {"train": 10}}  # keys of one's own
  old["probe"]["domain_buffer_rows"] = {"words": 64}
  config = evaluate_value.run_config(old)
  assert config.probe.min_rows == 256 and config.task.arithmetic.kinds == ("1+", "1-")
  assert config.eval.tasks.to_dict() == {"sums": {"train": 10}}
  assert config.probe.domain_buffer_rows.to_dict() == {"words": 64}
  assert config.model.shape.to_dict() == tiny().model.shape.to_dict()
  assert "gone" not in config.to_json()


@pytest.mark.parametrize("mesh", [{"data": 3}, {"tensor": 2, "fsdp": 4}, {"data": -1}, {"data": 1}])
def test_a_mesh_that_does_not_fit_is_replaced(mesh, capsys):
  config = tiny(**{f"mesh__{axis}": size for axis, size in {"fsdp": 1, **mesh}.items()})
  fits = mesh["data"] in (-1, 1) if "data" in mesh else False
  asked = config.mesh.to_dict()
  replaced = evaluate_value.with_mesh(config).mesh.to_dict()
  assert replaced == (asked if fits else {"data": 1, "fsdp": -1, "tensor": 1})
  printed = capsys.readouterr().out
  assert ("and there is 1 (mesh" in printed) == ("default mesh" in printed) == (not fits)


def test_predictions_are_those_of_the_runs_probe(finished_run, monkeypatch):
  """Each prediction is the probe's on the features of its own answer; the rewards are those of the
  same answers. The probe of a tiny run predicts 0, so it gets weights."""
  seen, judged = [], []
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
    assert len(examples) == len(rollouts.tokens) == len(rollouts.mask)
    judged.extend(example.question for example in examples)
    return np.asarray(rollouts.mask.sum(-1) % 2, np.float32)

  monkeypatch.setattr(estimators, "make", recording)
  monkeypatch.setattr(values.step, "score", odd)
  checkpoint = run_checkpoint.find(finished_run)
  result, step = values.measure(stored(checkpoint), checkpoint, samples=2)
  assert step == 3 and result.rewards.shape == result.predictions.shape == (16, 3)
  assert np.isfinite(result.predictions).all() and len(set(result.predictions.ravel())) > 16
  questions = [e.question for e in values.build(stored(checkpoint)).task.test]
  assert sorted(judged) == sorted(questions)  # each once, without padding
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
    assert "| all prompts | 16 |" in text and "| poise |" not in text
    assert "16 of 16 prompts have no prediction" in text and "no fitted probe" in text


@pytest.mark.parametrize("algorithm", ["ppo", pytest.param("rloo", marks=pytest.mark.slow)])
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
  assert (f"| all prompts | {algorithm} |" in text) == (algorithm == "ppo")


@pytest.mark.parametrize(
  "names,refused",
  [
    (["notes.txt"], True),
    (["results.json"], True),  # of experiments.benchmark and others
    (["results.json", "README.md"], True),
    (["results.json", "answers.jsonl", "protocol.json"], True),  # of experiments.evaluate
    (["results.json", "README.md", "values.svg"], False),
    ([], False),
  ],
)
def test_only_an_earlier_evaluation_of_values_is_replaced(names, refused, tmp_path):
  """An accepted folder gets as far as the missing run."""
  out = tmp_path / "out"
  out.mkdir()
  for name in names:
    (out / name).write_text(f"earlier {name}")
  message = "holds no evaluation of values" if refused else "is neither the workdir of a run"
  with pytest.raises(UserError, match=message):
    evaluate_value.evaluate(tmp_path / "nowhere", 2, out)
  assert {p.name: p.read_text() for p in out.iterdir()} == {n: f"earlier {n}" for n in names}


def test_other_data_than_the_runs_is_refused(run_copy, monkeypatch):
  """Before anything is sampled; config.json says how data was made, not what it was."""
  path = run_copy / "data.json"
  path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0'))
  monkeypatch.setattr(values, "sampled", None)
  with pytest.raises(UserError, match="the data differs from the data this run started with"):
    evaluate_value.evaluate(run_copy, 2, None)


def test_answers_without_a_verdict_are_reported(finished_run, monkeypatch):
  """Of the verifier of every answer but those of one problem."""
  score, count = Pool.score, 0

  def failing(self, checks, responses):
    nonlocal count
    verdicts = score(self, checks, responses)
    count += len(verdicts)
    return [Verdict(0.0, "timed_out"), Verdict(0.0, "crashed", "a note"), *verdicts[2:]]

  monkeypatch.setattr(Pool, "score", failing)
  checkpoint = run_checkpoint.find(finished_run)
  result, _ = values.measure(stored(checkpoint), checkpoint, samples=2)
  assert sum(result.verdicts.values()) == count == 48
  batches = result.verdicts["timed_out"]
  assert result.verdicts["crashed"] == batches >= 1


@pytest.mark.parametrize(
  "rollouts,microbatch,n,examples,shards,expected",
  [
    (64, 8, 2, 100, 1, 32),
    (64, 8, 3, 100, 1, 20),  # micro-batches of 2 prompts; 21 would need them one by one
    (64, 16, 3, 100, 1, 20),
    (64, 16, 3, 7, 1, 10),  # two micro-batches of 5
    (64, 16, 3, 100, 4, 20),
    (64, 24, 3, 100, 4, 16),
    (64, 56, 9, 100, 4, 4),  # lcm(4, 6) prompts are more than a step has
    (8, 2, 9, 100, 1, 1),
    (8, 8, 9, 3, 2, 2),
  ],
)
def test_batches_are_whole_micro_batches(rollouts, microbatch, n, examples, shards, expected):
  test = SimpleNamespace(examples=[0] * examples)
  experiment = SimpleNamespace(
    config=SimpleNamespace(rollouts=rollouts),
    update=SimpleNamespace(microbatch_size=microbatch),
    mesh=sharding.make_mesh(data=shards, fsdp=1, tensor=1, devices=shards),
    held_out=[test, SimpleNamespace(examples=[0])],
  )
  assert values.batch_size(experiment, n) == expected


def test_mistakes_are_named(finished_run, tmp_path):
  empty = tmp_path / "run"
  empty.mkdir()
  shutil.copy(finished_run / "config.json", empty)
  for arguments, message in (
    ((finished_run, 0, None), "--samples=0 must be at least 1"),
    ((tmp_path, 2, None), "is neither the workdir of a run nor a checkpoint"),
    ((empty, 2, None), "has no whole checkpoint yet"),
  ):
    with pytest.raises((ValueError, OSError), match=message):
      evaluate_value.evaluate(*arguments)


def test_a_missing_run_is_named_without_jax():
  command = [sys.executable, "-m", "experiments.evaluate_value"]
  for arguments, message in (([], "--run=DIR is missing"), (["x"], "unexpected argument 'x'")):
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr


def test_several_processes_are_refused(tmp_path):
  """Each of them would write the same files."""
  command = [sys.executable, "-m", "experiments.evaluate_value", f"--run={tmp_path}"]
  environment = {**os.environ, "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 1 and "runs in one process" in done.stderr
