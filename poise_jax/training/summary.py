"""The report of a step: metrics, reduced on the device, and a few responses."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from poise_jax import models
from poise_jax.distributed import sharding
from poise_jax.estimators import statistics
from poise_jax.training.build import Experiment
from poise_jax.types import Estimate, Experience


@functools.partial(jax.jit, static_argnums=(5, 6))
def metrics(
  experience: Experience,
  advantages: Float[Array, "P n"] | Float[Array, "P n T"],
  baselines: Float[Array, "P n"],
  difficulties: Int[Array, " P"],
  groups: Int[Array, ""],
  names: tuple[str, ...],
  domains: tuple[str, ...] = (),
) -> dict[str, Float[Array, ""]]:
  """Metrics of the groups that a step trained on.

  Args:
    experience: P groups.
    advantages: per response, or per token.
    baselines: what the estimator expected of each response.
    difficulties: indices into `names`.
    groups: number of groups, at the front, that are not padding; at least 1.
    names: difficulties of the training set.
    domains: the task's domains.

  Returns:
    Scalars: means and standard deviations over responses (advantages: over responses or token
    positions); reward/mean/<difficulty> and baseline/mean/<difficulty>, which are NaN if the step
    has no prompt of that difficulty, and the same as reward/domain/<domain> and
    baseline/domain/<domain> if there are several; of the baselines against the rewards of their own
    responses baseline/pearson and baseline/variance_reduction, 1 - Var(R - b) / Var(R), and
    baseline/ceiling, see statistics.noise_ceiling (NaN with dynamic sampling); lengths in tokens;
    the entropy in nats per token; and, of the rows that the sampler's decode steps computed,
    rollout/useful_rows, the fraction that drew a token.
  """
  rewards, rollouts = experience.rewards, experience.rollouts
  real = jnp.arange(len(rewards)) < groups

  def mean(x):
    return jnp.mean(x, where=real.reshape(-1, *[1] * (x.ndim - 1)))

  def std(x):
    return jnp.std(x, where=real.reshape(-1, *[1] * (x.ndim - 1)))

  lengths = jnp.where(real[:, None], rollouts.mask.sum(-1), 0)
  counted, chosen = jnp.broadcast_to(real[:, None], rewards.shape), len(experience.age) > 0
  parts = {"mean": (difficulties, names)}
  if len(domains) > 1:
    parts["domain"] = experience.domains, domains
  means = {
    f"{of}/{part}/{name}": jnp.mean(values, where=(real & (places == i))[:, None])
    for of, values in (("reward", rewards), ("baseline", baselines))
    for part, (places, labels) in parts.items()
    for i, name in enumerate(labels)
  }
  if len(rollouts.decode_rows):
    rows = jnp.where(real[:, None], rollouts.decode_rows, 0).sum()
    # The first token of a response comes from the prefill.
    means["rollout/useful_rows"] = jnp.maximum(lengths - 1, 0).sum() / jnp.maximum(rows, 1)
  return {
    **means,
    "reward/mean": mean(rewards),
    "reward/std": std(rewards),
    "baseline/mean": mean(baselines),
    "baseline/pearson": statistics.pearson(baselines, rewards, counted),
    # Dynamic sampling, which alone has ages, chooses groups by their rewards.
    "baseline/ceiling": jnp.nan if chosen else statistics.noise_ceiling(rewards, real),
    "baseline/variance_reduction": statistics.explained_variance(baselines, rewards, counted),
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


@jax.jit
def _groups(tree, places):
  return jax.tree.map(lambda x: x[places], tree)


def samples(
  experiment: Experiment,
  step: int,
  experience: Experience,
  estimate: Estimate,
  groups: int,
  unusual: Mapping[str, Bool[np.ndarray, "P n"]] | None = None,
) -> list[dict]:
  """Responses as rows of samples.jsonl; only their groups are fetched.

  Args:
    experiment: task and tokenizer.
    step: number of the training step.
    experience: P groups.
    estimate: their estimate.
    groups: number of groups, from the first.
    unusual: see unusual.find; up to `groups` responses of other groups follow, as "extra" rows.
  """
  if not groups:
    return []
  signs = unusual or {}
  found = np.argwhere(np.any(list(signs.values()), 0)).tolist()
  extra = [(p, i) for p, i in found if p >= groups][:groups]
  fetched = [*range(groups), *(p for p, _ in extra)]
  # The same number in every step, so that this compiles once.
  places = np.resize(np.array(fetched, np.int32), groups * (2 if signs else 1))
  batch = (experience, estimate.baselines, estimate.advantages)
  batch = sharding.fetch(_groups(batch, jax.device_put(places)))
  row_of, rows = {p: row for row, p in enumerate(fetched)}, []
  for p, i in [*np.ndindex(groups, experience.scores.shape[1]), *extra]:
    row = {"step": step, **_sample(experiment, *batch, row_of[p], i)}
    names = [name for name, where in signs.items() if where[p, i]]
    rows.append({**row, "unusual": names, "extra": p >= groups})
  return rows


def _sample(experiment, experience, baselines, advantages, p, i):
  """The row of response i of group p, but for its step."""
  rollouts, tokenizer = experience.rollouts, experiment.encoder.tokenizer
  example, mask = experiment.task.train[experience.prompt_ids[p]], rollouts.mask[p, i]
  ids = rollouts.tokens[p, i][mask].tolist()
  return {
    "question": example.question,
    "prompt": experiment.encoder.prompt(example),
    "answer": example.answer,
    "difficulty": example.difficulty,
    "response": tokenizer.decode(ids),
    "tokens": models.token_texts(tokenizer, ids),
    "entropies": rollouts.entropies[p, i][mask].astype(np.float64).round(3).tolist(),  # nats
    "reward": float(experience.token_rewards[p, i].sum()),
    "baseline": float(baselines[p, i]),
    "advantage": float(advantages[p, i].flat[0]),  # the first token's, if each has one
  }
