"""A config becomes an experiment, or an error that names the value that cannot work."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from tiny_run import PROMPTS, tiny

from poise_jax.errors import UserError
from poise_jax.evaluation.judge import Judge
from poise_jax.training import build, step
from poise_jax.types import Rollouts
from poise_jax.verifiers.pool import Pool


def test_an_experiment_is_immutable_and_needs_no_weights(monkeypatch):
  def fail(*_):
    raise AssertionError("made weights")

  monkeypatch.setattr(build.models, "init", fail)
  monkeypatch.setattr(build.models, "load", fail)
  experiment = build.build(tiny())
  assert experiment.groups == PROMPTS and experiment.keeps_reference
  assert experiment.difficulties == ("1+", "1-")
  assert experiment.update.temperature == experiment.rollout.temperature
  assert set(experiment.rollout.eos_ids) == set(experiment.encoder.tokenizer.eos_ids)
  with pytest.raises(dataclasses.FrozenInstanceError):
    experiment.made_tokenizer = None
  assert not build.build(tiny(train__loss__kl_coef=0.0)).keeps_reference


def test_a_mixture_has_a_probe_per_domain():
  changes = dict(task__name="reasoning_gym", task__template="{question}", warm_start__steps=0)
  config = tiny(**changes, task__max_prompt_length=195, task__drop_long=True)
  config.task.reasoning_gym.generators = {"gcd": {}, "lcm": {}, "leg_counting": {"max_animals": 8}}
  experiment = build.build(config)
  assert experiment.task.domains == ("gcd", "lcm", "leg_counting")
  assert experiment.task.left_out  # long lists of animals
  state = jax.eval_shape(experiment.estimator.init, experiment.param_shapes)
  assert state.buffer.targets.shape[0] == 3


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(seed=-1), "seed must be at least 0, got -1"),
    (dict(steps=0), "steps must be at least 1, got 0"),
    (dict(rollout__n=1), "rollout.n must be at least 2, got 1"),
    (dict(rollouts=9), "rollouts must be a positive multiple of rollout.n=2, got 9"),
    (dict(rollouts=0), "rollouts must be a positive multiple of rollout.n=2, got 0"),
    (dict(rollouts=6), "rollouts must be .* multiple of train.minibatch_size=4, got 6"),
    (dict(train__minibatch_size=0), "train.minibatch_size"),
    (dict(train__microbatch_size=0), "train.microbatch_size"),
    (dict(train__microbatch_size=3), "train.microbatch_size=3"),
    (dict(eval_batch=0), "eval_batch must be a positive multiple of the mesh's .*, got 0"),
    (dict(eval_every=0), "eval_every must be at least 1, got 0"),
    (dict(max_skipped_updates=0), "max_skipped_updates must be at least 1, got 0"),
    (dict(task__max_prompt_length=4), "task.max_prompt_length=4"),
    (dict(task__arithmetic__kinds=("1%",)), "task.arithmetic.kinds"),
    (dict(task__template="What?"), "task.template"),
    (dict(rollout__temperature=0.0), "rollout.temperature must be greater than 0"),
    (dict(rollout__top_k=5, train__old_logprobs="sampler"), "train.old_logprobs='sampler'"),
    (dict(algorithm="dapo", rollout__top_p=0.9), "collect.dynamic_sampling needs rollout.top_p=1"),
    (dict(algorithm="dapo", rollout__top_k=9), "collect.dynamic_sampling needs rollout.top_p=1"),
    (dict(rollout__feature_layers=()), "rollout.feature_layers"),
    (dict(rollout__feature_layers=(2,)), "0 to 1"),
    (
      dict(rollout__feature_layers=(), rollout__feature_depth=1.0),
      "feature_depth must be at least 0",
    ),
    (
      dict(rollouts=9, eval_batch=0, train__minibatch_size=6, train__microbatch_size=4),
      "rollout.n=2, got 9; rollouts .* of train.minibatch_size=6, got 9; train.minibatch_size .* "
      "of train.microbatch_size=4, got 6; eval_batch must .* got 0",
    ),
    (dict(probe__pca_prompt=17), "probe.pca_prompt"),  # the buffer has 16 rows
    (dict(probe__alpha=0.0), "probe.alpha"),
    (dict(train__loss__aggregation="mean"), "train.loss.aggregation 'mean'"),
    (dict(train__remat="all"), "train.remat 'all'"),
    (dict(train__dtype="float31"), "train.dtype 'float31'"),
    (dict(model__dtype="float31"), "model.dtype 'float31'"),
    (dict(mesh__data=3), "mesh data=3"),
    (dict(model__source="no/such/weights.gguf"), "no/such/weights.gguf"),
    (dict(rollout__max_new_tokens=3), "rollout.max_new_tokens=3"),  # too short for the warm start
    (dict(warm_start__batch_size=0), "warm_start.batch_size"),
    (dict(collect__dynamic_sampling=True), "collect.dynamic_sampling .*'poise'"),
    (dict(estimator="sppo", reward__overlong_buffer=2), "sppo.*reward.overlong_buffer"),
    (dict(estimator="spo", rollout__n=1, reward__overlong_buffer=2), "spo.*reward.overlong_buffer"),
    (dict(estimator="spo", rollout__n=1, reward__kl_coef=0.1), "spo.*reward.kl_coef"),
    (dict(probe__model="logistic", reward__kl_coef=0.1), "poise.*reward.kl_coef"),
    (dict(probe__min_rows=0), "probe.min_rows must be an integer of at least 1, got 0"),
    (dict(probe__domain_buffer_rows={"maths": 64}), "probe.domain_buffer_rows 'maths'"),
    (dict(probe__domain_probes={"maths": "other"}), "probe.domain_probes 'maths'"),
    (dict(estimator="spo"), "spo .*rollout.n"),
    (dict(reward__kl_coef=-1.0), "reward.kl_coef must be at least 0, got -1"),
    (dict(critic__lam=2.0), "critic.lam"),
    (dict(probe__reads=("states",)), "probe.reads"),
    (dict(reference_n=0), "reference_n must be at least 1, got 0"),
    (dict(loggers=("mlflow",)), "'mlflow'.*choose from tensorboard, wandb"),
    (dict(profile_steps=(2, 4)), r"profile_steps must be .*steps=3, got \(2, 4\)"),
    (dict(eval__n=2), "eval.n=2 .*eval.temperature"),
    (
      dict(eval__tasks={"x": dict(arithmetic=dict(kinds=("2+",)), max_prompt_length=2)}),
      "max_prompt_length=2",
    ),
  ],
  ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_a_value_that_cannot_work_is_named(changes, message):
  with pytest.raises((UserError, OSError), match=message):
    build.build(tiny(**changes))


def test_the_rewards_of_training_do_not_see_the_thought():
  experiment = build.build(tiny(task__think_end="=", warm_start__steps=0))
  for examples in (experiment.task.train, experiment.held_out[0].examples):
    assert {example.check.think_end for example in examples} == {"="}
  encode, examples = experiment.encoder.tokenizer.encode, experiment.task.train[:2]
  answers = [example.answer for example in examples]
  texts = [[f"0 = {answers[0]}", f"{answers[0]} = 99"], [answers[1], f"= 9 = {answers[1]}"]]
  tokens, mask = np.zeros((2, 2, 20), np.int32), np.zeros((2, 2, 20), bool)
  for place in np.ndindex(2, 2):
    ids = encode(texts[place[0]][place[1]])
    tokens[place][: len(ids)], mask[place][: len(ids)] = ids, True
  rollouts = Rollouts(
    prompts=experiment.encoder(examples),
    tokens=tokens,
    mask=mask,
    logprobs=np.zeros((2, 2, 20), np.float32),
    entropies=np.zeros((2, 2, 20), np.float32),
    truncated=np.zeros((2, 2), bool),
    features=np.zeros((2, 2, 5), np.float32),
  )
  with Pool(1, 10.0) as pool:
    judge = Judge(pool, experiment.verifier)
    scores = step.score(experiment, judge, examples, rollouts)
    assert judge.metrics()["verifier/unparsable"] == 1
  assert scores.tolist() == [[1, 0], [0, 1]]


def _float_fields(config, prefix=""):
  for name, value in config.items():
    if hasattr(value, "items"):
      yield from _float_fields(value, f"{prefix}{name}.")
    elif isinstance(value, float):
      yield prefix + name


def test_every_float_that_is_not_finite_is_named():
  """Comparisons with bounds do not find NaN."""
  names = list(_float_fields(tiny()))
  assert {"rollout.top_p", "train.loss.clip_high", "critic.gamma", "eval.temperature"} < set(names)
  for name in names:
    if name.startswith("model.shape."):
      continue  # the numbers of a checkpoint
    changes = {}
    if name.startswith("task.reasoning."):  # a task reads its own section only
      changes = {"task__name": "reasoning", "task__think_end": "</think>"}
    value = float("inf") if name.endswith("e") else float("nan")
    with pytest.raises(ValueError, match=f"{re.escape(name)} must be .*got {value}"):
      build.build(tiny(**changes, **{name.replace(".", "__"): value}))


@pytest.mark.parametrize(
  "changes,line",
  [
    ({}, "4 prompts x 2 = 8 rollouts, 2 optimizer steps of 4 sequences, in micro-batches of 2"),
    (
      dict(rollouts=2048, rollout__n=2, train__minibatch_size=2048, train__microbatch_size=512),
      "1,024 prompts x 2 = 2,048 rollouts, 1 optimizer step of 2,048 sequences, in micro-batches "
      "of 512",
    ),
  ],
)
def test_the_start_says_what_a_step_is_made_of(changes, line):
  assert build.build(tiny(**changes)).summary().splitlines()[1] == f"a step: {line}"


@pytest.mark.parametrize(
  "schedule,warmup,expected", [("constant", 0, 0), ("linear", 0, 6), ("cosine", 5, 6)]
)
def test_a_schedule_ends_with_the_run(schedule, warmup, expected):
  config = tiny(train__schedule=schedule, train__warmup_steps=warmup)
  assert build.build(config).update.optimizer_steps == expected


def test_a_schedule_of_the_policy_leaves_out_the_critics_steps():
  config = tiny("ppo", rollout__n=2, train__schedule="linear", critic__pretrain_steps=1, steps=4)
  experiment = build.build(config)
  assert experiment.estimator.pretrain_steps == 1
  assert experiment.update.optimizer_steps == 3 * 2
  config.steps = 1  # all of them
  with pytest.raises(UserError, match="falls from the warm-up to the run's end"):
    build.build(config)


def test_a_feature_layer_by_depth_and_none_without_a_probe():
  """Of two layers, 0.4 is the first one and 0.6 the second one."""
  for depth, layers in ((0.4, (0,)), (0.6, (1,))):
    config = tiny(rollout__feature_layers=(), rollout__feature_depth=depth)
    assert build.build(config).rollout.feature_layers == layers
  named = tiny(rollout__feature_layers=(0, 1), rollout__feature_depth=0.4)
  assert build.build(named).rollout.feature_layers == (0, 1)
  for algorithm in ("grpo", "rloo"):
    far = tiny(algorithm, rollout__n=2, rollout__feature_layers=(99,))  # which it never reads
    assert build.build(far).rollout.feature_layers == ()
  own = tiny("rloo", rollout__n=2, estimator="poise_jax.estimators.group:make_reinforce_pp")
  assert build.build(own).rollout.feature_layers == (1,)  # an estimator of one's own may read it


@pytest.mark.parametrize(
  "algorithm,changes,reason",
  [
    ("poise", {}, "estimator 'poise' predicts rewards between 0 and 1"),
    ("spo", {"rollout__n": 1}, "estimator 'spo' predicts rewards between 0 and 1"),
    ("dapo_greso", {"rollout__n": 2}, "collect.greso_target tells easy from hard"),
    ("grpo", {"rollout__n": 2}, ""),
    ("ppo", {"rollout__n": 1}, ""),
  ],
)
def test_which_algorithms_take_any_reward(algorithm, changes, reason):
  bounded = build.build(tiny(algorithm, **changes)).bounded
  assert bounded.startswith(reason) and bool(bounded) == bool(reason)


@pytest.mark.parametrize("epochs,steps", [(1, 6), (3, 18)])
def test_the_schedule_ends_with_the_last_epoch(epochs, steps):
  """Three steps of 8 rollouts, in mini-batches of 4."""
  experiment = build.build(tiny(train__schedule="linear", train__epochs=epochs))
  assert experiment.update.optimizer_steps == steps
  passes = " in 3 passes" if epochs == 3 else ""
  assert f"{2 * epochs} optimizer steps of 4 sequences{passes}," in experiment.summary()
  with pytest.raises(UserError, match="train.epochs must be at least 1, got 0"):
    build.build(tiny(train__epochs=0))
