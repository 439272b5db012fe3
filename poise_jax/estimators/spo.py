"""SPO: the baseline is a Beta distribution for each prompt, which forgets as the policy changes.

Source: arXiv 2509.13232 and its code (verl-recipe, spo_ray_trainer.py). One response a prompt is
enough. Letters: N prompts in the training set, P prompts in a step, T response positions.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from poise_jax.errors import UserError
from poise_jax.estimators.base import Estimator, EstimatorContext
from poise_jax.estimators.statistics import whiten
from poise_jax.learner.update import sequence_logprobs
from poise_jax.types import Estimate, Experience, Prompts, Rollouts

DRIFT_HALF = 0.06  # mean |change of log-prob| a token, in nats, that halves the counts
RETENTION_MIN, RETENTION_MAX = 0.875, 0.96  # bounds of the share of the counts that stays


@flax.struct.dataclass
class State:
  """Everything that SPO carries from step to step: counts, and the last response to each prompt."""

  tracker: "Tracker"
  tokens: Int[Array, "N T"]  # last response to each prompt
  mask: Bool[Array, "N T"]  # all False before the first response
  # nats, in the trainer, after the step that sampled the response
  logprobs: Float[Array, "N T"]


@flax.struct.dataclass
class Tracker:
  """Pseudo-counts of success and failure."""

  successes: Float[Array, " N"]  # alpha
  failures: Float[Array, " N"]  # beta


def init(prompts: int, successes: Float[Array, " N"] | float = 0.0, trials: float = 0.0) -> Tracker:
  """The counts before the first step.

  Args:
    prompts: N.
    successes: sum of the rewards of each prompt's offline responses.
    trials: offline responses a prompt. 0: half a success and half a failure; otherwise the counts
      are 1 / (1 - RETENTION_MIN) = 8 pseudo-trials.
  """
  counts = jnp.broadcast_to(jnp.asarray(successes, jnp.float32), (prompts,))
  if not trials:
    return Tracker(jnp.full(prompts, 0.5), jnp.full(prompts, 0.5))
  size = 1 / (1 - RETENTION_MIN)
  successes = size * (counts + 0.5) / (trials + 1)
  return Tracker(successes, size - successes)


def value(tracker: Tracker) -> Float[Array, " N"]:
  """Expected reward of each prompt."""
  return tracker.successes / (tracker.successes + tracker.failures)


def retention(drift: Float[Array, " P"]) -> Float[Array, " P"]:
  """Share of the counts that stays after a mean |change of log-prob| of `drift` nats a token."""
  return jnp.clip(2.0 ** (-drift / DRIFT_HALF), RETENTION_MIN, RETENTION_MAX)


def update(
  tracker: Tracker,
  prompts: Int[Array, " P"],
  rewards: Float[Array, " P"],
  drift: Float[Array, " P"],
) -> Tracker:
  """Adds this step's rewards to the counts.

  Args:
    tracker: counts of all N prompts.
    prompts: distinct indices of this step's prompts; those that no prompt has are left out.
    rewards: reward of each one's response, in [0, 1].
    drift: change of the policy, see `retention`.
  """
  share = retention(drift)
  successes = share * tracker.successes[prompts] + rewards
  failures = share * tracker.failures[prompts] + 1 - rewards
  return Tracker(
    tracker.successes.at[prompts].set(successes, mode="drop"),
    tracker.failures.at[prompts].set(failures, mode="drop"),
  )


@jax.jit
def priorities(tracker: Tracker) -> Float[Array, " N"]:
  """Weights with which prompts are drawn: the reward's standard deviation, plus 0.05."""
  v = value(tracker)
  return jnp.sqrt(jnp.maximum(v * (1 - v), 0.0)) + 0.05  # by rounding, v may exceed 1


def make(context: EstimatorContext) -> Estimator:
  """The estimator, for N training prompts and responses of T = rollout.max_new_tokens.

  The baseline is the tracker's value before this step; advantages are whitened over the batch. The
  share of a prompt's counts that stays depends on how far the policy has moved on the previous
  response to the prompt. As in the source both log-probs are the trainer's: after the step that
  sampled the response and after this step. The sampler's, which differ by rounding, would count as
  drift.

  Raises:
    UserError: rollout.n is not 1.
  """
  if context.rollout.n != 1:
    raise UserError(
      f"spo takes one response a prompt: rollout.n must be 1, got {context.rollout.n}"
    )
  shape = context.prompts, context.rollout.max_new_tokens

  def start(params):
    del params
    return State(
      tracker=init(context.prompts),
      tokens=jnp.zeros(shape, jnp.int32),
      mask=jnp.zeros(shape, bool),
      logprobs=jnp.zeros(shape, jnp.float32),
    )

  def learn(state, experience, params, aux):
    previous = _previous(state, experience.prompt_ids, experience.rollouts.prompts)
    logprobs = [
      sequence_logprobs(context.model, params, rollouts, context.update)
      for rollouts in (previous, experience.rollouts)
    ]
    return _update(state, experience, previous, *logprobs)

  return Estimator(
    init=start,
    estimate=_estimate,
    update=learn,
    priorities=lambda state: priorities(state.tracker),
    needs_probabilities=True,
  )


@jax.jit
def _estimate(state: State, experience: Experience) -> Estimate:
  rewards = experience.rewards
  baselines = value(state.tracker)[experience.prompt_ids][:, None]
  real = experience.real_groups[:, None]
  terms = jnp.where(real, jnp.maximum(jnp.abs(rewards), baselines), 0.0)
  advantages = whiten(rewards - baselines, real, terms.max())
  return Estimate(advantages, baselines, {"tracker/value": baselines.mean(where=real)})


@jax.jit
def _update(state, experience, previous, previous_logprobs, logprobs):
  """The state after a step.

  Args:
    previous: the previous responses to the step's prompts, with their stored log-probs.
    previous_logprobs: their log-probs under the new policy [P, 1, T].
    logprobs: log-probs of the step's responses under the new policy [P, 1, T].
  """
  rollouts = experience.rollouts
  # Padding gets an index that no prompt has, where nothing is written.
  ids = jnp.where(experience.real_groups, experience.prompt_ids, len(state.tokens))
  changes = jnp.abs(previous_logprobs - previous.logprobs)
  changes = jnp.where(previous.mask, changes, 0.0).sum((1, 2))
  drift = changes / jnp.maximum(previous.mask.sum((1, 2)), 1)
  return State(
    tracker=update(state.tracker, ids, experience.rewards[:, 0], drift),
    tokens=state.tokens.at[ids].set(rollouts.tokens[:, 0], mode="drop"),
    mask=state.mask.at[ids].set(rollouts.mask[:, 0], mode="drop"),
    logprobs=state.logprobs.at[ids].set(logprobs[:, 0], mode="drop"),
  )


@jax.jit
def _previous(state: State, ids: Int[Array, " P"], prompts: Prompts) -> Rollouts:
  """The last responses to these prompts, as rollouts with n = 1."""
  tokens, mask, logprobs = (x[ids][:, None] for x in (state.tokens, state.mask, state.logprobs))
  zeros = jnp.zeros_like(logprobs)
  return Rollouts(
    prompts, tokens, mask, logprobs, zeros, jnp.zeros(tokens.shape[:2], bool), zeros[..., 0]
  )
