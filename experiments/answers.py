"""Answers of a config's policy to its training prompts, judged, for commands that study them."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from poise_jax import files
from poise_jax.data.tasks import Example
from poise_jax.errors import UserError
from poise_jax.estimators import ProbeConfig, probe
from poise_jax.training import build, workdir
from poise_jax.training.build import Experiment
from poise_jax.types import Experience


def claim(config: ConfigDict, folder: pathlib.Path, thing: str, **flags: int):
  """Keeps answers of another config, or made with other flags, from being read as this one's.

  Args:
    config: resolved.
    folder: of the answers; gets a config.json.
    thing: what the folder holds, for the message.
    flags: values of the command's flags.

  Raises:
    UserError: the folder holds such answers, or something else.
  """
  content = {**json.loads(config.to_json()), **flags}
  files.claim(folder, workdir.CONFIG, content, thing, "--workdir")


def check_numbers(prompts: int, samples: int):
  """Raises UserError if answers cannot be paired, or prompts not be halved."""
  if samples < 2 or samples % 2:
    raise UserError(f"--samples={samples} must be even and at least 2: answers are paired")
  if prompts < 2:
    raise UserError(f"--prompts={prompts} must be at least 2: one half is for fitting")


def check_prompts(experiment: Experiment, prompts: int):
  """Raises UserError if there are fewer different training prompts."""
  count = len(different(experiment.task.train))
  if prompts > count:
    raise UserError(
      f"--prompts={prompts} must not exceed the {count} different questions of the training set"
    )


def different(examples: Sequence[Example]) -> Int[np.ndarray, " Q"]:
  """The indices of the first example of each question, in order.

  A prompt that is in both halves would let a probe or a critic be tested on what it has seen.
  """
  first = {}
  for index, example in enumerate(examples):
    first.setdefault(example.asked, index)
  return np.array(list(first.values()), np.int64)


def drawn(experiment: Experiment, prompts: int) -> Int[np.ndarray, " P"]:
  """Indices of training examples with different questions, drawn at random: a training set may be
  sorted by domain or difficulty."""
  rng = np.random.default_rng(experiment.config.seed)
  return rng.permutation(different(experiment.task.train))[:prompts]


def levels(experiment: Experiment, ids: Int[np.ndarray, " P"]) -> Int[np.ndarray, " P"]:
  """The difficulties of training examples, as indices in `experiment.difficulties`."""
  train, names = experiment.task.train, experiment.difficulties
  return np.array([names.index(train[i].difficulty) for i in ids])


def sampled(
  experiment: Experiment, params: PyTree[Array], prompts: int, samples: int
) -> Iterator[Experience]:
  """Samples and judges answers to training prompts that are `drawn`, in a step's batches.

  Rewards are those of training, without a KL penalty.

  Args:
    experiment: what to sample with.
    params: the policy in the training layout.
    prompts: number of prompts, P in all; the last batch is filled up with prompts from the start.
    samples: answers a prompt, n.
  """
  from rich.progress import track

  from poise_jax.evaluation.judge import Judge
  from poise_jax.training import step
  from poise_jax.verifiers.pool import Pool

  experiment = dataclasses.replace(
    experiment,
    rollout=dataclasses.replace(experiment.rollout, n=samples),
    reward=dataclasses.replace(experiment.reward, kl_coef=0.0),  # there is no reference policy
    estimator=experiment.estimator._replace(reference_n=0),
  )
  decoding, size = experiment.sampling_params(params), max(experiment.groups, 1)
  key, ids = jax.random.key(experiment.config.seed), drawn(experiment, prompts)
  with Pool(experiment.verifier.workers, experiment.verifier.time_limit) as pool:
    judge = Judge(pool, experiment.verifier)
    for number, start in enumerate(track(range(0, prompts, size), description="sampling")):
      sampling = step.Sampling(experiment, judge, decoding, params, (), key, number, step.Clock())
      yield sampling(np.resize(np.roll(ids, -start), size), 0)


def write(path: pathlib.Path, **arrays: Array):
  """Writes an .npz file whole, so that an interrupted command leaves none."""
  partial = path.with_suffix(".partial.npz")
  np.savez(partial, **arrays)
  partial.rename(path)


def of_siblings(values: Float[np.ndarray, "P n"]) -> Float[np.ndarray, "P n"]:
  """For each answer the value of the answer that it is paired with."""
  return values.reshape(-1, 2)[:, ::-1].reshape(values.shape)


def fit_probe(
  rewards: Float[np.ndarray, "P n"],
  features: Float[np.ndarray, "P n F"],
  config: ProbeConfig,
  rows: int | None = None,
) -> probe.ProbeState:
  """A probe that predicts the reward of each answer's sibling from the first `rows` answers."""
  siblings = of_siblings(rewards).ravel()
  return probe.fit(features.reshape(-1, features.shape[-1])[:rows], siblings[:rows], config)


def params_of(experiment: Experiment) -> PyTree[Array]:
  """The policy before training, after its warm start if the config has one."""
  params = build.initial_params(experiment)
  if not experiment.warm_start.steps:
    return params

  def report(step, loss):
    print(f"warm start {step}  loss {loss:.3f}", flush=True)

  return build.warmed_up(experiment, params, report)
