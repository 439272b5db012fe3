"""A whole run, from end to end: what it writes, how it resumes, and how it refuses."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest
from tiny_run import PARTS, PROMPTS, N, lines, tiny

from configs import common
from poise_jax.training import build, loop


def test_files_of_a_run(straight):
  names = {path.name for path in straight.iterdir()}
  assert {
    "config.json",
    "data.json",
    "provenance.jsonl",
    "metrics.jsonl",
    "samples.jsonl",
    "checkpoints",
    "tensorboard",
    "tokenizer.model",
    "answers",
    "report.html",
  } == names
  assert list((straight / "tensorboard").iterdir())
  config = json.loads((straight / "config.json").read_text())
  assert config == json.loads(tiny().to_json())
  answers = {path.name: lines(path) for path in (straight / "answers").iterdir()}
  assert set(answers) == {"step_0.jsonl", "step_2.jsonl", "step_3.jsonl"}
  for rows in answers.values():
    assert len(rows) == len({row["question"] for row in rows}) == 16
    assert set(rows[0]) >= {"question", "answer", "response", "reward", "difficulty"}


def test_metrics_of_a_run(straight):
  rows = lines(straight / "metrics.jsonl")
  assert [row["step"] for row in rows] == [0, 1, 2, 3]
  evaluation = {"eval/accuracy", "eval/accuracy_se", "eval/truncated_fraction"}
  evaluation |= {"eval/accuracy/1+", "eval/accuracy/1-"}
  assert set(rows[0]) == {"step", "time/elapsed", *evaluation}
  elapsed = [row["time/elapsed"] for row in rows]
  assert elapsed == sorted(elapsed) and elapsed[3] - elapsed[2] >= rows[3]["time/step"]
  every_step = {
    "reward/mean",
    "policy/entropy",
    "policy/clip_fraction",
    "policy/grad_norm",
    "policy/loss",
    "rollout/tokens",
    "rollout/truncated_fraction",
    "rollout/mismatch_kl",
    "collect/tokens",
    *(f"time/{part}" for part in ("step", *PARTS)),
    "policy/skipped_updates",
  }
  for row in rows[1:]:
    assert not every_step - set(row)
    assert bool(evaluation & set(row)) == (row["step"] in (2, 3))
    assert ("probe/mae" in row) == (row["step"] > 1)  # step 1 has no probe yet
    assert all(np.isfinite(value) for value in row.values())
    assert PROMPTS * N <= row["rollout/tokens"] <= PROMPTS * N * 10
    assert row["collect/tokens"] == row["rollout/tokens"]  # nothing was left out
    means = [value for name, value in row.items() if name.startswith("reward/mean/")]
    assert min(means) <= row["reward/mean"] <= max(means)
    assert row["rollout/mismatch_kl"] < 1e-5  # the sampler had the weights of the trainer
    parts = sum(row[f"time/{part}"] for part in PARTS)
    assert parts == pytest.approx(row["time/step"], rel=1e-3)
  # Two optimizer steps a step, so the mean has left the reference even where it was just renewed.
  drift = [row["policy/reference_kl"] for row in rows[1:]]
  assert 0 < drift[0] < drift[1] and 0 < drift[2] < drift[1]


# Each other name is one of these with other numbers.
OWN_CODE = ("poise", "rloo", "dapo_greso", "reinforce_pp", "ppo", "sppo", "spo", "pvpo")


@pytest.mark.parametrize(
  "algorithm",
  [n if n in OWN_CODE else pytest.param(n, marks=pytest.mark.slow) for n in common.ALGORITHMS],
)
def test_every_algorithm_takes_a_step(tmp_path, monkeypatch, zeros, algorithm):
  monkeypatch.setattr(build.models, "init", zeros)
  changes = dict(steps=1, warm_start__steps=0, train__minibatch_size=8, train__microbatch_size=8)
  loop.train(tiny(algorithm, **changes), str(tmp_path))
  assert lines(tmp_path / "metrics.jsonl")[-1]["step"] == 1


def test_samples_of_a_run(straight):
  rows = lines(straight / "samples.jsonl")
  assert [row["step"] for row in rows] == [step for step in (1, 2, 3) for _ in range(2 * N)]
  for row in rows:
    assert set(row) == {
      "step",
      "question",
      "answer",
      "difficulty",
      "response",
      "tokens",
      "entropies",
      "reward",
      "baseline",
      "advantage",
    }
    assert "".join(row["tokens"]) == row["response"]
    assert len(row["tokens"]) == len(row["entropies"]) and min(row["entropies"]) >= 0
    assert row["reward"] in (0.0, 1.0)
    assert row["advantage"] == pytest.approx(row["reward"] - row["baseline"], abs=1e-6)
  assert len({row["question"] for row in rows}) > 3  # other problems every step


def test_answers_without_a_verdict_are_counted_every_step(straight):
  for row in lines(straight / "metrics.jsonl")[1:]:
    assert 0 <= row["verifier/unparsable"] <= PROMPTS * N
    assert row["verifier/timed_out"] == row["verifier/crashed"] == 0


@pytest.mark.parametrize(
  "function,message",
  [("nowhere:reward", "does not load"), ("user_rewards:broken", "crashed on all .* ZeroDivision")],
)
def test_a_reward_that_cannot_work_stops_the_run_and_leaves_no_process(tmp_path, function, message):
  with pytest.raises(ValueError, match=message):
    loop.train(tiny(verifier__function=function, warm_start__steps=0), str(tmp_path / "run"))
  children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
  commands = [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
  assert not any(b"poise_jax.verifiers" in command for command in commands)


@pytest.fixture(scope="module")
def zeros():
  """Weights without the seconds that their initialisation takes."""
  return lambda model, key: jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype), build.models.abstract_params(model)
  )


def test_a_run_does_not_go_on_with_other_data(copy):
  kept = copy / "data.json"
  assert json.loads(kept.read_text())["train"] == 100
  kept.write_text(kept.read_text().replace('"sha256": "', '"sha256": "0'))
  with pytest.raises(ValueError, match="the data differs from the data this run started with"):
    loop.train(tiny(steps=4), str(copy), allow_config_change=True)


def test_a_mixture_is_made_by_its_name_with_a_probe_a_domain():
  changes = dict(task__name="reasoning_gym", task__template="{question}", warm_start__steps=0)
  config = tiny(**changes, task__max_prompt_length=195, task__drop_long=True)
  config.task.reasoning_gym.generators = {"gcd": {}, "lcm": {}, "leg_counting": {"max_animals": 8}}
  run = build.build(config)
  assert run.task.domains == ("gcd", "lcm", "leg_counting")
  assert run.task.left_out  # the longer lists of animals
  state = jax.eval_shape(run.estimator.init, run.param_shapes)
  assert state.buffer.targets.shape[0] == 3


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(rollout__n=1), "rollout.n=1"),
    (dict(rollouts=9), "rollouts=9 .*rollout.n=2"),
    (dict(rollouts=0), "rollouts=0"),
    (dict(rollouts=6), "rollouts=6 .*train.minibatch_size=4"),
    (dict(train__minibatch_size=0), "train.minibatch_size=0"),
    (dict(train__microbatch_size=0), "train.microbatch_size=0"),
    (dict(train__microbatch_size=3), "train.microbatch_size=3"),
    (dict(eval_batch=0), "eval_batch=0"),
    (dict(eval_every=0), "eval_every=0"),
    (dict(max_skipped_updates=0), "max_skipped_updates=0"),
    (dict(task__max_prompt_length=4), "task.max_prompt_length=4"),
    (dict(task__arithmetic__kinds=("1%",)), "task.arithmetic.kinds"),
    (dict(task__template="What?"), "task.template"),
    (dict(rollout__temperature=0.0), "rollout.temperature=0"),
    (dict(rollout__top_k=5, train__old_logprobs="sampler"), "train.old_logprobs='sampler'"),
    (dict(rollout__feature_layers=()), "rollout.feature_layers"),
    (dict(rollout__feature_layers=(2,)), "0 to 1"),
    (dict(probe__pca_prompt=17), "probe.pca_prompt=17 exceeds"),  # the buffer has 16 rows
    (dict(probe__alpha=0.0), "probe.alpha"),
    (dict(train__loss__aggregation="mean"), "train.loss.aggregation='mean'"),
    (dict(train__remat="all"), "train.remat='all'"),
    (dict(train__dtype="float31"), "train.dtype='float31'"),
    (dict(model__dtype="float31"), "model.dtype='float31'"),
    (dict(mesh__data=3), "mesh data=3"),
    (dict(model__source="no/such/weights.gguf"), "no/such/weights.gguf"),
    (dict(rollout__max_new_tokens=3), "rollout.max_new_tokens=3"),  # too short for the warm start
    (dict(warm_start__batch_size=0), "warm_start.batch_size=0"),
    (dict(collect__dynamic_sampling=True), "collect.dynamic_sampling .*'poise'"),
    (dict(estimator="sppo", reward__overlong_buffer=2), "sppo.*reward.overlong_buffer"),
    (dict(estimator="spo"), "spo takes one response a prompt: rollout.n=2"),
    (dict(reward__kl_coef=-1.0), "reward.kl_coef=-1"),
    (dict(critic__lam=2.0), "critic.lam=2"),
    (dict(probe__reads=("states",)), "probe.reads"),
    (dict(reference_n=0), "reference_n=0"),
    (dict(loggers=("mlflow",)), "mlflow.*choose from tensorboard, wandb"),
    (dict(profile_steps=(2, 4)), r"profile_steps=\(2, 4\) .*steps=3"),
    (dict(eval__n=2), "eval.n=2 .*eval.temperature"),
    (
      dict(eval__tasks={"x": dict(arithmetic=dict(kinds=("2+",)), max_prompt_length=2)}),
      "max_prompt_length=2",
    ),
  ],
  ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_what_cannot_work_is_named_before_anything_is_written(
  tmp_path, monkeypatch, zeros, changes, message
):
  monkeypatch.setattr(build.models, "init", zeros)
  with pytest.raises((ValueError, OSError), match=message):
    loop.train(tiny(**changes), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
