"""An algorithm's advantages are three pure functions: init, estimate, update."""

from collections.abc import Callable
from typing import Any, NamedTuple

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

NAMES = ("poise", "rloo", "grpo")


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

  Raises:
    ValueError: the name is unknown, or n is too small for it.
  """
  if name not in NAMES:
    raise ValueError(f"estimator {name!r} is unknown; known are {', '.join(NAMES)}")
  if n < 2:
    raise ValueError(f"{name} needs sibling rollouts: rollout.n={n} must be at least 2")
  if name == "poise":
    if not features:
      raise ValueError("poise reads hidden states: rollout.feature_layers must not be empty")

    def estimate(state, rewards, features, domains):
      advantages, baselines, _, metrics = probe.estimate(state, rewards, features, domains, config)
      return advantages, baselines, metrics

    return Estimator(
      init=lambda: probe.init(config, n, features, domains),
      estimate=estimate,
      update=lambda *args: probe.update(*args, config),
    )
  group = {"rloo": rloo, "grpo": grpo}[name]

  def estimate_from_group(_, rewards, features, domains):
    advantages = group(rewards)
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
