"""Evaluation of a random policy: sampling, verdicts and metrics."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import quickstart
from poise_jax import models, verifiers
from poise_jax.data import tasks
from poise_jax.distributed import sharding
from poise_jax.evaluation import answer
from poise_jax.evaluation.answer import EvalConfig
from poise_jax.evaluation.held_out import make_sets
from poise_jax.rollout import RolloutConfig
from poise_jax.training import build

CONFIG = quickstart.get_config()
CONFIG.task.update(name="arithmetic", think_end="", train=60, test=10, max_prompt_length=8)
CONFIG.task.arithmetic.kinds = ("1+", "1-")
SAMPLED = EvalConfig(n=3, temperature=1.0)


def odd(checks, responses):
  """Verdicts that a random policy often passes: whether the length of the response is odd."""
  return [
    verifiers.Verdict(float(len(text) % 2), "ok" if len(text) else "crashed") for text in responses
  ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  path.write_bytes(build.train_tokenizer(tasks.make(CONFIG.task, 0), CONFIG.task.template))
  return models.load_tokenizer(path)


@pytest.fixture(scope="module")
def answers(tokenizer):
  """answer.answer as a function of the held-out set and the sampling options."""
  model = models.ModelConfig("llama", tokenizer.vocab_size, 16, 16, 1, 2, 1, 8)
  rng = np.random.default_rng(0)  # models.init would compile for seconds
  shapes = models.abstract_params(model)
  params = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype), shapes)
  params = models.sampling_params(model, params, np.float32)
  ends = dict(eos_ids=tuple(tokenizer.eos_ids), pad_id=tokenizer.pad_id)
  base = RolloutConfig(max_new_tokens=6, feature_layers=(0,), **ends)
  mesh = sharding.make_mesh()

  def answers(test, options, batch=4, start=0, score=odd):
    rollout, seed = options.rollout(base), options.seed
    return list(answer.answer(model, params, test, rollout, seed, batch, mesh, score, start))

  answers.arguments = (model, params, base, mesh)
  return answers


@pytest.fixture(scope="module")
def test_set(tokenizer):
  return make_sets(CONFIG, tokenizer)[0]


def test_every_answer_has_its_verdict(answers, test_set):
  scored = []

  def score(checks, responses):
    scored.extend(zip(checks, responses, strict=True))
    return odd(checks, responses)

  rows = [row for batch in answers(test_set, SAMPLED, score=score) for row in batch]
  assert [(row["prompt"], row["sample"]) for row in rows] == list(np.ndindex(10, 3))
  assert [row["response"] for row in rows] == [response for _, response in scored]
  for row, (check, response) in zip(rows, scored, strict=True):
    example = test_set.examples[row["prompt"]]
    assert (check, row["answer"], row["question"]) == (
      example.check,
      example.answer,
      example.question,
    )
    assert row["reward"] == len(response) % 2
    assert row["status"] == ("ok" if response else "crashed")
    assert 1 <= row["tokens"] <= 6 and row["truncated"] in (True, False)
    assert row["truncated"] <= (row["tokens"] == 6)
  assert len({row["response"] for row in rows}) > 20  # samples of a prompt differ


def test_draws_depend_on_seed_set_and_prompt_alone(answers, test_set, monkeypatch):
  """10 prompts, of which 10 or 4 are answered at once, in one call or in three."""
  (whole,), (queued,) = answers(test_set, SAMPLED, batch=10), answers(test_set, SAMPLED)
  assert queued == whole
  monkeypatch.setattr(answer, "QUEUE", 1)
  parts = answers(test_set, SAMPLED)
  assert [len(part) for part in parts] == [12, 12, 6]
  assert [row for part in parts for row in part] == whole
  assert answers(test_set, SAMPLED, start=1) == parts[1:]
  responses = [row["response"] for row in parts[0]]
  for other in (
    answers(test_set, dataclasses.replace(SAMPLED, seed=1)),
    answers(dataclasses.replace(test_set, name="another"), SAMPLED),
  ):
    assert [row["response"] for row in other[0]] != responses


@pytest.mark.parametrize(
  "prompts,at_once,shards,expected",
  [
    (10, 4, 1, 10),
    (10, 64, 8, 16),  # a multiple of the shards
    (100, 4, 1, 25),  # four calls of at most 32, all alike
    (33, 4, 2, 18),
  ],
)
def test_calls_are_few_and_alike(test_set, prompts, at_once, shards, expected):
  test = dataclasses.replace(test_set, examples=[test_set.examples[0]] * prompts)
  mesh = sharding.make_mesh(fsdp=shards, devices=shards)
  assert answer.prompts_per_call(test, at_once, mesh) == expected


def test_metrics_of_an_evaluation_in_training(answers, test_set):
  model, params, base, mesh = answers.arguments
  twice = [test_set, dataclasses.replace(test_set, name="again")]
  metrics, greedy, sampled = answer.evaluate(model, params, twice, base, SAMPLED, 4, mesh, odd)
  assert len(greedy) == 20 and len(sampled) == 60
  accuracy = np.mean([row["reward"] for row in greedy])
  assert metrics["eval/accuracy"] == pytest.approx(accuracy)
  assert metrics["eval/accuracy_se"] == pytest.approx((accuracy * (1 - accuracy) / 20) ** 0.5)
  assert metrics["eval/truncated_fraction"] == np.mean([row["truncated"] for row in greedy])
  group = [row for row in greedy if row["task"] == "again" and row["difficulty"] == "1+"]
  assert metrics["eval/accuracy/again/1+"] == np.mean([row["reward"] for row in group])
  assert {"eval/accuracy/again", "eval/accuracy/held_out/1-"} < set(metrics)
  rewards = np.array([row["reward"] for row in sampled]).reshape(20, 3)
  assert metrics["eval/avg_at_3"] == pytest.approx(rewards.mean())
  assert metrics["eval/avg_at_3_se"] == pytest.approx(rewards.mean(1).std() / 20**0.5)
  assert metrics["eval/pass_at_3"] == pytest.approx(rewards.max(1).mean())
  names = {f"eval/{name}_at_{k}" for name in ("pass", "maj") for k in (1, 2, 3)}
  names.add("eval/avg_at_3")
  assert {name for name in metrics if "_at_" in name} == names | {f"{name}_se" for name in names}
  greedy_metrics, _, sampled = answer.evaluate(
    model, params, twice, base, EvalConfig(), 4, mesh, odd
  )
  assert greedy_metrics == {k: value for k, value in metrics.items() if "_at_" not in k}
  assert sampled == []


def row(task, prompt, sample, reward, vote, difficulty, status="ok", domain="d"):
  row = dict(task=task, prompt=prompt, sample=sample, reward=reward, vote=vote, domain=domain)
  return row | dict(difficulty=difficulty, status=status, tokens=sample + 1, truncated=False)


def test_metrics_per_prompt_by_hand():
  rows = [
    row("t", 0, 0, 1.0, "7", "easy"),
    row("t", 0, 1, 1.0, "7", "easy"),
    row("t", 0, 2, 0.0, "8", "easy"),
    row("t", 1, 0, 0.5, "1", "hard"),
    row("t", 1, 1, 0.0, None, "hard", "timed_out"),
    row("t", 1, 2, 0.0, None, "hard", "unparsable"),
  ]
  values = answer.per_prompt(rows, (1, 2, 3))
  expected = {
    "avg@3": [2 / 3, 1 / 6],
    "pass@1": [2 / 3, 0],  # a score of 0.5 is not right
    "pass@2": [1, 0],
    "pass@3": [1, 0],
    "maj@1": [2 / 3, 1 / 6],
    "maj@2": [2 / 3, 1 / 3],
    "maj@3": [1, 1 / 2],  # abstentions do not outvote the one vote
    "truncated": [0, 0],
    "tokens": [2, 2],
    "timed_out": [0, 1 / 3],
    "unparsable": [0, 1 / 3],
  }
  assert list(values) == list(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(values[name], value, atol=1e-12, err_msg=name)
  assert {name: len(group) for name, group in answer.by_group(rows).items()} == {
    "": 6,
    "easy": 3,
    "hard": 3,
  }


def test_group_names_leave_out_constant_levels():
  rows = [
    row("a", 0, 0, 1.0, "", "easy", domain="x"),
    row("a", 1, 0, 1.0, "", "", domain="y"),
    row("b", 0, 0, 1.0, "", "easy", domain="x"),
  ]
  names = {name: len(group) for name, group in answer.by_group(rows).items()}
  assert names == {"": 3, "a": 2, "a/x": 1, "a/x/easy": 1, "a/y": 1, "b": 1, "b/x": 1} | {
    "b/x/easy": 1
  }
  assert list(answer.by_group(rows[:1])) == [""]
  same = [row("a", i, 0, 1.0, "", name, domain=name) for i, name in enumerate("xy")]
  assert list(answer.by_group(same)) == ["", "x", "y"]  # not "x/x"


@pytest.mark.parametrize(
  "fields,message",
  [
    (dict(n=0), r"eval.n must be in \[1, 1000\], got 0"),
    (dict(n=4, temperature=1.0, k=(1, 8)), r"eval.k=\(1, 8\) contains 8, .* \[1, eval.n=4\]"),
    (dict(n=4, temperature=1.0, k=(0,)), r"eval.k=\(0,\) contains 0"),
    (dict(n=2), "eval.n=2 answers at eval.temperature=0 would all be the same"),
    (dict(top_p=0.0), "eval.top_p must be .*, got 0.0"),
    (dict(temperature=-1.0), "eval.temperature must .*, got -1.0"),
    (dict(best_by="accuracy"), "unknown eval.best_by 'accuracy'; .*greedy; sampled answers need"),
    (dict(best_by="avg@8"), "choose from greedy; .* need eval.temperature above 0 and eval.n"),
    (dict(n=4, temperature=1.0, best_by="avg@8"), "did you mean 'avg@4'"),
    (dict(n=4, temperature=1.0, k=(4,), best_by="pass@2"), "did you mean 'pass@4'"),
    (dict(max_new_tokens=-1), "eval.max_new_tokens must be at least 1, got -1"),
  ],
)
def test_values_out_of_range_are_an_error(fields, message):
  with pytest.raises(ValueError, match=message):
    EvalConfig(**fields)


def test_what_best_may_go_by():
  assert EvalConfig().names == ("greedy",)
  names = ("greedy", "avg@4", "pass@1", "pass@4", "maj@1", "maj@4")
  for name in names:
    assert EvalConfig(n=4, temperature=0.5, k=(1, 4), best_by=name).names == names


def test_default_ks_are_powers_of_two_and_n():
  assert EvalConfig().ks == (1,)
  assert EvalConfig(n=6, temperature=1.0).ks == (1, 2, 4, 6)
  assert EvalConfig(n=6, temperature=1.0, k=(5, 1)).ks == (1, 5)
