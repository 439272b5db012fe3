"""FLOPs of a run from its log."""

import json
import types

import jax
import numpy as np
import pytest

from experiments.claims import costs
from poise_jax import models
from poise_jax.data import tasks
from poise_jax.estimators import probe
from poise_jax.planning import flops
from poise_jax.reports.run_log import Run

MODEL = models.ModelConfig("qwen3", 30, 16, 24, 2, 2, 1, 8)
PROBE = {"buffer_rows": 100, "pca_prompt": 4, "pca_response": 0, "bootstrap_steps": 2}


@pytest.fixture
def log(tmp_path, monkeypatch):
  """A function that makes the log of a run. The prompts of its samples have 6 tokens on average,
  those of the training problems 8."""
  rows = [{"step": 1, "question": q, "reward": 0.0} for q in ("1+1", "12+34")]
  rows.append({"step": 1, "question": "1234567890", "reward": 1.0, "extra": True})
  (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  tokenizer = types.SimpleNamespace(encode=list, decode="".join, bos_ids=(), special_ids={})
  monkeypatch.setattr(models, "load_tokenizer", lambda source: tokenizer)
  problems = [types.SimpleNamespace(question=question) for question in ("1" * 4, "1" * 8)]
  task = types.SimpleNamespace(train=problems)
  monkeypatch.setattr(tasks, "make", lambda config, seed: task)
  monkeypatch.setattr(models, "read_config", lambda source: MODEL)

  def make(estimator, n, steps=1, minibatch=8, epochs=1, **row):
    config = {
      "estimator": estimator,
      "rollouts": 16,
      "rollout": {"n": n},
      "train": {"minibatch_size": minibatch, "old_logprobs": "recompute", "epochs": epochs},
      "probe": {**PROBE},
      "model": {"source": "x"},
      "seed": 0,
      "task": {"template": "{question} :"},
    }
    common = {"collect/generated": 16, "collect/tokens": 160.0, "rollout/length": 10.0, **row}
    rows = [{"step": 0}, *({"step": step, **common} for step in range(1, steps + 1))]
    return Run(tmp_path, config, rows, [])

  return make


def test_a_step_by_hand(log):
  (start, found) = costs.cumulative(log("rloo", 2))
  update = 16 * flops.training_flops(MODEL, 6, 1, 10)
  sampling = 8 * flops.sampling_flops(MODEL, 8, 2, 10)
  assert start == 0
  np.testing.assert_allclose(found, sampling + update * 4 / 3)
  (_, found) = costs.cumulative(log("rloo", 2, minibatch=16))  # no old log-probs to recompute
  np.testing.assert_allclose(found, sampling + update)


@pytest.mark.parametrize("estimator", ("rloo", "ppo", "sppo"))
def test_passes_repeat_the_updates_alone(log, estimator):
  """Of the policy and of a critic; old log-probs, sampling and predictions are computed once."""
  one, three = (costs.cumulative(log(estimator, 1, epochs=epochs))[-1] for epochs in (1, 3))
  update = 16 * flops.training_flops(MODEL, 6, 1, 10)
  critic = {"rloo": 0, "ppo": update, "sppo": 48 * flops.forward_flops(MODEL, 6, 0)}[estimator]
  np.testing.assert_allclose(three - one, 2 * (update + critic))
  (_, found) = costs.cumulative(log("rloo", 2, minibatch=16, epochs=2))
  sampling = 8 * flops.sampling_flops(MODEL, 8, 2, 10)
  np.testing.assert_allclose(found, sampling + update * (2 + 1 / 3))


def test_what_each_baseline_adds(log):
  total = {name: costs.cumulative(log(name, n))[-1] for name, n in (("ppo", 1), ("sppo", 1))}
  plain = costs.cumulative(log("spo", 1))[-1]
  update = 16 * flops.training_flops(MODEL, 6, 1, 10)
  np.testing.assert_allclose(total["ppo"] - plain, update * 4 / 3)
  np.testing.assert_allclose(total["sppo"] - plain, 64 * flops.forward_flops(MODEL, 6, 0))
  poise, rloo = (costs.cumulative(log(name, 2, steps=3)) for name in ("poise", "rloo"))
  fit = costs.probe_fit(100, 16, 4, 0)
  np.testing.assert_allclose(poise - rloo, [0, 0, fit, 2 * fit])  # from the bootstrap's end


@pytest.mark.parametrize(
  "shared, larger, count, rows",
  (
    ({}, {}, 3, 100),
    ({"a": "x", "b": "x"}, {}, 2, 100),
    ({"a": "x", "b": "x", "c": "x"}, {"x": 300}, 1, 300),
    ({"b": "a"}, {"c": 250}, 2, 250),
  ),
)
def test_every_probe_is_fitted_on_as_many_rows_as_the_largest_buffer_has(
  log, shared, larger, count, rows
):
  made = log("poise", 2, **{f"reward/domain/{name}": 0.5 for name in "abc"})
  made.config["probe"] |= {"domain_probes": shared, "domain_buffer_rows": larger}
  made.config["rollout"]["feature_layers"] = [1, 2]
  expected = count * costs.probe_fit(rows, 32, 4, 0)
  np.testing.assert_allclose(costs.probe_fits(made, 16), expected)


@pytest.mark.parametrize(
  "rows, width, components",
  ((2048, 256, (32, 64)), (2048, 256, (0, 64)), (512, 1024, (32, 0)), (900, 700, (0, 0))),
)
def test_a_fit_is_counted_as_it_is_computed(rows, width, components):
  """XLA counts its products and element-wise operations, but neither factors nor solves."""
  config = probe.ProbeConfig(pca_prompt=components[0], pca_response=components[1])
  shape = rows, 2 * width + costs.ENTROPIES
  data, targets = (jax.ShapeDtypeStruct(x, np.float32) for x in (shape, shape[:1]))
  counted = jax.jit(probe.fit, static_argnames="config").lower(data, targets, config=config)
  features = costs.ENTROPIES + sum(kept or width for kept in components)
  small = min(rows, features)
  solves = 2 * ((rows + features) * small**2 + small**3 / 3)
  expected = counted.cost_analysis()["flops"]
  np.testing.assert_allclose(
    costs.probe_fit(rows, width, *components) - solves, expected, rtol=0.08
  )


def test_minutes_are_those_of_steps_that_compile_nothing(log):
  """Two steps compile: they count as the median of the others. Rows of evaluations have no time."""
  made = log("rloo", 2, steps=7)
  for row, seconds in zip(made.rows[1:], (90.0, 2.0, 3.0, 4.0, 40.0, 3.0, 6.0), strict=True):
    row["time/step"] = seconds
  assert costs.steady(made).tolist() == [False, False, True, True, True, False, True, True]
  expected = np.cumsum([0, 3, 2, 3, 4, 3, 3, 6]) / 60
  np.testing.assert_allclose(costs.minutes(made), expected)


def test_what_is_discarded_costs_and_is_not_trained_on(log):
  plain = costs.cumulative(log("grpo", 8))[-1]
  more = {"collect/generated": 48, "collect/tokens": 480.0}
  wasted = costs.cumulative(log("grpo", 8, **more))[-1]
  np.testing.assert_allclose(wasted - plain, 4 * flops.sampling_flops(MODEL, 8, 8, 10))
  half = costs.cumulative(log("grpo", 8, **{"collect/groups": 1}))[-1]
  update = 8 * flops.training_flops(MODEL, 6, 1, 10)
  np.testing.assert_allclose(plain - half, update * 4 / 3)


def test_a_run_that_has_trained_on_nothing_costs_its_sampling(log):
  """Dynamic sampling may discard all groups: there are no samples then."""
  nothing = log("grpo", 8, **{"collect/groups": 0})
  (nothing.path / "samples.jsonl").write_text("")
  expected = 2 * flops.sampling_flops(MODEL, 8, 8, 10)
  np.testing.assert_allclose(costs.cumulative(nothing), [0, expected])
