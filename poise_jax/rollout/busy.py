"""Rows busy over time: how many rows of each decode step drew a token. On the host."""

import jax
import numpy as np
from jaxtyping import Array, Int

from poise_jax.distributed import sharding
from poise_jax.types import Rollouts


def busy_rows(rollouts: Rollouts) -> Int[np.ndarray, " steps"]:
  """Rows that drew a token in each decode step, until the last response ends; int64.

  The first token of a response comes from its prefill, so that the sum is the tokens of all
  responses but their first ones. Each device counts steps of its own, from the same start; all
  processes must call this.

  Args:
    rollouts: as the sampler returns them.
  """
  starts, lengths = sharding.fetch(_spans(rollouts))
  starts, ends = starts.ravel(), (starts + lengths - 1).ravel()
  changes = np.zeros(ends.max() + 1, np.int64)
  np.add.at(changes, starts, 1)
  np.add.at(changes, ends, -1)
  return np.cumsum(changes)[:-1]


@jax.jit
def _spans(rollouts: Rollouts) -> tuple[Int[Array, "P n"], Int[Array, "P n"]]:
  return rollouts.decode_starts, rollouts.mask.sum(-1)
