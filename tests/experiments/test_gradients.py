"""Bias and variance of gradients where both are known, and the scores of a real policy."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import load
from tiny_run import tiny

from experiments import gradient_noise as noise
from poise_jax import files, models
from poise_jax.errors import UserError
from poise_jax.estimators import ProbeConfig, group

gradients = load("gradients")
P, N, S = 2000, 8, 12
WITHIN, BETWEEN = 3.0, 0.5  # total variances


@pytest.fixture(scope="module")
def answers():
  """Gradients of answers with known components around a known mean."""
  rng = np.random.default_rng(0)
  mean = np.linspace(-0.2, 0.2, S)
  prompts = rng.normal(0, np.sqrt(BETWEEN / S), (P, 1, S))
  return mean + prompts + rng.normal(0, np.sqrt(WITHIN / S), (P, N, S))


def test_products_of_means_are_free_of_noise(answers):
  mean = np.linspace(-0.2, 0.2, S)
  rows = answers.mean(1)
  np.testing.assert_allclose(noise.product(rows, rows), mean @ mean, atol=0.02)
  drawn = [noise.product(x, x) for x in np.random.default_rng(1).normal(size=(400, 5, S))]
  assert abs(np.mean(drawn)) < 0.15  # negative as often as positive; S / 5 = 2.4 without it


def test_components_and_the_formula(answers):
  within, between = noise.components(answers)
  np.testing.assert_allclose([within, between], [WITHIN, BETWEEN], rtol=0.05)
  for m in (1, 2, 4, 8):
    measured = noise.measured_variance(answers, batch=64, m=m)
    expected = (WITHIN + m * BETWEEN) / 64
    np.testing.assert_allclose(measured, expected, rtol=0.08)
    np.testing.assert_allclose(
      noise.predicted_variance(within, between, 64, m), expected, rtol=0.05
    )


@pytest.mark.parametrize(
  "between, holds", (((BETWEEN, BETWEEN), True), ((3.0, 3.0), True), ((0.1, 1.5), False))
)
def test_the_formula_predicts_prompts_like_those_of_its_parts_and_no_others(between, holds):
  rng = np.random.default_rng(9)
  scale = np.repeat(np.sqrt(between), P // 2)[:, None, None]
  rows = scale * rng.normal(0, np.sqrt(1 / S), (P, 1, S))
  rows = rows + rng.normal(0, np.sqrt(WITHIN / S), (P, N, S))
  for half in noise.by_halves(rows, 64, (1, N)).values():
    (one, measured), (base, predicted) = (half[x].values() for x in ("measured", "formula"))
    deviation = abs(measured / one / (predicted / base) - 1)
    assert (deviation < 0.1) == holds, deviation


@pytest.fixture(scope="module")
def policy():
  """Scores and rewards of a policy with one parameter per direction: answers right with p."""
  rng = np.random.default_rng(2)
  p = rng.uniform(0.1, 0.9, (P, 1))
  rewards = (rng.random((P, N)) < p).astype(np.float64)
  direction = np.abs(rng.normal(size=(P, 1, S)))
  return (rewards - p)[..., None] * direction, rewards, p


def test_a_baseline_that_depends_on_its_answer_is_biased(policy):
  scores, rewards, p = policy
  gradient = noise.of_prompts(scores, rewards - p)
  own = 0.5 * p + 0.3 * rewards  # its bias is -0.3 times the gradient
  np.testing.assert_allclose(noise.squared_bias(scores, own, p, gradient), 0.09, rtol=0.05)
  for unbiased in (np.broadcast_to(p, rewards.shape), rewards[:, ::-1]):
    assert abs(noise.squared_bias(scores, unbiased, 0.9 * p, gradient)) < 0.005


@pytest.mark.parametrize("share, bias", ((0.3, 0.09), (0.0, 0.0)))
def test_a_fixed_baseline_takes_noise_from_the_bias_but_no_bias(policy, share, bias):
  scores, rewards, p = policy
  fixed = np.random.default_rng(7).binomial(N, p) / N
  few = [slice(i, i + 40) for i in range(0, P, 40)]

  def of(fixed):
    return np.array(
      [
        noise.squared_bias(
          scores[s],
          share * rewards[s] + (1 - share) * p[s],
          fixed[s],
          noise.of_prompts(scores[s], rewards[s] - p[s]),
        )
        for s in few
      ]
    )

  new, old = of(fixed), of(np.zeros_like(fixed))
  for found in (new, old):
    assert abs(found.mean() - bias) < 3 * found.std() / np.sqrt(len(few))
  assert new.std() < 0.5 * old.std()


def test_a_better_baseline_leaves_less_variance(policy):
  scores, rewards, p = policy
  gradient = noise.of_prompts(scores, rewards - p)
  rloo = rewards - rewards.reshape(P, -1, 2)[..., ::-1].reshape(P, N)

  def left(advantages, m, kept=None):
    return noise.under_baseline(scores, advantages, m, gradient, 64, kept)

  ideal, worse = left(rewards - p, 1), left(rloo, 2)
  assert ideal["variance"] < 0.8 * worse["variance"] and ideal["adam"] < 0.8 * worse["adam"]
  assert ideal["kept"] == 1 and ideal["per sampled"] == ideal["variance"]
  plain = (rloo[..., None] * scores).reshape(P, N // 2, 2, S).mean(2).reshape(-1, S)
  np.testing.assert_allclose(worse["variance"], 2 * plain.var(0, ddof=1).sum())  # no scale
  dapo = left(np.asarray(group.grpo(rewards)), N, rewards)
  mixed = np.mean(rewards.std(1) > 0)
  np.testing.assert_allclose(dapo["kept"], mixed)
  np.testing.assert_allclose(dapo["per sampled"], dapo["variance"] / mixed)
  tripled = left(3 * np.asarray(group.grpo(rewards)), N, rewards)
  np.testing.assert_allclose(tripled["variance"], dapo["variance"], rtol=1e-6)
  np.testing.assert_allclose(tripled["adam"], dapo["adam"], rtol=1e-6)
  np.testing.assert_allclose(tripled["unscaled"], 9 * dapo["unscaled"], rtol=1e-6)
  assert ideal["unscaled"] == ideal["variance"]


@pytest.mark.parametrize("true, aside", ((1.0, 0.0), (1.0, 1.0), (2.0, 5.0), (0.0, 1.0)))
def test_a_gradient_beside_the_true_one_gains_nothing_by_its_angle(true, aside):
  """The mean is `true` times the true gradient and `aside` times one that is orthogonal to it."""
  rng = np.random.default_rng(8)
  coins = rng.choice([-1.0, 1.0], (2, P, N))
  directions = np.eye(2, S)
  scores = np.einsum("kpn,ks->pns", coins, directions) + 0.1 * rng.normal(size=(P, N, S))
  rewards = np.arange(N) % 2 * np.ones((P, 1))  # all groups count
  gradient = noise.of_prompts(scores, coins[0])
  advantages = true * coins[0] + aside * coins[1]
  found = noise.under_baseline(scores, advantages, N, gradient, 64, rewards)["variance"]
  plain = (advantages[..., None] * scores).mean(1).var(0, ddof=1).sum() * N
  if true:
    np.testing.assert_allclose(found, plain / true**2, rtol=0.25)
  else:
    assert found > 100 * plain


def test_the_proxy_is_adams():
  rng = np.random.default_rng(4)
  steps = rng.normal(0.3, 1, (7, S))
  mean, square = np.zeros(S), np.zeros(S)
  for g in steps:
    mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
  mean, square = mean / (1 - 0.9**7), square / (1 - 0.999**7)
  np.testing.assert_allclose(noise.adam_proxy(steps), (square - mean**2).sum())
  np.testing.assert_allclose(noise.adam_proxy(np.ones((5, S))), 0, atol=1e-9)


def test_sketches_keep_inner_products():
  rng = np.random.default_rng(5)
  a, b = ({"x": rng.normal(size=(30, 40)), "y": rng.normal(size=77)} for _ in range(2))
  b = {name: a[name] + 0.5 * b[name] for name in a}
  dense = [np.asarray(gradients.sketch(tree, 5000)) for tree in (a, b)]
  exact = sum((a[name] * b[name]).sum() for name in a)
  np.testing.assert_allclose(dense[0] @ dense[1], exact, rtol=1e-4)
  sketched = [np.asarray(gradients.sketch(tree, 509)) for tree in (a, b)]
  assert sketched[0].shape == (509,)
  np.testing.assert_allclose(sketched[0] @ sketched[1], exact, rtol=0.15)


def test_scores_are_gradients_of_log_probabilities():
  """Against autodiff of the plain forward pass, with padding on both sides."""
  model = models.ModelConfig("qwen3", 11, 16, 24, 1, 2, 1, 8, qk_norm=True)
  params = models.init(model, jax.random.key(0))
  prompt = jnp.array([0, 0, 3, 5]), jnp.array([False, False, True, True])
  tokens = jnp.array([[4, 9, 2, 0, 0], [7, 1, 1, 6, 2]])
  mask = jnp.array([[1, 1, 1, 0, 0], [1] * 5], bool)
  size = sum(x.size for x in jax.tree.leaves(params))
  found = np.asarray(gradients.scores(model, params, prompt, (tokens, mask), 0.7, size))
  for row, (response, length) in zip(found, ((tokens[0], 3), (tokens[1], 5)), strict=True):
    sequence = jnp.concatenate([prompt[0][2:], response[:length]])[None]

    def logprob(params, sequence=sequence, length=length):
      logits = models.forward(model, params, sequence, sequence >= 0).logits[0, 1:-1] / 0.7
      chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), sequence[0, 2:, None], 1)
      return chosen.sum()

    gradient = jax.jit(jax.grad(logprob))(params)
    expected = jnp.concatenate([x.ravel() for x in jax.tree.leaves(gradient)])
    np.testing.assert_allclose(row, expected, atol=2e-5)


def set_flags(monkeypatch, **values):
  for name, value in values.items():
    monkeypatch.setattr(gradients, name, types.SimpleNamespace(value=value))


def test_the_command_samples_once_for_its_config_and_writes_its_results(monkeypatch, tmp_path):
  set_flags(monkeypatch, PROMPTS=8, SAMPLES=4, BATCH=2, SIZE=64)
  changes = dict(warm_start__steps=0, probe__pca_prompt=2, probe__pca_response=2)
  config = tiny(**changes)
  gradients.measure(config, str(tmp_path / "out"))
  found = json.loads((tmp_path / "out" / "results.json").read_text())
  assert found["prompts"] == 8 and set(found["halves"]) == {"first half", "second half"}
  for half in found["halves"].values():
    assert set(half["measured"]) == set(half["formula"]) == {"1", "2"}
  names = {"own rollout, n = 1", "own rollout, n = 2", "poise", "rloo"}
  assert names <= set(found["squared bias"])
  assert {"poise, n = 2", "dapo, n = 4"} <= set(found["baselines"])
  data = np.load(tmp_path / "out" / "scores.npz")
  assert data["rewards"].shape == (8, 8) and data["scores"].shape == (8, 4, 64)
  assert np.isfinite(data["scores"]).all() and np.abs(data["scores"]).sum() > 0
  monkeypatch.setattr(gradients, "sample", None)  # must not be called
  gradients.measure(config, str(tmp_path / "out"))
  # They are of this config alone, though the folder has neither a checkpoint nor a log.
  options = dict(PROMPTS=8, SAMPLES=4, BATCH=2, SIZE=64)
  for flags, fields, message in (
    ({}, dict(seed=7, rollout__temperature=0.5), "temperature: 1.0 -> 0.5; seed: 2 -> 7"),
    (dict(SIZE=32), {}, "size: 64 -> 32"),
  ):
    set_flags(monkeypatch, **{**options, **flags})
    other = tiny(**{**changes, **fields})
    with pytest.raises(UserError, match=f"gradients with another configuration .*{message}"):
      gradients.measure(other, str(tmp_path / "out"))


def test_the_own_rollouts_probe_is_biased_and_the_siblings_is_not(policy):
  """Features with a noisy value and the answer's own reward, as those of a real response: the probe
  reads the response to know the value better, and so reads the reward, too."""
  scores, rewards, p = policy
  rng = np.random.default_rng(6)
  others = (rng.random((P, N)) < p).astype(np.float64)  # for the fixed baseline
  both = np.concatenate([others, rewards], 1)
  features = rng.normal(0, 0.2, (P, 2 * N, 7)).astype(np.float32)
  features[..., :2] = p[..., None] + rng.normal(0, 0.3, (P, 1, 2))
  features[..., 2:4] += (p + 0.5 * both)[..., None]
  found = gradients.analyse(both, features, scores, ProbeConfig(alpha=1.0), batch=64)
  bias = found["squared bias"]
  assert bias["own rollout, n = 2"] > 0.004
  assert bias["own rollout, n = 1"] > 4 * bias["own rollout, n = 2"]  # it fits its own reward
  for name in ("poise", "prompt only", "poise_sibling"):
    assert abs(bias[name]) < 3e-5, name
  left = {name: x["variance"] for name, x in found["baselines"].items()}
  assert left["poise, n = 2"] < left["rloo, n = 2"]


@pytest.mark.parametrize(
  "flags, message",
  (
    (dict(PROMPTS=8, SAMPLES=3, BATCH=4), "--samples=3 must be even"),
    (dict(PROMPTS=8, SAMPLES=4, BATCH=5), "--batch=5 must be at least 2 and at most a quarter"),
    (dict(PROMPTS=900, SAMPLES=4, BATCH=5), "--prompts=900 must not exceed"),
    (dict(PROMPTS=8, SAMPLES=4, BATCH=3), "--batch=3 must be at least 2 and at most a quarter"),
    (dict(PROMPTS=8, SAMPLES=4, BATCH=2, SIZE=0), "--size=0 must be at least 1"),
  ),
)
def test_sizes_that_cannot_work(monkeypatch, flags, message):
  set_flags(monkeypatch, **{"SIZE": 9, **flags})
  with pytest.raises(UserError, match=message):
    gradients.measure(tiny(warm_start__steps=0), "unused")


def test_where_all_rewards_are_equal_the_numbers_are_unknown():
  scores, features = np.ones((8, 4, 3)), np.zeros((8, 8, 7), np.float32)
  found = gradients.analyse(np.zeros((8, 8)), features, scores, ProbeConfig(alpha=1.0), batch=2)
  assert found["squared gradient"] == found["within"] == 0
  assert np.isnan(found["squared bias"]["rloo"])
  assert found["baselines"]["dapo, n = 4"]["kept"] == 0
  assert np.isnan(found["baselines"]["dapo, n = 4"]["variance"])
  json.dumps(files.known(found), allow_nan=False)
