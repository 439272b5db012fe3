"""One training step: sample and judge, estimate, update the policy, update the estimator."""

import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from poise_jax import rollout
from poise_jax.data import tasks
from poise_jax.distributed import processes, sharding
from poise_jax.evaluation.judge import Judge
from poise_jax.learner import update
from poise_jax.rollout.busy import busy_rows
from poise_jax.training import rewards, summary
from poise_jax.training.build import Experiment
from poise_jax.types import Estimate, Experience, Rollouts, TrainState

REFERENCE = np.uint32(2**32 - 1)  # number folded into the run's key for the reference policy


class Clock:
  """Wall-clock seconds of a step and its parts, and other sums over the step's batches."""

  def __init__(self, checkpoint: float = 0.0):
    """checkpoint: seconds for which saving blocked the loop since the step before."""
    self.last = time.perf_counter()
    self.start = self.last - checkpoint
    self.parts = {"time/checkpoint": checkpoint}

  def lap(self, name: str):
    """Adds the time since the last lap to a part. Block on the part's arrays first."""
    now = time.perf_counter()
    self.add(f"time/{name}", now - self.last)
    self.last = now

  def add(self, metric: str, value: float):
    """Adds to a metric of this step."""
    self.parts[metric] = self.parts.get(metric, 0.0) + value

  def metrics(self) -> dict[str, float]:
    """time/step and time/<part>, in seconds, and the sums of `add`."""
    return {"time/step": self.last - self.start, **self.parts}


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Samples and judges batches for one step: a function of prompts, with all that it needs."""

  experiment: Experiment
  judge: Judge
  decoding: PyTree[Array]  # the policy in the sampling layout
  params: PyTree[Array]  # the policy in the training layout
  reference: PyTree[Array]  # the reference policy; () if the run needs none
  key: Key[Array, ""]  # key of the run
  step: int
  clock: Clock
  # Rows that drew a token in each decode step, of every batch so far.
  busy: list[Int[np.ndarray, " steps"]] = dataclasses.field(default_factory=list)

  def __call__(self, ids: Int[np.ndarray, " P"], generation: int) -> Experience:
    """Samples responses to training prompts and judges them.

    Args:
      ids: the prompts' indices in the training set [P].
      generation: number of batches that this step sampled before.

    Returns:
      P groups on the mesh.
    """
    run, clock = self.experiment, self.clock
    keys = _sampling_keys(self.key, *jax.device_put((np.int32(self.step), np.int32(generation))))
    examples = [run.task.train[i] for i in ids]
    width = run.encoder.width(examples)
    prompts = sharding.put_rows(
      run.mesh, len(examples), lambda rows: run.encoder([examples[i] for i in rows], width)
    )
    rollouts = rollout.sample(run.model, self.decoding, prompts, keys[0], run.rollout)
    jax.block_until_ready(rollouts)
    clock.lap("rollout")
    self.busy.append(busy_rows(rollouts))
    rollouts = rollouts.replace(decode_starts=())
    batch = {
      "scores": score(run, self.judge, examples, rollouts, clock),
      "domains": np.array([run.task.domains.index(e.domain) for e in examples], np.int32),
      "prompt_ids": np.asarray(ids, np.int32),
    }
    clock.lap("reward")
    if run.collect.dynamic_sampling:
      batch["age"] = np.zeros(len(ids), np.int32)
    if samples := run.estimator.reference_n:
      options = dataclasses.replace(run.rollout, n=samples, feature_layers=())
      decoding = run.sampling_params(self.reference)
      reference_rollouts = rollout.sample(run.model, decoding, prompts, keys[1], options)
      batch["reference_scores"] = score(run, self.judge, examples, reference_rollouts, clock)
      clock.lap("reference")
    logprobs = ()
    if run.reward.kl_coef:
      policies = self.params, self.reference
      logprobs = tuple(
        update.sequence_logprobs(run.model, params, rollouts, run.update) for params in policies
      )
    if run.collect.dynamic_sampling:  # groups of several batches are joined
      rollouts = _widened(rollouts, run.encoder.max_length)
    batch = sharding.put_batch(run.mesh, batch)
    token_rewards = rewards.token_rewards(batch["scores"], rollouts.mask, run.reward, *logprobs)
    clock.lap("reward")
    return Experience(rollouts=rollouts, token_rewards=token_rewards, **batch)


@functools.partial(jax.jit, static_argnums=1)
def _widened(rollouts, width):
  """The rollouts with prompts padded to `width` tokens."""

  def pad(x):
    return jnp.pad(x, ((0, 0), (width - x.shape[1], 0)))

  prompts = rollouts.prompts
  prompts = prompts.replace(tokens=pad(prompts.tokens), mask=pad(prompts.mask))
  return rollouts.replace(prompts=prompts)


@jax.jit
def _sampling_keys(key, step, generation):
  """Keys for the responses of the policy and of the reference policy.

  The sampler folds the numbers of rows into them, so neither may be the other with a number folded
  in, nor a part of `split`, which folds in small numbers too. The reference's come from a number
  that no step has.
  """
  policy, reference = (
    jax.random.fold_in(jax.random.fold_in(root, step), generation)
    for root in (key, jax.random.fold_in(key, REFERENCE))
  )
  return policy, reference


def score(
  experiment: Experiment,
  judge: Judge,
  examples: Sequence[tasks.Example],
  rollouts: Rollouts,
  clock: Clock | None = None,
) -> Float[np.ndarray, "P n"]:
  """The verifiers' scores of sampled responses, float32; adds collect/tokens to `clock`."""
  tokens, mask = sharding.fetch((rollouts.tokens, rollouts.mask))
  if clock:
    clock.add("collect/tokens", float(mask.sum()))
  rows = zip(np.concatenate(tokens), np.concatenate(mask), strict=True)
  ids, decode = [row[valid].tolist() for row, valid in rows], experiment.encoder.response
  responses = processes.divided(lambda part: [decode(response) for response in part], ids)
  checks = [example.check for example in examples for _ in range(tokens.shape[1])]
  verdicts = judge.score(checks, responses)
  return np.array([verdict.score for verdict in verdicts], np.float32).reshape(mask.shape[:2])


def learn(
  experiment: Experiment,
  step: int,
  state: TrainState,
  estimator_state: PyTree[Array],
  reference: PyTree[Array],
  experience: Experience,
  groups: int,
  clock: Clock,
) -> tuple[TrainState, PyTree[Array], Estimate, dict[str, Array]]:
  """Estimates advantages, updates the policy, and only then updates the estimator, so that no
  prediction depends on the reward that it is compared with.

  Args:
    experiment: model, estimator and options.
    step: number of the step, from 1.
    state: the policy's state; donated.
    estimator_state: the estimator's state; donated.
    reference: the reference policy's parameters; () if the run needs none.
    experience: P groups.
    groups: number of groups, at the front, that are not padding.
    clock: measures the parts "estimate" and "update".

  Returns:
    The new states of the policy and the estimator, the estimate, and metrics on the device.
  """
  estimator = experiment.estimator
  estimate = jax.block_until_ready(estimator.estimate(estimator_state, experience))
  metrics = dict(estimate.metrics)
  clock.lap("estimate")
  if step > estimator.pretrain_steps and groups:
    batch = experience
    if experiment.reward.overlong_filter:
      batch = _without_truncated(experience)
    state, update_metrics = update.step(
      experiment.model,
      experiment.update,
      state,
      batch,
      estimate.advantages,
      reference,
      groups,
    )
    metrics |= jax.block_until_ready(update_metrics)
  clock.lap("update")
  # A probe never forgets values that are not finite.
  inputs = (experience.rollouts.features, experience.token_rewards)
  if sharding.fetch(summary.all_finite(inputs)):
    estimator_state = estimator.update(estimator_state, experience, state.params, estimate.aux)
  jax.block_until_ready(estimator_state)
  clock.lap("estimate")
  if groups:
    metrics |= summary.metrics(
      experience,
      estimate.advantages,
      estimate.baselines,
      *_groups(experiment, experience, groups),
      experiment.difficulties,
      experiment.task.domains,
    )
  return state, estimator_state, estimate, metrics


def _groups(experiment, experience, groups) -> tuple[Int[Array, " P"], Int[Array, ""]]:
  """On the device: index of each prompt's difficulty in experiment.difficulties, and `groups`."""
  names = {name: i for i, name in enumerate(experiment.difficulties)}
  ids = sharding.fetch(experience.prompt_ids)
  difficulties = np.array([names[experiment.task.train[i].difficulty] for i in ids], np.int32)
  return sharding.put_batch(experiment.mesh, difficulties), jax.device_put(np.int32(groups))


@jax.jit
def _without_truncated(experience):
  """The experience without the tokens of truncated responses."""
  rollouts = experience.rollouts
  mask = rollouts.mask & ~rollouts.truncated[..., None]
  return experience.replace(rollouts=rollouts.replace(mask=mask))


@jax.jit
def copy(params: PyTree[Array]) -> PyTree[Array]:
  """A copy that stays valid when an update donates the original."""
  return jax.tree.map(jnp.copy, params)
