"""Values of held-out prompts under a run's policy, and what its estimator predicts of them."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable

import jax
import numpy as np
from ml_collections import ConfigDict

from poise_jax.data.fingerprint import compare_fingerprint
from poise_jax.distributed import sharding
from poise_jax.errors import UserError
from poise_jax.evaluation.answer import sampled
from poise_jax.evaluation.judge import Judge
from poise_jax.evaluation.value import Values
from poise_jax.training import checkpoints, step
from poise_jax.training.build import Experiment, build
from poise_jax.training.rewards import token_rewards
from poise_jax.training.state import LoopState, abstract_state
from poise_jax.types import Experience
from poise_jax.verifiers.pool import Pool


def measure(
  config: ConfigDict,
  checkpoint: pathlib.Path,
  samples: int,
  track: Callable[[Iterable, int], Iterable] = lambda batches, total: batches,
) -> tuple[Values, int]:
  """Samples responses to the run's held-out prompts and predicts the prompts' values from each.

  Responses are sampled, judged and rewarded as in training, but for a KL penalty in the reward,
  which is left out.

  Args:
    config: of the run.
    checkpoint: one of its checkpoints, which is only read.
    samples: k; k + 1 responses a prompt.
    track: (batches, number of batches) -> the batches, for a progress bar.

  Returns:
    Rewards and predictions, and the step of the checkpoint.

  Raises:
    UserError: samples is less than 1, the checkpoint does not belong to the config, or the data is
      not that of the run.
    OSError: the checkpoint is damaged.
  """
  if samples < 1:
    raise UserError(f"--samples={samples} must be at least 1: predictions are compared with avg@k")
  experiment = build(config)
  function = experiment.config.verifier.function
  compare_fingerprint(experiment.task, checkpoint.parent.parent, function)
  with (
    jax.set_mesh(experiment.mesh),
    Pool(experiment.verifier.workers, experiment.verifier.time_limit) as pool,
  ):
    state, about = checkpoints.read(checkpoint, abstract_state(experiment))
    judge = Judge(pool, experiment.verifier)
    judge.load(example.check for test in experiment.held_out for example in test.examples)
    parts = list(_batches(experiment, LoopState(*state), judge, samples + 1, track))
  rewards, predictions, domains = zip(*parts, strict=True)
  values = Values(
    np.concatenate(rewards), np.concatenate(predictions), sum(domains, []), dict(judge.counts)
  )
  return values, about["step"]


def batch_size(experiment: Experiment, n: int) -> int:
  """Prompts a batch: about as many responses as in a step, but no more than the sets have prompts.

  A multiple of the mesh's shards and, where a step has as many, of the critic's micro-batches.
  """
  shards = sharding.batch_shards(experiment.mesh)
  prompts = experiment.config.rollouts // n
  micro = max(experiment.update.microbatch_size // n, 1)
  unit = math.lcm(shards, micro)
  unit = unit if unit <= prompts else shards
  largest = max(len(test.examples) for test in experiment.held_out)
  return min(max(prompts // unit, 1), -(-largest // unit)) * unit


def _batches(experiment: Experiment, state: LoopState, judge: Judge, n: int, track):
  """(rewards [B, n], predictions [B, n], domains) of each batch of held-out prompts."""
  config, size = experiment.config, batch_size(experiment, n)
  decoding = experiment.sampling_params(state.policy.params)
  options = dataclasses.replace(experiment.rollout, n=n)
  total = sum(len(test.batches(size)) for test in experiment.held_out)
  batches = (
    (test, *batch)
    for test in experiment.held_out
    for batch in sampled(
      experiment.model, decoding, test, options, config.seed, size, experiment.mesh
    )
  )
  for test, ids, examples, rollouts in track(batches, total):
    encoding = dataclasses.replace(experiment, encoder=test.encoder)
    count = len(ids)  # the rows after repeat the last prompt
    tokens, mask = sharding.fetch((rollouts.tokens, rollouts.mask))
    real = rollouts.replace(tokens=tokens[:count], mask=mask[:count])
    scores = np.zeros((size, n), np.float32)
    scores[:count] = step.score(encoding, judge, examples[:count], real)
    places = {name: i for i, name in enumerate(experiment.task.domains)}
    batch = sharding.put_batch(
      experiment.mesh,
      {
        "scores": scores,
        # A domain that the run was not trained on has no probe.
        "domains": np.array([places.get(e.domain, -1) for e in examples], np.int32),
        "prompt_ids": np.zeros(len(examples), np.int32),
      },
    )
    no_kl = dataclasses.replace(experiment.reward, kl_coef=0.0)
    rewards = token_rewards(batch["scores"], rollouts.mask, no_kl)
    experience = Experience(rollouts=rollouts, token_rewards=rewards, **batch)
    predictions = np.full(scores.shape, np.nan, np.float32)
    if experiment.estimator.predict:
      predictions = sharding.fetch(experiment.estimator.predict(state.estimator, experience))
    rewards = sharding.fetch(experience.rewards)
    yield rewards[:count], predictions[:count], [e.domain for e in examples[:count]]
