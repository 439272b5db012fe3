"""Bias and variance of every estimator's gradient: python -m experiments.bias_variance

A toy policy writes answers of three bits to four prompts of different difficulty, which share all
of its parameters. Every possible batch is weighted with its probability, so the numbers are exact.
Prints the table of docs/algorithms.md.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments import cli
from poise_jax import estimators
from poise_jax.estimators import Estimator, EstimatorContext, ProbeConfig, probe, spo
from poise_jax.models import ModelConfig
from poise_jax.reports import markdown
from poise_jax.rollout import RolloutConfig
from poise_jax.types import Experience, Prompts, Rollouts

# Letters: X prompts, Y answers, S states, G groups, n samples per prompt, F features.
LENGTH = 3
ANSWERS = list(itertools.product((0, 1), repeat=LENGTH))
# A state is a prefix. Each has its own logits, so that later bits depend on earlier ones.
PREFIXES = [p for t in range(LENGTH) for p in itertools.product((0, 1), repeat=t)]
SOLVED = (1, 3, 5, 7)  # number of right answers, out of 8, for each prompt
PROBE = ProbeConfig(alpha=1.0, buffer_rows=2048, bootstrap_steps=1)
HEADER = ("baseline", "n", "bias", "bias, rescaled", "variance x rollouts, rescaled")


def policy(
  logits: Float[np.ndarray, "S 2"],
) -> tuple[Float[np.ndarray, " Y"], Float[np.ndarray, "Y 2*S"]]:
  """Probabilities and scores, d log pi(y) / d logits, of every answer in float64.

  Args:
    logits: logits of the next bit after each prefix.
  """
  table = np.exp(logits - logits.max(-1, keepdims=True))
  table /= table.sum(-1, keepdims=True)
  probabilities, scores = [], []
  for answer in ANSWERS:
    probability, score = 1.0, np.zeros_like(logits)
    for t, bit in enumerate(answer):
      state = PREFIXES.index(answer[:t])
      probability *= table[state, bit]
      score[state] -= table[state]
      score[state, bit] += 1.0
    probabilities.append(probability)
    scores.append(score.ravel())
  return np.array(probabilities), np.array(scores)


def experience(
  rewards: Float[np.ndarray, "G n"], features: Float[np.ndarray, "G n F"]
) -> Experience:
  """The experience of responses of one token."""
  rewards, features = jnp.asarray(rewards, jnp.float32), jnp.asarray(features, jnp.float32)
  zero, ids = jnp.zeros((*rewards.shape, 1)), jnp.zeros(len(rewards), jnp.int32)
  mask, truncated = jnp.ones(zero.shape, bool), jnp.zeros(rewards.shape, bool)
  prompts = Prompts(ids[:, None], jnp.ones((len(ids), 1), bool))
  rollouts = Rollouts(prompts, zero.astype(jnp.int32), mask, zero, zero, truncated, features)
  return Experience(rollouts, rewards, rewards[..., None], domains=ids, prompt_ids=ids)


def estimator_of(name: str, n: int, features: int, config: ProbeConfig) -> Estimator:
  """An estimator for groups of n responses with an odd number of features."""
  width = (features - 3) // 2
  model = ModelConfig("qwen3", 8, width, 8, 1, 1, 1, 2)
  rollout = RolloutConfig(n=n, feature_layers=(0,))
  return estimators.make(name, EstimatorContext(rollout, model, probe=config))


class Toy:
  """Probabilities, scores, rewards and features of every answer to every prompt."""

  def __init__(self, seed: int = 0, blind: bool = False):
    """Draws the policy; with `blind`, features are noise."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=len(PREFIXES))
    prompts = len(SOLVED)
    offsets = rng.normal(0, 0.5, size=(prompts, len(PREFIXES)))
    policies = [policy(np.stack([0 * shared, shared + x], 1)) for x in offsets]
    # [X, Y] probability of an answer, and [X, Y, S] its score d log probability / d shared.
    self.probabilities = np.array([probabilities for probabilities, _ in policies])
    self.scores = np.array([scores[:, 1::2] for _, scores in policies])
    self.rewards = np.array([rng.permutation(8) < right for right in SOLVED], np.float32)
    value = (self.probabilities * self.rewards).sum(1)
    # Features are the value and noise; those of the response also depend on its own reward.
    self.features = rng.normal(0, 0.3, size=(*self.rewards.shape, 7)).astype(np.float32)
    if not blind:
      self.features += value[:, None, None]
      self.features[..., 2:4] += 0.5 * self.rewards[..., None]
    self.gradient = np.einsum("xy,xy,xys->s", self.probabilities, self.rewards, self.scores)
    self.gradient /= prompts

  def draw(
    self, seed: int, groups: int, n: int
  ) -> tuple[Int[np.ndarray, " G"], Int[np.ndarray, "G n"]]:
    """Random prompts and answers."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(len(SOLVED), size=groups)
    answers = [rng.choice(len(ANSWERS), size=n, p=self.probabilities[x]) for x in prompts]
    return prompts, np.array(answers)

  def experience(
    self, prompts: Int[np.ndarray, " G"], answers: Int[np.ndarray, "G n"]
  ) -> Experience:
    """The experience of groups of answers."""
    x = prompts[:, None]
    return experience(self.rewards[x, answers], self.features[x, answers])


def value_of_prompts(toy: Toy, name: str) -> Float[np.ndarray, " X"]:
  """Baselines that depend on the prompt alone, from earlier rollouts of it.

  sppo: the limit of its cross-entropy, the mean reward of as many rollouts as POISE's buffer holds.
  pvpo: the mean of 8 rollouts of a reference, here the policy itself. spo: the tracker after 64
  rollouts per prompt of a fixed policy, without whitening, which is only a factor.
  """
  rng = np.random.default_rng(1)
  count = {"sppo": PROBE.buffer_rows // len(SOLVED), "pvpo": 8, "spo": 64}[name]
  answers = np.array([rng.choice(len(ANSWERS), count, p=p) for p in toy.probabilities])
  rewards = np.take_along_axis(toy.rewards, answers, axis=1)
  if name != "spo":
    return rewards.mean(1)
  tracker, prompts = spo.init(len(SOLVED)), jnp.arange(len(SOLVED))
  for column in rewards.T:
    tracker = spo.update(tracker, prompts, jnp.asarray(column), jnp.zeros(len(SOLVED)))
  return np.asarray(spo.value(tracker))


def advantages_of(toy: Toy, name: str, n: int) -> Callable[..., Float[Array, "G n"]]:
  """A function of (prompts [G], answers [G, n]); each group is a batch of its own."""
  if name == "no baseline":
    return lambda *groups: toy.experience(*groups).rewards
  if name in ("the value itself", "sppo", "spo", "pvpo"):
    if name == "the value itself":
      value = (toy.probabilities * toy.rewards).sum(1)
    else:
      value = value_of_prompts(toy, name)
    return lambda prompts, answers: (
      toy.experience(prompts, answers).rewards - value[prompts][:, None]
    )
  if name in ("poise", "poise_sibling", "own rollout"):
    siblings = max(n, 2)
    estimator = estimator_of("poise" if name == "own rollout" else name, siblings, 7, PROBE)
    earlier = toy.experience(*toy.draw(1, PROBE.buffer_rows // siblings, siblings))
    state = estimator.update(estimator.init(()), earlier, (), ())
    if name != "own rollout":
      return lambda *groups: estimator.estimate(state, toy.experience(*groups)).advantages

    def own_rollout(*groups):
      batch = toy.experience(*groups)
      fitted = jax.tree.map(lambda leaf: leaf[0], state.probes)
      return batch.rewards - probe.predict(fitted, batch.rollouts.features)

    return own_rollout
  return lambda *groups: getattr(estimators, name)(toy.experience(*groups).rewards)


def bias_and_variance(toy: Toy, name: str, n: int) -> tuple[float, float, float]:
  """Bias and variance of the gradient estimate mean_i A_i grad log pi(y_i | x) over groups of n.

  Returns:
    bias: |E - exact| / |exact|.
    rescaled bias: the same after the best rescaling of the estimate, since a factor is a matter of
      the learning rate.
    variance: total variance of the rescaled estimate times n. Divided by the number of rollouts in
      a batch, it is the variance of the batch's estimate.
  """
  groups = np.array(list(itertools.product(range(len(SOLVED)), *[range(len(ANSWERS))] * n)))
  prompts, answers = groups[:, 0], groups[:, 1:]
  weights = toy.probabilities[prompts[:, None], answers].prod(1) / len(SOLVED)
  advantages = np.asarray(advantages_of(toy, name, n)(prompts, answers), np.float64)
  estimates = (advantages[..., None] * toy.scores[prompts[:, None], answers]).mean(1)
  expected, exact = weights @ estimates, toy.gradient
  scale = exact @ expected / (expected @ expected)
  size = np.linalg.norm(exact)
  variance = weights @ ((estimates - expected) ** 2).sum(1)
  return (
    float(np.linalg.norm(expected - exact) / size),
    float(np.linalg.norm(scale * expected - exact) / size),
    float(n * scale**2 * variance),
  )


BLIND = ", states of noise"
ROWS = (
  ("no baseline", 1),
  ("the value itself", 1),
  ("own rollout", 1),
  ("sppo", 1),
  ("pvpo", 1),
  ("spo", 1),
  ("poise", 2),
  ("poise_sibling", 2),
  ("rloo", 2),
  ("dr_grpo", 2),
  ("grpo", 2),
  ("poise" + BLIND, 2),
  ("poise_sibling" + BLIND, 2),
  ("poise", 4),
  ("poise_sibling", 4),
  ("rloo", 4),
  ("dr_grpo", 4),
  ("grpo", 4),
)


def table() -> str:
  """The table in Markdown."""
  toys = {blind: Toy(blind=blind) for blind in (False, True)}
  lines = []
  for name, n in ROWS:
    toy = toys[name.endswith(BLIND)]
    numbers = bias_and_variance(toy, name.removesuffix(BLIND), n)
    lines.append([name, n, *(f"{number:.3f}" for number in numbers)])
  return markdown.table(HEADER, lines)


def main(argv: list[str]):
  """Prints the table."""
  cli.refuse_arguments(argv)
  print(table())


if __name__ == "__main__":
  cli.run(main)
