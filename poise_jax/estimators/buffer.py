"""The probe's training data: the last groups of every domain.

Letters: P prompts, n samples a prompt, F features, K domains, G groups that the largest ring holds
(a group is the n rollouts of one prompt).
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from poise_jax.errors import UserError


@flax.struct.dataclass
class Buffer:
  """The last groups of every domain, in rings: the j-th group of a domain whose ring has c slots is
  in slot j mod c."""

  features: Float[Array, "*K G n F"]
  targets: Float[Array, "*K G n"]  # what the probe is to predict, see poise.targets_of
  count: Int[Array, "*K"]  # groups ever inserted
  capacity: Int[Array, "*K"]  # slots of the domain's ring, at most G

  @property
  def filled(self) -> Int[Array, "*K"]:
    """Groups that the ring holds."""
    return jnp.minimum(self.count, self.capacity)


def empty(rows: int | Sequence[int], n: int, num_features: int, num_domains: int) -> Buffer:
  """A buffer without a group.

  Args:
    rows: rollouts that a domain's ring holds, rounded down to whole groups: one number for all
      domains, or one each.
    n: samples a prompt.
    num_features: F.
    num_domains: K; domains are the integers 0 .. K-1.

  Raises:
    UserError: the ring is smaller than one group.
  """
  rows = np.broadcast_to(rows, num_domains)
  capacity = rows // n
  if capacity.min() < 1:
    raise UserError(
      f"probe.buffer_rows must be at least rollout.n={n}, one group, got {rows.min()}"
    )
  shape = num_domains, int(capacity.max()), n
  return Buffer(
    features=jnp.zeros((*shape, num_features), jnp.float32),
    targets=jnp.zeros(shape, jnp.float32),
    count=jnp.zeros(num_domains, jnp.int32),
    capacity=jnp.array(capacity, jnp.int32),
  )


@jax.jit
def insert(
  buffer: Buffer,
  features: Float[Array, "P n F"],
  targets: Float[Array, "P n"],
  domains: Int[Array, " P"],
) -> Buffer:
  """Appends P groups in order, each to its domain, in the place of that domain's oldest groups.

  Groups whose domain is not in 0 .. K-1 are dropped.
  """
  num_domains, groups = buffer.targets.shape[:2]
  member = domains[:, None] == jnp.arange(num_domains)
  arrivals = member.sum(0)
  order = jnp.where(member, jnp.cumsum(member, axis=0) - 1, 0).sum(1)  # rank within its domain
  slots = buffer.capacity[domains]
  stored = member.any(1) & (order >= arrivals[domains] - slots)  # the last, when too many arrive
  slot = jnp.where(stored, (buffer.count[domains] + order) % slots, groups)
  return buffer.replace(
    features=buffer.features.at[domains, slot].set(features, mode="drop"),
    targets=buffer.targets.at[domains, slot].set(targets, mode="drop"),
    count=buffer.count + arrivals,
  )
