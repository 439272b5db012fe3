"""Answers that score well but look unusual: a first sign of reward hacking.

Short: an answer that earns with less than a quarter of the tokens that answers of its difficulty
usually need to earn. Repeated: the same response, word for word, earns on prompts that ask for
different things. Neither proves anything; both are worth reading.
"""

import collections
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt

from poise_jax.data.tasks import Example
from poise_jax.distributed import sharding
from poise_jax.types import Experience

EARNS = 0.5  # score from which an answer earns
SHORT = 0.25  # of the median length of answers that earn
FEWEST = 8  # answers that earn, of one difficulty, from which their median says anything
PROMPTS = 3  # prompts with different reference answers on which a repeated response earns


def find(
  examples: Sequence[Example], experience: Experience
) -> tuple[dict[str, Bool[np.ndarray, "P n"]], dict[str, float]]:
  """The unusual answers of a step, on the host; all processes call this together.

  Args:
    examples: the prompt of each group.
    experience: P groups; those without tokens are padding.

  Returns:
    {"short": ..., "repeated": ...}: whether an answer earns like this; and metrics: the shares of
    such answers among those that earn (0 if none does), and rollout/repeated_fraction, the share of
    all answers that are the most frequent one of those that do not earn.
  """
  lengths, prints = _lengths_and_hashes(experience.rollouts.tokens, experience.rollouts.mask)
  scores, lengths, prints = sharding.fetch((experience.scores, lengths, prints))
  earns = (scores >= EARNS) & (lengths > 0)
  found = {
    "short": _short(examples, earns, lengths),
    "repeated": _repeated(examples, earns, prints),
  }
  earning = max(1, int(earns.sum()))
  metrics = {f"reward/{name}_fraction": x.sum() / earning for name, x in found.items()}
  _, counts = np.unique(prints[~earns & (lengths > 0)], return_counts=True)
  metrics["rollout/repeated_fraction"] = counts.max(initial=0) / max(1, int((lengths > 0).sum()))
  return found, metrics


def _short(examples, earns, lengths):
  difficulties = np.array([example.difficulty for example in examples])[:, None]
  short = np.zeros_like(earns)
  for difficulty in np.unique(difficulties):
    members = earns & (difficulties == difficulty)
    if members.sum() >= FEWEST:
      short |= members & (lengths < SHORT * np.median(lengths[members]))
  return short


def _repeated(examples, earns, prints):
  asked = collections.defaultdict(set)  # response -> reference answers of the prompts it earns on
  for p, i in np.argwhere(earns):
    asked[prints[p, i]].add(examples[p].answer)
  common = [response for response, answers in asked.items() if len(answers) >= PROMPTS]
  return earns & np.isin(prints, np.array(common, prints.dtype))


@jax.jit
def _lengths_and_hashes(
  tokens: Int[Array, "P n T"], mask: Bool[Array, "P n T"]
) -> tuple[Int[Array, "P n"], UInt[Array, "P n"]]:
  """Hashes are equal for equal responses, hardly ever for others."""
  first, second, third = np.uint32([2654435761, 2246822519, 3266489917])  # odd, of many bits
  places = jnp.arange(tokens.shape[-1], dtype=jnp.uint32)
  hashed = (tokens.astype(jnp.uint32) + 1) * first ^ (places + 1) * second
  hashed = (hashed ^ hashed >> 15) * third
  hashes = jnp.where(mask, hashed ^ hashed >> 13, 0).sum(-1, dtype=jnp.uint32)
  return mask.sum(-1), hashes
