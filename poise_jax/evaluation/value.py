"""How well the values of prompts were predicted: MAE, r and its ceiling against avg@k.

The comparison of Figure 1 of POISE (arXiv 2605.07579 v2). Letters: P prompts, k + 1 = n responses a
prompt, of which one makes a prediction and the k others say how right it was.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from poise_jax.estimators.probe import leave_one_out_targets
from poise_jax.estimators.statistics import (
  explained_variance,
  noise_ceiling,
  pearson,
  value_variance,
  variance,
)

RESAMPLES = 200  # of the prompts, for standard errors
HOPELESS, CERTAIN = 0.02, 0.98  # values beyond which a prompt teaches nothing
LOW, HIGH = 0.2, 0.8  # ends of the middle range of values
SINGLE = "one other reward (RLOO with n = 2)"
METRICS = (  # columns of the table, see `quality`
  *("MAE", "r", "ceiling", "r, one reward", "ceiling, one reward"),
  *("variance reduction", "its ceiling"),
)
SPREAD = "std of V(x)"
MIDDLE = f"V in [{LOW}, {HIGH}]"


@dataclasses.dataclass(frozen=True)
class Group:
  """Prompts, and those of their responses that count."""

  domain: str | None  # None: of all domains
  informative: bool  # whether hopeless and certain prompts are left out
  where: Bool[np.ndarray, " P"]
  first: int  # the responses from this one on count

  @property
  def name(self) -> str:
    """The name in tables."""
    name = "all prompts" if self.domain is None else self.domain
    return f"{name}, {HOPELESS} ≤ V ≤ {CERTAIN}" if self.informative else name


@dataclasses.dataclass(frozen=True)
class Values:
  """Rewards of the responses to P prompts, and what each response predicted for its prompt."""

  rewards: Float[np.ndarray, "P n"]
  predictions: Float[np.ndarray, "P n"]  # NaN where nothing predicts
  domains: Sequence[str]  # of each prompt
  verdicts: Mapping[str, int] = dataclasses.field(default_factory=dict)  # responses by status

  @property
  def groups(self) -> list[Group]:
    """All prompts, those of each domain if there are several, and the informative ones of each.

    Half of a prompt's responses say whether it is informative, and only the other half counts then:
    a choice by the rewards that are compared would make them dependent. So that 2 are left on both
    sides, n must be at least 4.
    """
    domains, n = np.array(self.domains), self.rewards.shape[1]
    parts = {None: np.ones(len(domains), bool)}
    if len(names := sorted(set(self.domains))) > 1:
      parts |= {name: domains == name for name in names}
    groups = [Group(domain, False, where, 0) for domain, where in parts.items()]
    if n >= 4:
      mean = self.rewards[:, : n // 2].mean(1)
      informative = (mean >= HOPELESS) & (mean <= CERTAIN)
      groups += [Group(name, True, where & informative, n // 2) for name, where in parts.items()]
    return groups

  @property
  def predicted(self) -> Bool[np.ndarray, " P"]:
    """Which prompts have a prediction from every response."""
    return np.isfinite(self.predictions).all(1)


@jax.jit
def quality(
  predictions: Float[Array, "P n"],
  rewards: Float[Array, "P n"],
  where: Bool[Array, " P"],
) -> dict[str, Float[Array, ""]]:
  """How well each response's prediction foretells the rewards of the other responses.

  Args:
    predictions: of the value of each prompt, from each of its responses, n at least 2.
    rewards: of the responses.
    where: prompts that count; their predictions are finite.

  Returns:
    "MAE", "r" and "ceiling" against avg@k of the k = n - 1 other responses; "r, one reward",
    "ceiling, one reward" and "variance reduction", 1 - Var(reward - prediction) / Var(reward),
    against the next response's reward; "its ceiling", that of V(x); and "std of V(x)". Numbers that
    cannot be estimated are NaN: all but the MAE and the std where all rewards are equal, and see
    statistics.noise_ceiling.
  """
  counted = jnp.broadcast_to(where[:, None], rewards.shape)
  targets = leave_one_out_targets(rewards)
  baselines = jnp.roll(predictions, 1, axis=1)  # of a response, from the one before it
  single = noise_ceiling(rewards, where)
  differ = variance(rewards, counted) > 0
  return {
    "MAE": jnp.mean(jnp.abs(predictions - targets), where=counted),
    "r": jnp.where(differ, pearson(predictions, targets, counted), jnp.nan),
    "ceiling": noise_ceiling(rewards, where, rewards.shape[1] - 1),
    "r, one reward": jnp.where(differ, pearson(baselines, rewards, counted), jnp.nan),
    "ceiling, one reward": single,
    "variance reduction": jnp.where(
      differ, explained_variance(baselines, rewards, counted), jnp.nan
    ),
    "its ceiling": single**2,
    SPREAD: jnp.sqrt(jnp.maximum(value_variance(rewards, where)[0], 0.0)),
  }


@jax.jit
def _resampled(
  predictions: Float[Array, "P n"],
  rewards: Float[Array, "P n"],
  draws: Int[Array, "B P"],
  count: Int[Array, ""],
):
  """`quality` [B] of the first `count` prompts of each draw."""
  where = jnp.arange(draws.shape[1]) < count
  return jax.vmap(lambda rows: quality(predictions[rows], rewards[rows], where))(draws)


def _measured(predictions, rewards, members):
  """`quality` of the prompts `members` as {metric: {"mean", "se"}}, None where unknown."""
  rng, where = np.random.default_rng(0), np.isin(np.arange(len(rewards)), members)
  predictions, rewards = jnp.asarray(predictions), jnp.asarray(rewards)
  draws = jnp.asarray(rng.choice(members, (RESAMPLES, len(rewards))))
  resampled = _resampled(predictions, rewards, draws, jnp.int32(len(members)))
  result = {}
  for metric, mean in quality(predictions, rewards, jnp.asarray(where)).items():
    drawn = np.asarray(resampled[metric])
    drawn = drawn[np.isfinite(drawn)]
    known = bool(np.isfinite(mean))
    error = float(drawn.std(ddof=1)) if known and len(members) > 1 < len(drawn) else None
    result[metric] = {"mean": float(mean) if known else None, "se": error}
  return result


def _about(group):
  """What a row says about its group."""
  return {"group": group.name, "domain": group.domain, "informative": group.informative}


def results(values: Values, predictor: str) -> list[dict[str, Any]]:
  """`quality` of each group's predictions, and of a single reward as a prediction.

  Args:
    values: of the prompts.
    predictor: name of the estimator that made the predictions.

  Returns:
    {"group", "domain", "informative", "predictor", "prompts", "k", metric: {"mean", "se"}, ...};
    standard errors are bootstrap ones over prompts, and numbers that cannot be estimated are None.
    Both rows of a group are over its predicted prompts; a group without any has the row of the
    single reward alone, over all of its prompts. A group without prompts has no row.
  """
  rows = []
  for group in values.groups:
    rewards = values.rewards[:, group.first :]
    made = {predictor: values.predictions[:, group.first :], SINGLE: rewards}
    members = np.flatnonzero(group.where & values.predicted)
    if not len(members):
      del made[predictor]
      members = np.flatnonzero(group.where)
    if not len(members):
      continue
    for name, predictions in made.items():
      numbers = _measured(predictions, rewards, members)
      about = {"predictor": name, "prompts": len(members), "k": rewards.shape[1] - 1}
      rows.append({**_about(group), **about, **{metric: numbers[metric] for metric in METRICS}})
  return rows


def spreads(values: Values) -> list[dict[str, Any]]:
  """How the values of each group are spread, over all of its prompts.

  Returns:
    {"group", "domain", "informative", "prompts", "mean reward", SPREAD, MIDDLE}; MIDDLE is the
    share of prompts whose mean reward is in the middle range. A group without prompts has no row.
  """
  spread = []
  for group in values.groups:
    members = np.flatnonzero(group.where)
    if not len(members):
      continue
    rewards = values.rewards[:, group.first :]
    mean = rewards[members].mean(1)
    spread.append(
      {
        **_about(group),
        "prompts": len(members),
        "mean reward": float(mean.mean()),
        SPREAD: _measured(rewards, rewards, members)[SPREAD],
        MIDDLE: float(((mean >= LOW) & (mean <= HIGH)).mean()),
      }
    )
  return spread


def independent(values: Values) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
  """One prediction a prompt, from its first response, and the mean reward of the others."""
  known = values.predicted
  return values.predictions[known, 0], values.rewards[known, 1:].mean(1)
