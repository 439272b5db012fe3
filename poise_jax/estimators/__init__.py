"""An algorithm's advantages are three pure functions: init, estimate, update."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from poise_jax.estimators import critic, probe, tracker
from poise_jax.estimators.critic import gae
from poise_jax.estimators.group import (
  dr_grpo,
  grpo,
  reinforce_pp,
  reinforce_pp_baseline,
  rloo,
)
from poise_jax.estimators.probe import ProbeConfig, cross_rollout_advantages

GROUP = {of.__name__: of for of in (rloo, grpo, dr_grpo, reinforce_pp_baseline)}
NAMES = ("poise", "poise_sibling", *GROUP)


class Estimator(NamedTuple):
  """The state is a pytree and holds everything that is remembered between steps.

  rewards are [P, n] float32, features [P, n, F] float32, domains [P] int32.
  """

  init: Callable[[], Any]  # () -> state
  # (state, rewards, features, domains) -> (advantages [P, n], baselines [P, n], metrics)
  estimate: Callable[..., Any]
  update: Callable[..., Any]  # (state, rewards, features, domains) -> state


def make(name: str, n: int, features: int, domains: int, config: ProbeConfig) -> Estimator:
  """The estimator of a name, for groups of n, F features and a number of domains.

  poise_sibling goes a step past the paper: its probe also reads the reward of the rollout that it
  reads the states of. The baseline of y_i comes from its siblings' states and rewards, which are
  all as independent of y_i as the states alone: it stays unbiased, and RLOO is a special case.

  Raises:
    ValueError: the name is unknown, or n is too small for it.
  """
  if name not in NAMES:
    raise ValueError(f"estimator {name!r} is unknown; known are {', '.join(NAMES)}")
  if n < 2:
    raise ValueError(f"{name} needs sibling rollouts: rollout.n={n} must be at least 2")
  if name in ("poise", "poise_sibling"):
    if not features:
      raise ValueError(f"{name} reads hidden states: rollout.feature_layers must not be empty")
    reads_reward = name == "poise_sibling"
    config = dataclasses.replace(config, scalars=config.scalars + reads_reward)

    def rows(rewards, features):
      return jnp.concatenate([features, rewards[..., None]], -1) if reads_reward else features

    def estimate(state, rewards, features, domains):
      seen = (rewards, rows(rewards, features), domains)
      advantages, baselines, _, metrics = probe.estimate(state, *seen, config)
      return advantages, baselines, metrics

    return Estimator(
      init=lambda: probe.init(config, n, features + reads_reward, domains),
      estimate=estimate,
      update=lambda state, rewards, features, domains: probe.update(
        state, rewards, rows(rewards, features), domains, config
      ),
    )
  def estimate_from_group(_, rewards, features, domains):
    advantages = GROUP[name](rewards)
    baselines = rewards - rloo(rewards) if name == "rloo" else rewards.mean(1, keepdims=True)
    return advantages, baselines + 0 * rewards, {}

  return Estimator(
    init=lambda: (), estimate=estimate_from_group, update=lambda state, *_: state
  )


__all__ = [
  "Estimator",
  "ProbeConfig",
  "critic",
  "cross_rollout_advantages",
  "dr_grpo",
  "gae",
  "grpo",
  "make",
  "probe",
  "reinforce_pp",
  "reinforce_pp_baseline",
  "rloo",
  "tracker",
]
