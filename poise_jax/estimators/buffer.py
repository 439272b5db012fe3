"""The probe's training data: the last groups of every domain.

Letters: P prompts, n samples a prompt, F features, K domains, G groups that a domain's ring holds
(a group is the n rollouts of one prompt).
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from poise_jax.errors import UserError


@flax.struct.dataclass
class Buffer:
  """The last G groups of every domain, a ring: the domain's j-th group is in slot j mod G."""

  features: Float[Array, "*K G n F"]
  targets: Float[Array, "*K G n"]  # leave-one-out rewards
  count: Int[Array, "*K"]  # groups ever inserted


def empty(rows: int, n: int, num_features: int, num_domains: int) -> Buffer:
  """A buffer without a group.

  Args:
    rows: rollouts that a domain's ring holds, rounded down to whole groups.
    n: samples a prompt.
    num_features: F.
    num_domains: K; domains are the integers 0 .. K-1.

  Raises:
    UserError: the ring is smaller than one group.
  """
  groups = rows // n
  if groups < 1:
    raise UserError(f"probe.buffer_rows must be at least rollout.n={n}, one group, got {rows}")
  return Buffer(
    features=jnp.zeros((num_domains, groups, n, num_features), jnp.float32),
    targets=jnp.zeros((num_domains, groups, n), jnp.float32),
    count=jnp.zeros(num_domains, jnp.int32),
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
  stored = member.any(1) & (order >= arrivals[domains] - groups)  # the last G, when more arrive
  slot = jnp.where(stored, (buffer.count[domains] + order) % groups, groups)
  return Buffer(
    features=buffer.features.at[domains, slot].set(features, mode="drop"),
    targets=buffer.targets.at[domains, slot].set(targets, mode="drop"),
    count=buffer.count + arrivals,
  )
