"""The interface of estimators."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, PyTree

from poise_jax.estimators.critic import CriticConfig
from poise_jax.estimators.probe import ProbeConfig
from poise_jax.learner.config import UpdateConfig
from poise_jax.models import ModelConfig
from poise_jax.rollout import RolloutConfig
from poise_jax.types import Estimate, Experience

State = PyTree[Array]


@dataclasses.dataclass(frozen=True)
class EstimatorContext:
  """The options of a run that an estimator may read. Hashable: a static argument under jit."""

  rollout: RolloutConfig
  model: ModelConfig
  update: UpdateConfig = UpdateConfig()
  probe: ProbeConfig = ProbeConfig()
  critic: CriticConfig = CriticConfig()
  domains: tuple[str, ...] = ("",)  # the task's domains, K
  prompts: int = 1  # prompts in the training set, N
  reference_n: int = 8  # responses of the reference policy a prompt, M (PVPO)


class Estimator(NamedTuple):
  """Advantages by three pure functions: init, estimate and update.

  The state is a pytree of arrays with everything that is carried from step to step. In every step
  the loop calls `estimate` with the state of the step before, updates the policy, and then calls
  `update`: predict first, learn after. With dynamic sampling the last groups of an experience may
  be padding (experience.real_groups), which a statistic of the batch must leave out.
  """

  # policy parameters -> state; copies those that it stores, since the policy's update donates them
  init: Callable[[PyTree[Array]], State]
  # (state, experience) -> advantages, baselines, metrics, and `aux` for `update`
  estimate: Callable[[State, Experience], Estimate]
  # (state, experience, policy parameters after this step's update, aux) -> state; donates state
  update: Callable[[State, Experience, PyTree[Array], PyTree[Array]], State]
  # (state, experience) -> the value of each prompt [P, n] as predicted from each of its responses,
  # NaN where nothing predicts it yet; None: it predicts no value of a new prompt
  predict: Callable[[State, Experience], Float[Array, "P n"]] | None = None
  # state -> weights with which prompts are drawn [N]; None: prompts are taken in order
  priorities: Callable[[State], Float[Array, " N"]] | None = None
  pretrain_steps: int = 0  # first steps, in which the policy is not updated
  reference_n: int = 0  # responses of the reference policy a prompt that it needs
  # groups of equal rewards have zero advantage, so dynamic sampling may leave them out
  needs_spread: bool = False
  needs_probabilities: bool = False  # rewards must be in [0, 1]
  reads_features: bool = True  # of the sampler; if not, rollout.feature_layers is ignored
  predicts_in_unit: bool = False  # predicted rewards are clipped to [0, 1], so scores must be there


def stateless(estimate: Callable[[Experience], Estimate], **properties) -> Estimator:
  """An estimator without a state.

  Args:
    estimate: experience -> advantages, baselines and metrics.
    properties: other fields of Estimator.
  """
  return Estimator(
    init=lambda params: (),
    estimate=lambda state, experience: estimate(experience),
    update=lambda state, experience, params, aux: state,
    **properties,
  )
