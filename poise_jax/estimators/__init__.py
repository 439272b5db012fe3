"""An algorithm's advantages are three pure functions: init, estimate, update."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from poise_jax.errors import UserError
from poise_jax.estimators import critic, probe, tracker
from poise_jax.estimators.critic import CriticConfig, gae
from poise_jax.estimators.group import (
  dr_grpo,
  grpo,
  reinforce_pp,
  reinforce_pp_baseline,
  rloo,
  whiten,
)
from poise_jax.estimators.probe import ProbeConfig, cross_rollout_advantages
from poise_jax.learner.update import UpdateConfig
from poise_jax.models import ModelConfig
from poise_jax.rollout import RolloutConfig
from poise_jax.rollout.features import ENTROPIES, feature_size
from poise_jax.types import Experience

GROUP = {of.__name__: of for of in (rloo, grpo, dr_grpo, reinforce_pp_baseline)}
NAMES = ("poise", "poise_sibling", *GROUP, "reinforce_pp", "ppo", "sppo", "spo", "pvpo")


@dataclasses.dataclass(frozen=True)
class Setting:
  """What an estimator has to know of its run."""

  rollout: RolloutConfig
  model: ModelConfig
  update: UpdateConfig = UpdateConfig()
  probe: ProbeConfig = ProbeConfig()
  critic: CriticConfig = CriticConfig()
  domains: tuple[str, ...] = ("",)  # of the task, K of them
  prompts: int = 1  # N, prompts of the training set
  reference_n: int = 8  # M, rollouts of the reference policy a prompt (PVPO)


class Estimator(NamedTuple):
  """Pure functions; the state is a pytree and holds everything that is remembered between steps."""

  init: Callable[[Any], Any]  # policy's parameters (which it copies, if it wants them) -> state
  # (state, Experience) -> (advantages [P, n] or [P, n, T], baselines [P, n], metrics)
  estimate: Callable[[Any, Experience], Any]
  # (state, Experience, the policy's parameters after this step's update) -> state
  update: Callable[[Any, Experience, Any], Any]
  priorities: Callable[[Any], Any] | None = None  # state -> how much to prefer each prompt [N]
  pretrain_steps: int = 0  # first steps in which the policy is left alone
  reference_n: int = 0  # rollouts a prompt that it wants from the reference policy


def make(name: str, setting: Setting) -> Estimator:
  """The estimator of a name.

  poise_sibling goes a step past the paper: its probe also reads the reward of the rollout that it
  reads the states of. The baseline of y_i comes from its siblings' states and rewards, which are
  all as independent of y_i as the states alone: it stays unbiased, and RLOO is a special case.

  Raises:
    UserError: the name is unknown, or n does not fit it.
  """
  n = setting.rollout.n
  if name not in NAMES:
    raise UserError(f"estimator {name!r} is unknown; known are {', '.join(NAMES)}")
  if n < 2 and name in ("poise", "poise_sibling", *GROUP):
    raise UserError(f"{name} needs sibling rollouts: rollout.n={n} must be at least 2")
  if name in ("poise", "poise_sibling"):
    return _poise(name, setting)
  if name in GROUP:
    return _stateless(GROUP[name], rloo if name == "rloo" else dr_grpo)
  if name == "reinforce_pp":
    return Estimator(lambda _: (), _reward_to_go, lambda state, *_: state)
  if name == "pvpo":
    return Estimator(
      lambda _: (), _static_baseline, lambda state, *_: state, reference_n=setting.reference_n
    )
  if name == "spo":
    if n != 1:
      raise UserError(f"spo takes one response a prompt: rollout.n={n} must be 1")
    length = setting.rollout.max_new_tokens
    functions = tracker.spo(setting.prompts, length, setting.model, setting.update)
    return Estimator(*functions, priorities=lambda state: tracker.priorities(state.tracker))
  functions = getattr(critic, name)(setting.model, setting.critic, setting.update)
  return Estimator(*functions, pretrain_steps=setting.critic.pretrain_steps)


def _poise(name, setting):
  features = feature_size(setting.model, setting.rollout)
  if not features:
    raise UserError(f"{name} reads hidden states: rollout.feature_layers must not be empty")
  reads_reward, domains = name == "poise_sibling", setting.domains
  config = setting.probe
  config = dataclasses.replace(config, scalars=config.scalars + reads_reward)
  width = (features - ENTROPIES) // 2
  sizes = (width, width, ENTROPIES)
  read = np.repeat([part in config.reads for part in probe.PARTS], sizes).astype(np.float32)

  def seen(experience):
    rewards, rows = experience.rewards, experience.rollouts.features * read
    if reads_reward:
      rows = jnp.concatenate([rows, rewards[..., None]], -1)
    return rewards, rows, experience.domains

  def estimate(state, experience):
    advantages, baselines, _, metrics = probe.estimate(state, *seen(experience), config)
    for name in ("probe/mae", "probe/pearson"):
      values = metrics.pop(f"{name}_of_domain")
      if len(domains) > 1:
        metrics |= {f"{name}/{of}": value for of, value in zip(domains, values, strict=True)}
    return advantages, baselines, metrics

  return Estimator(
    init=lambda _: probe.init(config, setting.rollout.n, features + reads_reward, len(domains)),
    estimate=estimate,
    update=lambda state, experience, _: probe.update(state, *seen(experience), config),
  )


def _stateless(advantages_of, centre):
  """Advantages from the rewards of a group; `centre` is what they are before any scaling."""

  def estimate(_, experience):
    rewards = experience.rewards
    return advantages_of(rewards), rewards - centre(rewards), {}

  return Estimator(lambda _: (), estimate, lambda state, *_: state)


def _reward_to_go(_, experience):
  """REINFORCE++ (arXiv 2501.03262): what is still to come, whitened over the batch's tokens."""
  mask = experience.rollouts.mask
  to_come = jnp.cumsum(experience.token_rewards[..., ::-1], axis=-1)[..., ::-1]
  rewards = experience.rewards
  return whiten(to_come, mask), jnp.full_like(rewards, rewards.mean()), {}


def _static_baseline(_, experience):
  """PVPO (arXiv 2508.21104): the mean reward of the reference policy on the same prompt."""
  baselines = jnp.broadcast_to(
    experience.reference_scores.mean(1, keepdims=True), experience.scores.shape
  )
  return experience.rewards - baselines, baselines, {"reference/score": baselines.mean()}


__all__ = [
  "CriticConfig",
  "Estimator",
  "ProbeConfig",
  "Setting",
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
