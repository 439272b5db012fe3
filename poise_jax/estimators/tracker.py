"""SPO's baseline: a Beta distribution a prompt that forgets as the policy moves away.

Source: arXiv 2509.13232 and its code (verl-recipe, spo_ray_trainer.py). One response a prompt is
enough. Letters: N prompts of the training set, P prompts of a step.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from poise_jax.estimators.group import whiten
from poise_jax.learner.update import UpdateConfig, sequence_logprobs
from poise_jax.models import ModelConfig
from poise_jax.types import Experience, Prompts, Rollouts

DRIFT_HALF = 0.06  # mean |change of log-prob| a token that halves the memory
KEEP_MIN, KEEP_MAX = 0.875, 0.96  # bounds of what is kept of the counts


@flax.struct.dataclass
class State:
  """All that SPO carries from step to step: N * T tokens and log-probs beside the counts."""

  tracker: "Tracker"
  tokens: jax.Array  # [N, T] int32, the last response to each prompt
  mask: jax.Array  # [N, T] bool, all False before the first one
  logprobs: jax.Array  # [N, T] float32, nats, as they were when it was sampled


@flax.struct.dataclass
class Tracker:
  """Pseudo-counts of success and failure."""

  successes: jax.Array  # [N] float32, alpha
  failures: jax.Array  # [N] float32, beta


def init(prompts: int, successes: Float[Array, " N"] | float = 0.0, trials: float = 0.0) -> Tracker:
  """A prior of 1 / (1 - KEEP_MIN) = 8 pseudo-trials, from rewards of offline responses if any.

  Args:
    prompts: N.
    successes: sum of the rewards of each prompt's offline responses.
    trials: how many of them there were; with none, one half success and one half failure.
  """
  counts = jnp.broadcast_to(jnp.asarray(successes, jnp.float32), (prompts,))
  if not trials:
    return Tracker(jnp.full(prompts, 0.5), jnp.full(prompts, 0.5))
  size = 1 / (1 - KEEP_MIN)
  successes = size * (counts + 0.5) / (trials + 1)
  return Tracker(successes, size - successes)


def value(tracker: Tracker) -> Float[Array, " N"]:
  """The expected reward of every prompt."""
  return tracker.successes / (tracker.successes + tracker.failures)


def kept(drift: Float[Array, " P"]) -> Float[Array, " P"]:
  """How much of the counts is kept after a mean |change of log-prob| of `drift` nats a token."""
  return jnp.clip(2.0 ** (-drift / DRIFT_HALF), KEEP_MIN, KEEP_MAX)


def update(
  tracker: Tracker,
  prompts: Int[Array, " P"],
  rewards: Float[Array, " P"],
  drift: Float[Array, " P"],
) -> Tracker:
  """Counts this step's rewards (in [0, 1]), one a prompt; `prompts` are different."""
  keep = kept(drift)
  return Tracker(
    tracker.successes.at[prompts].set(keep * tracker.successes[prompts] + rewards),
    tracker.failures.at[prompts].set(keep * tracker.failures[prompts] + 1 - rewards),
  )


def priorities(tracker: Tracker) -> Float[Array, " N"]:
  """Sampling weights: the standard deviation of the reward, and a little for every prompt."""
  v = value(tracker)
  return jnp.sqrt(v * (1 - v)) + 0.05


def spo(prompts: int, length: int, model: ModelConfig, config: UpdateConfig):
  """(init, estimate, update) for N training prompts and responses of T = `length`.

  The baseline is the tracker's value before this step; advantages are whitened over the batch. How
  much a prompt's counts fade depends on how far the policy, after this step's update, has moved on
  the previous response to it.
  """

  def start(_):
    return State(
      tracker=init(prompts),
      tokens=jnp.zeros((prompts, length), jnp.int32),
      mask=jnp.zeros((prompts, length), bool),
      logprobs=jnp.zeros((prompts, length), jnp.float32),
    )

  def estimate(state, experience: Experience):
    rewards = experience.rewards
    baselines = value(state.tracker)[experience.prompt_ids][:, None]
    advantages = whiten(rewards - baselines)
    return advantages, baselines, {"tracker/value": baselines.mean()}

  def learn(state, experience: Experience, params):
    ids, new = experience.prompt_ids, experience.rollouts
    before = _previous(state, ids, new.prompts)
    now = sequence_logprobs(model, params, before, config)
    moved = jnp.where(before.mask, jnp.abs(now - before.logprobs), 0.0).sum((1, 2))
    drift = moved / jnp.maximum(before.mask.sum((1, 2)), 1)
    return State(
      tracker=update(state.tracker, ids, experience.rewards[:, 0], drift),
      tokens=state.tokens.at[ids].set(new.tokens[:, 0]),
      mask=state.mask.at[ids].set(new.mask[:, 0]),
      logprobs=state.logprobs.at[ids].set(new.logprobs[:, 0]),
    )

  return start, estimate, learn


def _previous(state: State, ids: Int[Array, " P"], prompts: Prompts) -> Rollouts:
  """The last responses to these prompts, as rollouts with n = 1."""
  tokens, mask, logprobs = (x[ids][:, None] for x in (state.tokens, state.mask, state.logprobs))
  nothing = jnp.zeros_like(logprobs)
  return Rollouts(
    prompts, tokens, mask, logprobs, nothing, jnp.zeros(tokens.shape[:2], bool), nothing[..., 0]
  )
