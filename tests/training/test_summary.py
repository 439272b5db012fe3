"""Metrics of a step on the device, against NumPy on the groups that are not padding."""

import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax.training import summary
from poise_jax.types import Experience, Prompts, Rollouts

P, N, T, REAL = 6, 3, 7, 4  # groups, of which the first REAL are not padding
NAMES = ("easy", "hard", "medium")
DIFFICULTIES = np.array([0, 2, 2, 0, 1, 1], np.int32)  # "hard" occurs in padding only


@pytest.fixture(scope="module")
def experience():
  """Responses of 1 to T tokens. Padding has other values than zero, so that it would show."""
  rng = np.random.default_rng(0)
  mask = np.arange(T) < rng.integers(1, T + 1, (P, N, 1))
  rewards = rng.normal(size=(P, N, T)).astype(np.float32)
  rollouts = Rollouts(
    prompts=Prompts(np.zeros((P, 2), np.int32), np.ones((P, 2), bool)),
    tokens=rng.integers(0, 9, (P, N, T)).astype(np.int32),
    mask=mask,
    logprobs=np.zeros((P, N, T), np.float32),
    entropies=np.where(mask, rng.random((P, N, T)), 0).astype(np.float32),
    truncated=mask[..., -1],
    features=np.zeros((P, N, 2), np.float32),
    decode_rows=np.full((P, N), 9.0, np.float32),
  )
  return Experience(
    rollouts,
    scores=rng.random((P, N)).astype(np.float32),
    token_rewards=np.where(mask, rewards, 0),
    domains=np.array([1, 0, 1, 1, 0, 0], np.int32),
    prompt_ids=np.arange(P, dtype=np.int32),
  )


@pytest.mark.parametrize("shape", [(P, N), (P, N, T)], ids=["per response", "per token"])
def test_metrics_are_those_of_the_groups_that_are_not_padding(experience, shape):
  advantages = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  baselines = np.random.default_rng(2).normal(size=(P, N)).astype(np.float32)
  rewards = experience.token_rewards.sum(-1)
  baselines += rewards.mean(1, keepdims=True)
  baselines[REAL:] = np.nan
  metrics = summary.metrics(
    experience, advantages, baselines, DIFFICULTIES, jnp.int32(REAL), NAMES, ("maths", "words")
  )
  rewards, baselines = rewards[:REAL], baselines[:REAL]
  lengths = experience.rollouts.mask[:REAL].sum(-1)
  expected = {
    "rollout/useful_rows": (lengths - 1).sum() / (9 * REAL * N),
    "reward/mean/easy": rewards[[0, 3]].mean(),
    "reward/mean/hard": np.nan,
    "reward/mean/medium": rewards[[1, 2]].mean(),
    "baseline/mean/easy": baselines[[0, 3]].mean(),
    "baseline/mean/hard": np.nan,
    "baseline/mean/medium": baselines[[1, 2]].mean(),
    "reward/domain/maths": rewards[1].mean(),
    "reward/domain/words": rewards[[0, 2, 3]].mean(),
    "baseline/domain/maths": baselines[1].mean(),
    "baseline/domain/words": baselines[[0, 2, 3]].mean(),
    "baseline/mean": baselines.mean(),
    "baseline/pearson": np.corrcoef(baselines.ravel(), rewards.ravel())[0, 1],
    "baseline/ceiling": ceiling(rewards),
    "baseline/variance_reduction": 1 - (rewards - baselines).var() / rewards.var(),
    "reward/mean": rewards.mean(),
    "reward/std": rewards.std(),
    "reward/score": experience.scores[:REAL].mean(),
    "advantage/std": advantages[:REAL].std(),
    "rollout/tokens": lengths.sum(),
    "rollout/length": lengths.mean(),
    "rollout/truncated_fraction": experience.rollouts.truncated[:REAL].mean(),
    "rollout/entropy": experience.rollouts.entropies[:REAL].sum() / lengths.sum(),
  }
  assert set(metrics) == set(expected)
  for name, value in expected.items():
    assert metrics[name].shape == ()
    assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5, nan_ok=True), name


def ceiling(rewards):
  """The noise ceiling from the table of a one-way analysis of variance."""
  within = rewards.var(1, ddof=1).mean()
  value = max(rewards.mean(1).var(ddof=1) - within / N, 0)
  return np.sqrt(value / (value + within))


def test_groups_chosen_by_their_rewards_have_no_ceiling(experience):
  rewards = experience.token_rewards.sum(-1)
  chosen = experience.replace(age=np.zeros(P, np.int32))
  metrics = summary.metrics(chosen, rewards, rewards, DIFFICULTIES, jnp.int32(REAL), NAMES)
  assert np.isnan(metrics["baseline/ceiling"]) and metrics["baseline/pearson"] == pytest.approx(1)


def test_one_domain_has_no_metrics_of_its_own(experience):
  rewards = experience.token_rewards.sum(-1)
  metrics = summary.metrics(
    experience, rewards, rewards, DIFFICULTIES, jnp.int32(REAL), NAMES, ("maths",)
  )
  assert not [name for name in metrics if "/domain/" in name]


def test_all_finite_reads_every_array():
  tree = {"a": np.ones((2, 3), np.float32), "b": (np.zeros(4, np.float32),)}
  assert summary.all_finite(tree)
  for value in (np.nan, np.inf, -np.inf):
    assert not summary.all_finite({**tree, "c": np.array([0.0, value], np.float32)})
