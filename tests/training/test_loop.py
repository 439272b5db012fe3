"""A whole run, from end to end: the files that it writes, and the errors that stop it."""

import contextlib
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from tiny_run import PARTS, PROMPTS, N, lines, tiny

from configs.algorithms import ALGORITHMS
from poise_jax.models.io import run_checkpoint
from poise_jax.training import build, loop
from poise_jax.training.profiling import Profiler


def test_files_of_a_run(finished_run):
  names = {path.name for path in finished_run.iterdir()}
  assert {
    "config.json",
    "data.json",
    "provenance.jsonl",
    "metrics.jsonl",
    "samples.jsonl",
    "busy_rows.json",
    "checkpoints",
    "tensorboard",
    "tokenizer.model",
    "answers",
    "report.html",
  } == names
  assert list((finished_run / "tensorboard").iterdir())
  config = json.loads((finished_run / "config.json").read_text())
  assert config == json.loads(tiny().to_json())
  answers = {path.name: lines(path) for path in (finished_run / "answers").iterdir()}
  assert set(answers) == {"step_0.jsonl", "step_2.jsonl", "step_3.jsonl"}
  for rows in answers.values():
    assert len(rows) == len({row["question"] for row in rows}) == 16
    assert set(rows[0]) >= {"question", "answer", "response", "reward", "difficulty"}


def test_metrics_of_a_run(finished_run):
  rows = lines(finished_run / "metrics.jsonl")
  assert [row["step"] for row in rows] == [0, 1, 2, 3]
  evaluation = {"eval/accuracy", "eval/accuracy_se", "eval/truncated_fraction"}
  evaluation |= {"eval/accuracy/1+", "eval/accuracy/1-"}
  assert set(rows[0]) == {"step", "time/elapsed", *evaluation}
  elapsed = [row["time/elapsed"] for row in rows]
  assert elapsed == sorted(elapsed) and elapsed[3] - elapsed[2] >= rows[3]["time/step"]
  step_metrics = {
    "reward/mean",
    "baseline/mean",
    "baseline/pearson",
    "baseline/variance_reduction",
    "policy/entropy",
    "policy/clip_fraction",
    "policy/grad_norm",
    "policy/loss",
    "rollout/tokens",
    "rollout/truncated_fraction",
    "rollout/mismatch_kl",
    "collect/tokens",
    "collect/score",
    *(f"time/{part}" for part in ("step", *PARTS)),
    "policy/skipped_updates",
  }
  for row in rows[1:]:
    assert not step_metrics - set(row)
    assert bool(evaluation & set(row)) == (row["step"] in (2, 3))
    assert ("probe/mae" in row) == (row["step"] > 1)  # step 1 has no probe yet
    assert all(np.isfinite(value) for value in row.values())
    assert PROMPTS * N <= row["rollout/tokens"] <= PROMPTS * N * 10
    assert row["collect/tokens"] == row["rollout/tokens"]  # no response was discarded
    assert row["collect/score"] == pytest.approx(row["reward/score"], abs=1e-6)
    means = [value for name, value in row.items() if name.startswith("reward/mean/")]
    assert min(means) <= row["reward/mean"] <= max(means)
    assert row["rollout/mismatch_kl"] < 1e-5  # the sampler had the weights of the trainer
    parts = sum(row[f"time/{part}"] for part in PARTS)
    assert parts == pytest.approx(row["time/step"], rel=1e-3)
  # Two optimizer steps per step: the second one is off a reference that was just renewed.
  drift = [row["policy/reference_kl"] for row in rows[1:]]
  assert 0 < drift[0] < drift[1] and 0 < drift[2] < drift[1]


# The other algorithms differ from these in numbers only.
DISTINCT = ("poise", "dapo_greso", "ppo", "spo")


@pytest.fixture
def zeros(monkeypatch):
  """Initial weights of zero: random ones take seconds to compile."""
  monkeypatch.setattr(
    build.models,
    "init",
    lambda model, key: jax.tree.map(
      lambda x: np.zeros(x.shape, x.dtype), build.models.abstract_params(model)
    ),
  )


# Verdicts by the length of a response, so that scores differ within groups.
QUICK = dict(warm_start__steps=0, train__minibatch_size=8, train__microbatch_size=8)
QUICK |= dict(verifier__function="user_rewards:odd", eval_every=100, checkpoint_every=0)


@pytest.mark.parametrize(
  "algorithm",
  [name if name in DISTINCT else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS],
)
def test_the_steady_state_of_every_algorithm_transfers_nothing_implicitly(
  tmp_path, monkeypatch, zeros, algorithm
):
  """Steps 2 to 4 pass arrays to the devices and back by explicit calls only. (On a CPU, JAX's guard
  does not see transfers from the device.)"""
  at, guard = Profiler.at, contextlib.ExitStack()

  def guarded(self, step):
    at(self, step)
    if step == 2:
      guard.enter_context(jax.transfer_guard("disallow"))
    if step == 5:
      guard.close()

  monkeypatch.setattr(Profiler, "at", guarded)
  with guard:
    loop.train(tiny(algorithm, steps=5, **QUICK), str(tmp_path))
  rows = lines(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in rows] == list(range(6))
  pretraining = ALGORITHMS[algorithm].fields.get("critic.pretrain_steps", 0)
  assert all("policy/loss" in row for row in rows[1 + pretraining :])


def test_samples_of_a_run(finished_run):
  rows = lines(finished_run / "samples.jsonl")
  assert [row["step"] for row in rows] == [step for step in (1, 2, 3) for _ in range(2 * N)]
  for row in rows:
    assert set(row) == {
      "step",
      "question",
      "prompt",
      "answer",
      "difficulty",
      "response",
      "tokens",
      "entropies",
      "reward",
      "baseline",
      "advantage",
      "unusual",
      "extra",
    }
    assert "".join(row["tokens"]) == row["response"]
    assert len(row["tokens"]) == len(row["entropies"]) and min(row["entropies"]) >= 0
    assert row["reward"] in (0.0, 1.0)
    assert row["advantage"] == pytest.approx(row["reward"] - row["baseline"], abs=1e-6)
  assert len({row["question"] for row in rows}) > 3  # other prompts every step


def test_busy_rows_of_the_newest_step(finished_run):
  content = json.loads((finished_run / "busy_rows.json").read_text())
  assert content["step"] == 3 and content["slots"] == PROMPTS * N
  row = lines(finished_run / "metrics.jsonl")[3]
  assert sum(content["busy"]) == row["rollout/tokens"] - PROMPTS * N
  assert len(content["busy"]) == content["decode_steps"] <= 9
  assert "Rows that draw a token at step 3" in (finished_run / "report.html").read_text()


def test_responses_without_a_verdict_are_counted_every_step(finished_run):
  for row in lines(finished_run / "metrics.jsonl")[1:]:
    assert 0 <= row["verifier/unparsable"] <= PROMPTS * N
    assert row["verifier/timed_out"] == row["verifier/crashed"] == 0


@pytest.mark.parametrize(
  "function,message",
  [("nowhere:reward", "does not load"), ("user_rewards:broken", "crashed on all .* ZeroDivision")],
)
def test_a_reward_that_always_fails_stops_the_run_and_its_processes(tmp_path, function, message):
  with pytest.raises(ValueError, match=message):
    loop.train(tiny(verifier__function=function, warm_start__steps=0), str(tmp_path / "run"))
  children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
  commands = [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
  assert not any(b"poise_jax.verifiers" in command for command in commands)


def test_every_part_of_a_weighted_reward_is_a_metric(tmp_path, zeros):
  changes = QUICK | dict(verifier__format="[0-9]*", verifier__format_weight=0.25)
  changes |= dict(verifier__function_weight=0.5)
  config = tiny(steps=1, **changes)
  loop.train(config, str(tmp_path))
  row = lines(tmp_path / "metrics.jsonl")[1]
  parts = {name: value for name, value in row.items() if name.startswith("reward/part/")}
  assert set(parts) == {"reward/part/last_integer", "reward/part/format", "reward/part/odd"}
  assert 0 < parts["reward/part/odd"] < 1
  weighted = sum(
    weight * parts[f"reward/part/{name}"]
    for name, weight in (("last_integer", 0.25), ("format", 0.25), ("odd", 0.5))
  )
  assert row["reward/score"] == pytest.approx(weighted, abs=1e-6)


def test_a_run_does_not_continue_with_other_data(run_copy):
  path = run_copy / "data.json"
  assert json.loads(path.read_text())["train"] == 100
  path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0'))
  with pytest.raises(ValueError, match="the data differs from the data this run started with"):
    loop.train(tiny(steps=4), str(run_copy), allow_config_change=True)


@pytest.mark.parametrize("changes", [dict(steps=0), dict(model__source="no/such/folder")])
def test_an_invalid_config_leaves_no_workdir(tmp_path, changes):
  with pytest.raises((ValueError, OSError)):
    loop.train(tiny(**changes), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_weights_that_do_not_load_leave_no_workdir(tmp_path, finished_run):
  source = tmp_path / "source"
  shutil.copytree(finished_run, source)
  shutil.rmtree(source / "checkpoints" / "3" / "params" / "d")
  with pytest.raises(OSError, match="damaged"):
    loop.train(tiny(model__source=str(source)), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_responses_that_nothing_can_judge_are_a_warning(tmp_path, capsys, zeros):
  """Once a run, with an example; brackets in it are text, not markup."""
  function = "user_rewards:unreadable"
  config = tiny(verifier__function=function, warm_start__steps=0, steps=2)
  loop.train(config, str(tmp_path / "run"))
  text = " ".join(capsys.readouterr().out.split())
  assert text.count("responses could be judged, such as") == 1
  assert "(unparsable: no answer in [/red])" in text


def test_best_goes_by_the_chosen_accuracy(tmp_path, monkeypatch, zeros):
  """Greedy accuracy is highest at step 1, avg@2 at step 2, and pass@2 at step 3."""
  evaluations = [
    {"eval/accuracy": a, "eval/avg_at_2": b, "eval/pass_at_2": c}
    for a, b, c in ((0.1, 0.2, 0.1), (0.9, 0.1, 0.2), (0.2, 0.8, 0.3), (0.3, 0.4, 0.7))
  ]
  monkeypatch.setattr(loop.Run, "evaluate", lambda self, step, params: dict(evaluations[step]))
  for best_by, expected in (("greedy", 1), ("avg@2", 2), ("pass@2", 3)):
    folder = tmp_path / best_by
    changes = dict(eval__n=2, eval__temperature=1.0, eval__best_by=best_by, eval_every=1)
    loop.train(tiny(**changes, warm_start__steps=0, reference_every=0), str(folder))
    best = run_checkpoint.about(run_checkpoint.find(folder))["best"]
    assert best["step"] == expected
    assert expected in run_checkpoint.steps_of(folder)
