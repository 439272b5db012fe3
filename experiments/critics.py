"""Critics that learn from a fixed set of answers, for comparison with a probe on the same ones."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree
from rich.progress import track

from poise_jax import estimators
from poise_jax.distributed import sharding
from poise_jax.estimators import CriticConfig, EstimatorContext
from poise_jax.training.build import Experiment
from poise_jax.types import Experience, Prompts, Rollouts

HELD_OUT = 8  # one of so many prompts is held out to choose passes and rate
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Search:
  """How a critic is trained: of the passes and the rates, the best count."""

  algorithm: str
  passes: int  # over the answers, at most
  rates: tuple[float, ...] = (1.0, 0.1)  # multiples of critic.learning_rate


# A critic of the prompt alone, whose pass is cheap; one of each token; and the first, longer.
SEARCHES = {
  "sppo": Search("sppo", 16),
  "ppo": Search("ppo", 4),
  "sppo, longer": Search("sppo", 32, (0.1,)),
}


@dataclasses.dataclass(frozen=True)
class Learner:
  """A critic's estimator on an experiment's answers."""

  experiment: Experiment
  arrays: Arrays  # of probe_ablation.sample
  estimator: estimators.Estimator

  def batches(self, ids: np.ndarray) -> Iterator[Experience]:
    """The answers to some prompts, a batch of a step's responses at a time; the last is filled up
    with prompts from the start."""
    n = self.arrays["rewards"].shape[1]
    size = min(max(self.experiment.config.rollouts // n, 1), len(ids))
    for start in range(0, len(ids), size):
      yield self.experience(np.resize(np.roll(ids, -start), size))

  def experience(self, ids: np.ndarray) -> Experience:
    """The answers to some prompts [P]."""
    part = {name: array[ids] for name, array in self.arrays.items()}
    rewards, mask = part["rewards"].astype(np.float32), part["mask"]
    last = mask & ~np.pad(mask[..., 1:], [(0, 0), (0, 0), (0, 1)])
    token_rewards = (last * rewards[..., None]).astype(np.float32)
    zeros = np.zeros(mask.shape, np.float32)
    prompts = Prompts(part["prompt_tokens"], part["prompt_mask"])
    truncated = np.zeros(rewards.shape, bool)
    features = part["features"].astype(np.float32)
    rollouts = Rollouts(prompts, part["tokens"], mask, zeros, zeros, truncated, features)
    domains = part["domains"].astype(np.int32)
    made = Experience(rollouts, rewards, token_rewards, domains, ids.astype(np.int32))
    return sharding.put_batch(self.experiment.mesh, made)

  def epoch(self, state: PyTree[Array], ids: np.ndarray, params: PyTree[Array]) -> PyTree[Array]:
    """One pass over the answers to some prompts."""
    for batch in self.batches(ids):
      estimate = self.estimator.estimate(state, batch)
      state = self.estimator.update(state, batch, params, estimate.aux)
    return jax.block_until_ready(state)

  def predict(self, state: PyTree[Array], ids: np.ndarray) -> Float[np.ndarray, "P n"]:
    """The values of some prompts, one for each of their answers."""
    parts = [np.asarray(self.estimator.predict(state, batch)) for batch in self.batches(ids)]
    return np.concatenate(parts)[: len(ids)]


def learn(
  experiment: Experiment, params: PyTree[Array], arrays: Arrays, name: str
) -> tuple[Float[np.ndarray, "P/2 n"], dict[str, float]]:
  """Trains a critic on the first half of the prompts and predicts the values of the second half.

  The critic gets its best learning rate and its best number of passes, chosen on a part of the
  first half that it is not trained on. It is then trained once more with these on the whole half,
  from which the probe learns, too.

  Args:
    experiment: model, options and mesh.
    params: the policy, from which the critic starts.
    arrays: of probe_ablation.sample.
    name: one of SEARCHES.

  Returns:
    Predictions, and the cost of one pass over the whole half: "seconds", "bytes"; and the choice,
    "passes" and "learning_rate".
  """
  half, search = len(arrays["rewards"]) // 2, SEARCHES[name]
  ids = np.arange(half)
  held_out = ids % HELD_OUT == HELD_OUT - 1 if half >= HELD_OUT else ids == half - 1
  candidates = []  # (error, passes, factor)
  for factor in search.rates:
    learner = Learner(experiment, arrays, _estimator(experiment, arrays, search, factor))
    state = learner.estimator.init(params)
    about = f"critic of {name}, {factor:g} x critic.learning_rate"
    for passes in track(range(1, search.passes + 1), description=about):
      state = learner.epoch(state, ids[~held_out], params)
      error = arrays["rewards"][ids[held_out]] - learner.predict(state, ids[held_out])
      candidates.append((float(np.nan_to_num((error**2).mean(), nan=np.inf)), passes, factor))
  _, passes, factor = min(candidates)
  learner = Learner(experiment, arrays, _estimator(experiment, arrays, search, factor))
  state, seconds = learner.estimator.init(params), []
  for _ in track(range(passes), description=f"critic of {name}, as chosen"):
    begin = time.perf_counter()
    state = learner.epoch(state, ids, params)
    seconds.append(time.perf_counter() - begin)
  predicted = learner.predict(state, np.arange(half, len(arrays["rewards"])))
  return np.clip(predicted, 0.0, 1.0), {
    "seconds": min(seconds),
    "bytes": critic_bytes(state),
    "passes": passes,
    "learning_rate": experiment.config.critic.learning_rate * factor,
  }


def critic_bytes(state: PyTree[Array | jax.ShapeDtypeStruct]) -> float:
  """Bytes of a critic's state with its optimizer, and of its gradients."""
  return float(size_of(state) + size_of(state.params))


def size_of(tree: PyTree[Array | jax.ShapeDtypeStruct]) -> int:
  """Bytes of all arrays."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _estimator(experiment, arrays, search, factor):
  rollout = dataclasses.replace(experiment.rollout, n=arrays["rewards"].shape[1])
  config = CriticConfig(**experiment.config.critic)
  config = dataclasses.replace(config, learning_rate=config.learning_rate * factor)
  context = EstimatorContext(rollout, experiment.model, experiment.update, critic=config)
  return estimators.make(search.algorithm, context)


def cost(fit: Callable[[], PyTree[Array]]) -> dict[str, float]:
  """Seconds of a compiled fit, the fastest of three as for critics, and bytes of what it makes."""
  made, seconds = jax.block_until_ready(fit()), np.inf
  for _ in range(3):
    begin = time.perf_counter()
    jax.block_until_ready(fit())
    seconds = min(time.perf_counter() - begin, seconds)
  return {"seconds": seconds, "bytes": float(size_of(made))}


def describe(costs: Mapping[str, Mapping[str, Any]]) -> str:
  """The costs in a sentence."""
  parts = [
    f"{name} {c['seconds']:.3f} s and {c['bytes'] / 1e6:.2f} MB" for name, c in costs.items()
  ]
  return f"A fit, for critics one pass over the same answers, takes: {'; '.join(parts)}."
