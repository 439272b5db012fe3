"""Bias and variance of a real policy's gradient under different baselines:

python -m experiments.gradients --config=FILE.py --workdir=DIR [--prompts=P] [--samples=n]
  [--batch=B] [--size=S] [--config.FIELD=VALUE ...]

Samples 2n answers to each of P training prompts with the config's policy. The first n give each
prompt a fixed baseline; of the others the exact gradients of their log-probabilities are computed,
and kept as sketches of S numbers, whose inner products are those of the gradients on average.
Writes DIR/results.json: the bias of each probe's baseline, the variance of batches of B answers
with m = 1, 2, 4 ... answers a prompt beside the formula of Proposition 1 (arXiv 2605.07579), whose
parts are estimated on other prompts, and what the algorithms' baselines leave of the variance. The
same command continues from the sketches, and another config on the same DIR is an error.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from experiments import answers, cli, gradient_noise
from experiments import train as command
from poise_jax import files
from poise_jax.errors import UserError
from poise_jax.estimators import ProbeConfig, group, probe
from poise_jax.learner.logprobs import token_logprobs
from poise_jax.models import Rows, hidden_states, unembedding
from poise_jax.rollout.features import ENTROPIES

PROMPTS = flags.DEFINE_integer("prompts", 512, "training prompts")
SAMPLES = flags.DEFINE_integer("samples", 8, "answers per prompt whose gradients are computed")
BATCH = flags.DEFINE_integer("batch", 64, "answers of a batch, at most a quarter of the prompts")
SIZE = flags.DEFINE_integer("size", 4093, "numbers in the sketch of a gradient")
WIDTH = 64  # tokens of a response are padded to a multiple of it


def sketch(tree: PyTree[Array], size: int) -> Float[Array, " S"]:
  """A sketch of all leaves: entries with random signs, summed over positions that are equal mod S.

  Inner products of sketches are those of the trees on average over the signs, which depend on the
  positions alone. A tree of at most S entries is kept as it is.
  """
  flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
  flat = jnp.pad(flat, (0, -len(flat) % size))
  if len(flat) == size:
    return flat
  signs = jax.random.rademacher(jax.random.key(0), flat.shape, flat.dtype)
  return (signs * flat).reshape(-1, size).sum(0)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def scores(model, params, prompt, response, temperature: float, size: int) -> Float[Array, "n S"]:
  """Sketches of d log pi(y | x) / d parameters for the answers to a prompt.

  Args:
    model: the decoder's shape.
    params: parameters in the training layout.
    prompt: tokens and mask [Tp].
    response: tokens and mask [n, T].
    temperature: of the sampler.
    size: S.
  """

  def logprob(params, tokens, mask):
    row = Rows(
      *(jnp.concatenate([a, b])[None] for a, b in zip(prompt, (tokens, mask), strict=True))
    )
    states, _ = hidden_states(model, params, row)
    before = states[:, len(prompt[0]) - 1 : -1]
    values, _ = token_logprobs(before, unembedding(model, params), tokens[None], temperature)
    return jnp.where(mask, values[0], 0.0).sum()

  def score(answer):
    return sketch(jax.grad(logprob)(params, *answer), size)

  return jax.lax.map(score, response)


def sample(experiment, params: PyTree[Array], prompts: int, path: pathlib.Path):
  """Samples answers, and writes rewards [P, 2n], features [P, 2n, F] and scores [P, n, S]."""
  n, parts = SAMPLES.value, []
  for experience in answers.sampled(experiment, params, prompts, 2 * n):
    rollouts, made = experience.rollouts, []
    asked = [np.asarray(x) for x in (rollouts.prompts.tokens, rollouts.prompts.mask)]
    answered = [np.asarray(x)[:, n:] for x in (rollouts.tokens, rollouts.mask)]
    for p, length in enumerate(answered[1].sum(-1).max(-1)):
      width = min(-(-int(length) // WIDTH) * WIDTH, answered[0].shape[-1])
      prompt = tuple(x[p] for x in asked)
      response = tuple(x[p, :, :width] for x in answered)
      temperature = experiment.update.temperature
      made.append(scores(experiment.model, params, prompt, response, temperature, SIZE.value))
    arrays = experience.rewards, rollouts.features, jnp.stack(made)
    parts.append([np.asarray(x) for x in arrays])
  rewards, features, sketches = (np.concatenate(x)[:prompts] for x in zip(*parts, strict=True))
  answers.write(path, rewards=rewards, features=features, scores=sketches)


def predictions(
  rewards: Float[np.ndarray, "P n"], features: Float[np.ndarray, "P n F"], config: ProbeConfig
) -> Float[np.ndarray, "P n"]:
  """A probe's prediction from each answer, fitted on the other half of the prompts."""
  half, made = len(rewards) // 2, []
  parts = slice(0, half), slice(half, None)
  for tested, fitted_on in zip(parts, parts[::-1], strict=True):
    fitted = answers.fit_probe(rewards[fitted_on], features[fitted_on], config)
    made.append(np.asarray(probe.predict(fitted, features[tested])))
  return np.concatenate(made)


def analyse(
  rewards: Float[np.ndarray, "P N"],
  features: Float[np.ndarray, "P N F"],
  sketches: Float[np.ndarray, "P n S"],
  config: ProbeConfig,
  batch: int,
) -> dict:
  """The numbers of results.json; N = 2n answers, of which the last n have scores."""
  n = sketches.shape[1]
  fixed, rewards = rewards[:, :n].mean(1, keepdims=True), rewards[:, n:]
  features = features[:, n:]
  advantages = rewards - fixed
  gradient = gradient_noise.of_prompts(sketches, advantages)
  width = (features.shape[-1] - ENTROPIES) // 2
  prompt_only = features * (np.arange(features.shape[-1]) < width)
  # As in training with n = 1: `predictions` fits the siblings of what it gets, here the rewards.
  on_own_reward = predictions(answers.of_siblings(rewards), features, config)
  own = predictions(rewards, features, config)
  prompt = predictions(rewards, prompt_only, config)
  crossed, sibling = answers.of_siblings(own), answers.of_siblings(rewards)
  with_reward = np.concatenate([features, rewards[..., None]], -1).astype(np.float32)
  reads_reward = dataclasses.replace(config, scalars=config.scalars + 1)
  both = answers.of_siblings(predictions(rewards, with_reward, reads_reward))
  baselines = {
    "own rollout, n = 1": on_own_reward,
    "own rollout, n = 2": own,
    "poise": crossed,
    "prompt only": prompt,
    "poise_sibling": both,
    "rloo": sibling,
  }
  each = advantages[..., None] * sketches
  within, between = gradient_noise.components(each)
  sizes = [m for m in (1, 2, 4, 8) if n % m == 0 == batch % m]
  left = {
    "fixed": (advantages, 1, None),
    "prompt only": (rewards - prompt, 1, None),
    "rloo, n = 2": (rewards - sibling, 2, None),
    "poise, n = 2": (rewards - crossed, 2, None),
    "poise_sibling, n = 2": (rewards - both, 2, None),
    f"rloo, n = {n}": (np.asarray(group.rloo(rewards)), n, None),
    f"dapo, n = {n}": (np.asarray(group.grpo(rewards)), n, rewards),
  }
  return {
    "squared gradient": gradient_noise.product(gradient, gradient),
    "squared bias": {
      name: gradient_noise.squared_bias(sketches, b, fixed, gradient)
      for name, b in baselines.items()
    },
    "within": within,
    "between": between,
    "halves": gradient_noise.by_halves(each, batch, sizes),
    "baselines": {
      name: gradient_noise.under_baseline(sketches, a, m, gradient, batch, kept)
      for name, (a, m, kept) in left.items()
    },
  }


def measure(config: ConfigDict, folder: str):
  """Samples unless scores.npz exists, and writes results.json.

  Raises:
    UserError: --prompts, --samples, --batch or --size is out of range, or the folder holds answers
      of another config.
  """
  from poise_jax.provenance import provenance
  from poise_jax.training import build

  config = config.copy_and_resolve_references()
  prompts, n, batch = PROMPTS.value, SAMPLES.value, BATCH.value
  answers.check_numbers(prompts, n)
  if not 2 <= batch <= prompts // 4:
    raise UserError(
      f"--batch={batch} must be at least 2 and at most a quarter of --prompts={prompts}: each half "
      "of the prompts has to fill two batches"
    )
  if SIZE.value < 1:
    raise UserError(f"--size={SIZE.value} must be at least 1")
  experiment = build.build(config)
  answers.check_prompts(experiment, prompts)
  sizes = {"prompts": prompts, "samples": n, "batch": batch, "size": SIZE.value}
  folder = pathlib.Path(folder)
  answers.claim(config, folder, "gradients", **sizes)
  path = folder / "scores.npz"
  with jax.set_mesh(experiment.mesh):
    if not path.exists():
      sample(experiment, answers.params_of(experiment), prompts, path)
    data = np.load(path)
    probe_config = ProbeConfig(**config.probe)
    found = analyse(data["rewards"], data["features"], data["scores"], probe_config, batch)
  text = json.dumps({**sizes, **files.known(found), "provenance": provenance()}, indent=2)
  (folder / "results.json").write_text(text + "\n")
  print(text)


if __name__ == "__main__":
  cli.run(functools.partial(command.main, work=measure))
