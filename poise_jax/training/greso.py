"""GRESO: skips prompts whose responses would probably carry no gradient (arXiv 2506.02177).

A group is *easy* if its mean reward is at least 0.98 and *hard* if it is at most 0.11. A prompt
whose last z groups in a row were easy (or hard) is skipped with probability 1 - max(p ** z, 0.01).
There is one p for easy and one for hard prompts; both drift so that the share of such groups
approaches a target, a third of which is for easy and two thirds for hard groups. These numbers are
those of the released code (github.com/Infini-AI-Lab/GRESO, commit b277843). Letters: N training
prompts, P prompts and n samples of a batch.
"""

from collections.abc import Sequence

import flax.struct
import numpy as np
from jaxtyping import Float, Int

STEP = 0.01  # change of p after a training step
P_MIN, P_MAX = 0.05, 0.95
KEEP_MIN = 0.01  # least probability with which a prompt is sampled
EASY, HARD = 0.98, 0.11  # bounds of an easy and of a hard group's mean reward


@flax.struct.dataclass
class Skips:
  """What GRESO remembers of the training prompts."""

  streaks: Int[np.ndarray, " N"]  # latest groups in a row that were easy (> 0) or hard (< 0), int32
  keep: Float[np.ndarray, "2"]  # p of easy and of hard prompts, float64


def init(prompts: int) -> Skips:
  """No prompt has a streak; `prompts` is N."""
  return Skips(np.zeros(prompts, np.int32), np.full(2, 0.5))


def is_skipped(state: Skips, prompt: int, seed: int, position: int) -> bool:
  """Whether to skip a prompt; drawn from `seed` and the position in the order of the prompts."""
  streak = int(state.streaks[prompt])
  if not streak:
    return False
  p = state.keep[0 if streak > 0 else 1]
  return bool(np.random.default_rng([seed, position]).random() >= max(p ** abs(streak), KEEP_MIN))


def update(
  state: Skips,
  batches: Sequence[tuple[Int[np.ndarray, " P"], Float[np.ndarray, "P n"]]],
  target: float,
  adapt: bool,
) -> tuple[Skips, dict[str, float]]:
  """The state after a training step.

  Args:
    state: is not changed.
    batches: (prompt indices, scores) of each batch that the step sampled.
    target: share of easy and hard groups, together, that p aims at.
    adapt: whether to change p.

  Returns:
    The new state and metrics: collect/easy and collect/hard (shares of the sampled groups),
    collect/keep_easy and collect/keep_hard (p).
  """
  streaks, keep = state.streaks.copy(), state.keep.copy()
  easy = hard = total = 0
  for prompts, scores in batches:
    for prompt, group in zip(prompts, scores, strict=True):
      if group.mean() >= EASY:
        streaks[prompt], easy = max(streaks[prompt], 0) + 1, easy + 1
      elif group.mean() <= HARD:
        streaks[prompt], hard = min(streaks[prompt], 0) - 1, hard + 1
      else:
        streaks[prompt] = 0
      total += 1
  shares = np.array([easy, hard]) / max(total, 1)
  if adapt and total:
    too_many = shares >= target * np.array([1, 2]) / 3
    keep = np.clip(keep + np.where(too_many, -STEP, STEP), P_MIN, P_MAX)
  return Skips(streaks, keep), {
    "collect/easy": shares[0],
    "collect/hard": shares[1],
    "collect/keep_easy": keep[0],
    "collect/keep_hard": keep[1],
  }
