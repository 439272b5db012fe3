"""The report of a step: metrics, reduced on the device, and a few responses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from poise_jax import models
from poise_jax.distributed import sharding
from poise_jax.training.build import Experiment
from poise_jax.types import Estimate, Experience


@functools.partial(jax.jit, static_argnums=4)
def metrics(
  experience: Experience,
  advantages: Float[Array, "P n"] | Float[Array, "P n T"],
  difficulties: Int[Array, " P"],
  groups: Int[Array, ""],
  names: tuple[str, ...],
) -> dict[str, Float[Array, ""]]:
  """Metrics of the groups that a step trained on.

  Args:
    experience: P groups.
    advantages: per response, or per token.
    difficulties: indices into `names`.
    groups: number of groups, at the front, that are not padding; at least 1.
    names: difficulties of the training set.

  Returns:
    Scalars: means and standard deviations over responses (advantages: over responses or token
    positions), reward/mean/<difficulty>, which is NaN if the step has no prompt of that difficulty,
    lengths in tokens and the entropy in nats per token.
  """
  rewards, rollouts = experience.rewards, experience.rollouts
  real = jnp.arange(len(rewards)) < groups

  def mean(x):
    return jnp.mean(x, where=real.reshape(-1, *[1] * (x.ndim - 1)))

  def std(x):
    return jnp.std(x, where=real.reshape(-1, *[1] * (x.ndim - 1)))

  lengths = jnp.where(real[:, None], rollouts.mask.sum(-1), 0)
  by_difficulty = jnp.where(real, difficulties, len(names)) == jnp.arange(len(names))[:, None]
  means = jax.vmap(lambda where: jnp.mean(rewards, where=where[:, None]))(by_difficulty)
  return {
    **{f"reward/mean/{name}": means[i] for i, name in enumerate(names)},
    "reward/mean": mean(rewards),
    "reward/std": std(rewards),
    "reward/score": mean(experience.scores),
    "advantage/std": std(advantages),
    "rollout/tokens": lengths.sum(),
    "rollout/length": mean(lengths),
    "rollout/truncated_fraction": mean(rollouts.truncated),
    "rollout/entropy": jnp.where(real[:, None, None], rollouts.entropies, 0).sum() / lengths.sum(),
  }


@jax.jit
def all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
  """Whether every entry of every array is finite."""
  return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


@functools.partial(jax.jit, static_argnums=1)
def _first(tree, count):
  return jax.tree.map(lambda x: x[:count], tree)


def samples(
  experiment: Experiment, step: int, experience: Experience, estimate: Estimate, groups: int
) -> list[dict]:
  """Responses as rows of samples.jsonl; only these are fetched.

  Args:
    experiment: task and tokenizer.
    step: number of the training step.
    experience: P groups.
    estimate: their estimate.
    groups: number of groups, from the first.
  """
  if not groups:
    return []
  batch = (experience, estimate.baselines, estimate.advantages)
  experience, baselines, advantages = sharding.fetch(_first(batch, groups))
  rollouts, rewards = experience.rollouts, experience.rewards
  entropies = rollouts.entropies.astype(np.float64).round(3)  # nats
  tokenizer, rows = experiment.encoder.tokenizer, []
  for p, i in np.ndindex(rewards.shape):
    example, mask = experiment.task.train[experience.prompt_ids[p]], rollouts.mask[p, i]
    ids = rollouts.tokens[p, i][mask].tolist()
    rows.append(
      {
        "step": step,
        "question": example.question,
        "answer": example.answer,
        "difficulty": example.difficulty,
        "response": tokenizer.decode(ids),
        "tokens": models.token_texts(tokenizer, ids),
        "entropies": entropies[p, i][mask].tolist(),
        "reward": float(rewards[p, i]),
        "baseline": float(baselines[p, i]),
        "advantage": float(advantages[p, i].flat[0]),  # the first token's, if each has one
      }
    )
  return rows
