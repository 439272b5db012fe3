"""Responses of several tokens without a model, for tests of estimators."""

import jax
import jax.numpy as jnp
import numpy as np

from poise_jax.types import Experience, Prompts, Rollouts

T = 5  # response positions


def experience_of(rewards, lengths, vocabulary=8, features=0, seed=0) -> Experience:
  """Responses [P, n] of given lengths, with their reward on the last token and random tokens."""
  rewards = np.asarray(rewards, np.float32)
  p, n = rewards.shape
  rng = np.random.default_rng(seed)
  lengths = np.reshape(lengths, (p, n, 1))
  mask = np.arange(T) < lengths
  zeros = np.zeros((p, n, T), np.float32)
  rollouts = Rollouts(
    prompts=Prompts(
      jnp.asarray(rng.integers(0, vocabulary, (p, 3)), jnp.int32), jnp.ones((p, 3), bool)
    ),
    tokens=jnp.asarray(rng.integers(0, vocabulary, (p, n, T)), jnp.int32),
    mask=jnp.asarray(mask),
    logprobs=jnp.asarray(zeros),
    entropies=jnp.asarray(zeros),
    truncated=jnp.zeros((p, n), bool),
    features=jnp.asarray(rng.normal(size=(p, n, features)), jnp.float32),
  )
  token_rewards = np.where(np.arange(T) == lengths - 1, rewards[..., None], 0)
  ids = jnp.arange(p, dtype=jnp.int32)
  reference = jnp.asarray(rng.integers(0, 2, (p, 3)), jnp.float32)
  return Experience(
    rollouts,
    jnp.asarray(rewards),
    jnp.asarray(token_rewards, jnp.float32),
    domains=0 * ids,
    prompt_ids=ids,
    reference_scores=reference,
  )


def padded(experience, groups):
  """The experience with groups of zeros after it, as dynamic sampling pads a step."""

  def pad(x):
    return jnp.concatenate([x, jnp.zeros((groups - len(x), *x.shape[1:]), x.dtype)])

  return jax.tree.map(pad, experience)
