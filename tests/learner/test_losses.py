"""Losses against an independent implementation in torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from poise_jax.learner.losses import (
  AGGREGATIONS,
  IMPORTANCE_LEVELS,
  KL_ESTIMATORS,
  PolicyLossConfig,
  accepted,
  kl_estimate,
  policy_loss,
  token_weights,
)


def torch_policy_loss(logprobs, old, advantages, mask, config, extra=None):
  """verl's formulas, token by token.

  Args:
    extra: entropies, reference_logprobs, sampler_logprobs.
  """
  rows = []
  for i in range(len(logprobs)):
    row = []
    log_ratios = (logprobs[i] - old[i])[torch.tensor(mask[i])]
    for t in range(logprobs.shape[1]):
      if not mask[i, t]:
        continue
      a = advantages[i, t if advantages.shape[1] > 1 else 0]
      ratio = torch.exp(logprobs[i, t] - old[i, t])
      if config.surrogate == "gspo":
        share = torch.exp(logprobs[i, t] - logprobs[i, t].detach())
        ratio = log_ratios.mean().exp().detach() * share
      bounded = torch.clamp(ratio, 1 - config.clip_low, 1 + config.clip_high)
      loss = torch.maximum(-a * ratio, -a * bounded)
      if config.surrogate == "cispo":
        loss = -bounded.detach() * a * logprobs[i, t]
      if config.dual_clip and a < 0:
        loss = torch.minimum(loss, -a * config.dual_clip)
      if config.importance_cap:
        off = (old[i] - torch.tensor(extra[2][i]))[torch.tensor(mask[i])]
        off = off.sum() if config.importance_level == "sequence" else off[t]
        loss = loss * torch.clamp(off.exp(), max=config.importance_cap)
      if config.kl_coef:
        d = logprobs[i, t] - extra[1][i, t]
        k = {"k1": d, "k2": d**2 / 2, "k3": torch.clamp(torch.exp(-d) - 1 + d, max=10)}[
          config.kl_estimator
        ]
        loss = loss + config.kl_coef * k
      if config.entropy_coef:
        loss = loss - config.entropy_coef * extra[0][i, t]
      row.append(loss)
    rows.append(row)
  responses = [row for row in rows if row]
  if config.aggregation == "token-mean":
    return sum(sum(row) for row in responses) / sum(len(row) for row in responses)
  if config.aggregation == "seq-mean-token-mean":
    return sum(sum(row) / len(row) for row in responses) / len(responses)
  if config.aggregation == "seq-mean-token-sum":
    return sum(sum(row) for row in responses) / len(responses)
  return sum(sum(row) for row in responses) / len(responses) / mask.shape[1]


LENGTHS = (9, 1, 0, 5, 9, 3)


def batch(per_token=False):
  """Log-ratios up to +-2.8, both signs of advantage, an empty response; no ratio on a bound, where
  a maximum has two gradients."""
  rng = np.random.default_rng(1)
  shape = (len(LENGTHS), max(LENGTHS))
  old = rng.normal(-2, 1, shape)
  ratios = np.array([0.06, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 5.0, 16.0])
  logprobs = old + np.log(rng.choice(ratios, shape))
  advantages = rng.normal(0, 1, shape if per_token else (shape[0], 1))
  advantages[3] = -np.abs(advantages[3])
  logprobs[3, :4] = old[3, :4] + np.log([16.0, 5.0, 0.06, 1.5])  # beyond both clips and dual clips
  mask = np.arange(shape[1]) < np.array(LENGTHS)[:, None]
  return [np.asarray(x, np.float32) for x in (logprobs, old, advantages)] + [mask]


@functools.partial(jax.jit, static_argnums=4)
def loss_and_grad(logprobs, old, advantages, mask, config, weights=None, extra=()):
  (loss, metrics), grad = jax.value_and_grad(policy_loss, has_aux=True)(
    logprobs, old, advantages, mask, config, weights, *extra
  )
  return loss, grad, metrics


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("dual_clip", [0.0, 3.0, 10.0])
def test_policy_loss_equals_torch(aggregation, dual_clip):
  config = PolicyLossConfig(0.2, 0.28, dual_clip, aggregation)
  for per_token in (False, True):
    logprobs, old, advantages, mask = batch(per_token)
    loss, grad, metrics = loss_and_grad(logprobs, old, advantages, mask, config)
    leaf = torch.tensor(logprobs, requires_grad=True)
    expected = torch_policy_loss(leaf, torch.tensor(old), torch.tensor(advantages), mask, config)
    expected.backward()
    np.testing.assert_allclose(loss, expected.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad, leaf.grad, rtol=1e-5, atol=1e-5)
    assert not np.asarray(grad)[~mask].any()
    if dual_clip:
      assert metrics["policy/dual_clip_fraction"] > 0


def extras(old):
  """Entropies, reference and sampler log-probs; importance ratios on both sides of a cap of 2."""
  rng = np.random.default_rng(2)
  off = np.log(rng.choice([0.3, 0.9, 1.1, 3.0], old.shape))
  return [
    np.asarray(x, np.float32)
    for x in (rng.random(old.shape), old + rng.normal(0, 0.5, old.shape), old - off)
  ]


@pytest.mark.parametrize(
  "changes",
  [
    dict(surrogate="gspo"),
    dict(surrogate="gspo", clip_low=3e-4, clip_high=4e-4, aggregation="seq-mean-token-mean"),
    dict(surrogate="cispo"),
    dict(surrogate="cispo", clip_low=1.0, clip_high=4.0),
    *(dict(kl_coef=0.1, kl_estimator=name) for name in KL_ESTIMATORS),
    *(dict(importance_cap=2.0, importance_level=name) for name in IMPORTANCE_LEVELS),
    dict(entropy_coef=0.01, dual_clip=3.0),
    dict(surrogate="cispo", kl_coef=0.1, entropy_coef=0.1, importance_cap=2.0),
  ],
  ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_other_surrogates_and_terms_equal_torch(changes):
  config = PolicyLossConfig(**{"clip_high": 0.28, **changes})
  for per_token in (False, True):
    logprobs, old, advantages, mask = batch(per_token)
    extra = extras(old)
    loss, grad, metrics = loss_and_grad(logprobs, old, advantages, mask, config, None, extra)
    leaf = torch.tensor(logprobs, requires_grad=True)
    expected = torch_policy_loss(
      leaf, torch.tensor(old), torch.tensor(advantages), mask, config, extra
    )
    expected.backward()
    np.testing.assert_allclose(loss, expected.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(grad, leaf.grad, rtol=1e-5, atol=1e-5)
    assert np.abs(grad).max() > 1e-3
    assert ("policy/reference_kl" in metrics) == bool(config.kl_coef)
    assert ("rollout/importance_weight" in metrics) == bool(config.importance_cap)


def test_the_entropy_bonus_has_a_gradient():
  """It flows through the entropies, the second output of token_logprobs."""
  logprobs, old, advantages, mask = batch()
  config = PolicyLossConfig(entropy_coef=0.5)
  grad = jax.grad(lambda e: policy_loss(logprobs, old, advantages, mask, config, None, e)[0])
  np.testing.assert_allclose(grad(extras(old)[0]), -0.5 * mask / mask.sum(), rtol=1e-6)


def test_kl_estimates_are_unbiased_and_have_the_gradient_of_the_kl():
  """Checked by sums over a vocabulary of 5."""
  rng = np.random.default_rng(0)
  logits, reference = rng.normal(size=5), jax.nn.log_softmax(rng.normal(size=5))

  def kl(logits):
    log_p = jax.nn.log_softmax(logits)
    return (jnp.exp(log_p) * (log_p - reference)).sum()

  def estimate(logits, name):  # expectation over tokens, whose probabilities have no gradient
    log_p = jax.nn.log_softmax(logits)
    p = jax.lax.stop_gradient(jnp.exp(log_p))
    return (p * kl_estimate(log_p[None], reference[None], name)[0]).sum()

  for name in ("k1", "k3"):
    np.testing.assert_allclose(estimate(logits, name), kl(logits), rtol=1e-5)
  assert abs(estimate(logits, "k2") / kl(logits) - 1) > 0.01
  np.testing.assert_allclose(jax.grad(estimate)(logits, "k1"), 0.0, atol=1e-6)
  exact = jax.grad(kl)(logits)
  np.testing.assert_allclose(jax.grad(estimate)(logits, "k2"), exact, rtol=1e-4)
  assert np.abs(jax.grad(estimate)(logits, "k3") - exact).max() > 0.01


@pytest.mark.parametrize("distance", [-60.0, -15.0, 15.0, 60.0])
def test_tokens_far_from_the_reference_are_pulled_back(distance):
  """k1 and k2 have no bound; k3 has verl's, beyond which its gradient is zero."""
  value, gradient = jax.vmap(jax.value_and_grad(lambda x: kl_estimate(x, jnp.float32(-3), "k2")))(
    jnp.array([distance - 3])
  )
  np.testing.assert_allclose([value[0], gradient[0]], [distance**2 / 2, distance], rtol=1e-6)
  assert kl_estimate(jnp.float32(distance - 3), jnp.float32(-3), "k1") == distance
  assert 0 < kl_estimate(jnp.float32(distance - 3), jnp.float32(-3), "k3") <= 10


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("surrogate", ["ppo", "gspo", "cispo"])
def test_entries_outside_of_the_mask_have_no_influence(aggregation, surrogate):
  config = PolicyLossConfig(
    dual_clip=3.0 * (surrogate == "ppo"),
    aggregation=aggregation,
    surrogate=surrogate,
    kl_coef=0.1,
    entropy_coef=0.1,
    importance_cap=2.0,
    importance_level="sequence",
  )
  logprobs, old, advantages, mask = batch(per_token=True)
  arrays = (logprobs, old, advantages, *extras(old))

  def results(arrays):
    return jax.tree.leaves(loss_and_grad(*arrays[:3], mask, config, None, arrays[3:]))

  clean = results(arrays)
  for bad in (np.nan, np.inf, -np.inf):
    dirty = [np.where(mask, x, bad).astype(np.float32) for x in arrays]
    for a, b in zip(clean, results(dirty), strict=True):
      np.testing.assert_array_equal(a, b)


def test_an_empty_batch_has_no_loss_and_no_gradient():
  logprobs, old, advantages, mask = batch()
  for aggregation in AGGREGATIONS:
    config = PolicyLossConfig(aggregation=aggregation)
    loss, grad, metrics = loss_and_grad(logprobs, old, advantages, mask & False, config)
    assert not any(np.any(x) for x in jax.tree.leaves((loss, grad, metrics)))


@pytest.mark.parametrize(
  "advantage,ratio,loss,slope",
  [  # slope: d loss / d log-prob; the bounds are 0.8 and 1.28
    (1.0, 2.0, -1.28, 0.0),  # good and likelier than before: clipped
    (1.0, 0.5, -0.5, -0.5),  # good and less likely: not clipped
    (-1.0, 0.5, 0.8, 0.0),  # bad and less likely than before: clipped
    (-1.0, 2.0, 2.0, 2.0),  # bad and likelier: not clipped
    (-1.0, 5.0, 3.0, 0.0),  # dual clip at 3
    (1.0, 5.0, -1.28, 0.0),  # dual clip applies to negative advantages only
  ],
)
def test_the_sign_of_the_advantage_decides_which_bound_holds(advantage, ratio, loss, slope):
  config = PolicyLossConfig(0.2, 0.28, 3.0)
  old = np.full((1, 1), -1.0, np.float32)
  logprob = old + np.log(np.float32(ratio))
  mask = np.ones((1, 1), bool)
  actual, grad, metrics = loss_and_grad(
    logprob, old, np.full((1, 1), advantage, np.float32), mask, config
  )
  np.testing.assert_allclose(actual, loss, rtol=1e-5)
  np.testing.assert_allclose(grad[0, 0], slope, rtol=1e-5, atol=1e-6)
  clipped = (advantage > 0 and ratio > 1.28) or (advantage < 0 and ratio < 0.8)
  assert float(metrics["policy/clip_fraction"]) == clipped
  assert float(metrics["policy/dual_clip_fraction"]) == (loss == 3.0)
  np.testing.assert_allclose(metrics["policy/kl"], ratio - 1 - np.log(ratio), rtol=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_losses_of_micro_batches_sum_to_that_of_the_mini_batch(aggregation):
  config = PolicyLossConfig(0.2, 0.28, 3.0, aggregation)
  arrays = batch()
  whole, grad, _ = loss_and_grad(*arrays, config)
  weights = token_weights(arrays[-1], aggregation)
  assert not np.asarray(weights)[~arrays[-1]].any()
  for size in (1, 2, 3):
    parts = [
      loss_and_grad(*[x[i : i + size] for x in arrays], config, weights[i : i + size])
      for i in range(0, len(LENGTHS), size)
    ]
    np.testing.assert_allclose(sum(p[0] for p in parts), whole, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), grad, rtol=1e-5, atol=1e-7)


def test_weights_of_each_aggregation():
  mask = np.arange(4) < np.array([4, 1, 0])[:, None]
  expected = {
    "token-mean": [1 / 5, 1 / 5, 0],
    "seq-mean-token-mean": [1 / 8, 1 / 2, 0],  # the empty response does not count
    "seq-mean-token-sum": [1 / 2, 1 / 2, 0],
    "seq-mean-token-sum-norm": [1 / 8, 1 / 8, 0],
  }
  assert set(expected) == set(AGGREGATIONS)
  for aggregation, values in expected.items():
    weights = token_weights(jnp.asarray(mask), aggregation)
    np.testing.assert_allclose(weights, mask * np.array(values)[:, None], rtol=1e-6)


@pytest.mark.parametrize(
  "change,message",
  [
    (
      dict(aggregation="token-sum"),
      "unknown train.loss.aggregation 'token-sum'; did you mean '.*'.*token-mean",
    ),
    (dict(clip_low=1.1), r"train.loss.clip_low must be in \[0, 1\] .*got 1.1"),
    (dict(clip_low=-0.1), r"train.loss.clip_low must be in \[0, 1\] .*got -0.1"),
    (dict(clip_high=-0.1), "train.loss.clip_high must not be negative, got -0.1"),
    (dict(dual_clip=1.0), "train.loss.dual_clip must be above 1.*got 1.0"),
    (dict(dual_clip=-3.0), "train.loss.dual_clip must be above 1.*got -3.0"),
    (dict(dual_clip=3.0, surrogate="gspo"), "dual_clip=3.0 needs .*surrogate='ppo', got 'gspo'"),
    (dict(surrogate="dpo"), "unknown train.loss.surrogate 'dpo'.*cispo, gspo, ppo"),
    (dict(kl_estimator="k4"), "unknown train.loss.kl_estimator 'k4'.*k1, k2, k3"),
    (
      dict(importance_level="batch"),
      "unknown train.loss.importance_level 'batch'.*sequence, token",
    ),
    (dict(kl_coef=-1.0), "train.loss.kl_coef must not be negative, got -1.0"),
    (dict(importance_cap=-1.0), "train.loss.importance_cap must not be negative, got -1.0"),
  ],
)
def test_bad_options_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    PolicyLossConfig(**change)


def test_an_unknown_aggregation_of_weights_is_named():
  with pytest.raises(ValueError, match="unknown aggregation 'sum'.*token-mean"):
    token_weights(jnp.ones((1, 1), bool), "sum")


@pytest.mark.parametrize("rejection", ["token", "sequence", "geometric"])
def test_rejection_by_a_loop_over_responses(rejection):
  """Ratios out of [0.5, 3] leave out a token, or a response by their product or geometric mean."""
  rng = np.random.default_rng(3)
  lengths = [6, 1, 4, 0, 6, 5]
  mask = np.arange(6) < np.array(lengths)[:, None]
  # Noise, a drift that only a product sees, one wild token, and padding that must not be read.
  ratios = rng.normal(0.0, 0.1, mask.shape) + np.array([0, 2.0, 0.4, 0, 0, -0.3])[:, None]
  ratios[4, 2] = 3.0
  sampler = rng.normal(-1.0, 0.2, mask.shape)
  old = np.where(mask, sampler + ratios, np.nan)
  low, high = np.log(0.5), np.log(3.0)
  expected = np.zeros_like(mask)
  for b, length in enumerate(lengths):
    for t in range(length):
      value = {
        "token": ratios[b, t],
        "sequence": sum(ratios[b, :length]),
        "geometric": sum(ratios[b, :length]) / length,
      }[rejection]
      expected[b, t] = low <= value <= high
  config = PolicyLossConfig(rejection=rejection, rejection_low=0.5, rejection_high=3.0)
  found = np.asarray(accepted(*map(jnp.float32, (old, sampler)), mask, config))
  np.testing.assert_array_equal(found, expected)
  assert found.any() and (found != mask).any()
  assert rejection == "token" or all(len(set(found[b, :n])) <= 1 for b, n in enumerate(lengths))


@pytest.mark.parametrize("low,high", [(0.0, 2.0), (1.5, 2.0), (0.5, 0.9)])
def test_bounds_of_rejection_are_around_one(low, high):
  with pytest.raises(ValueError, match=r"rejection_low must be in \(0, 1\] and .*rejection_high"):
    PolicyLossConfig(rejection="token", rejection_low=low, rejection_high=high)
