"""PPO's advantages from a critic's values a token: GAE and what was built on it.

Letters: B sequences, T response positions; a response's tokens come first, then padding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def gae(
  rewards: Float[Array, "B T"],
  values: Float[Array, "B T"],
  mask: Bool[Array, "B T"],
  gamma: float = 1.0,
  lam: float | Float[Array, "B 1"] = 0.95,
) -> Float[Array, "B T"]:
  """Generalised advantage estimation (arXiv 1506.02438 eq. 16) within a response.

  A_t = sum_l (gamma lam)^l delta_{t+l} with delta_t = r_t + gamma V_{t+1} - V_t; behind the last
  token the value is 0, whether it is an EOS or the response was cut off there (as in verl).
  The critic's targets are the advantages at its own lam plus the values: VC-PPO (arXiv 2503.01491)
  takes lam = 1 for them, where the target is the reward that is still to come.

  Args:
    rewards: what each token earned; usually zero but for the last one.
    values: V_t, the critic's prediction before token t was written.
    mask: the response's tokens; what stands elsewhere may be anything.
    gamma: discount a token.
    lam: one number, or one a sequence.

  Returns:
    Advantages, 0 outside of the mask.
  """
  values, rewards = jnp.where(mask, values, 0.0), jnp.where(mask, rewards, 0.0)
  after = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
  deltas = rewards + gamma * after - values
  decay = jnp.broadcast_to(gamma * lam, (len(mask), 1))[:, 0]

  def step(later, delta):
    advantage = delta + decay * later
    return advantage, advantage

  _, advantages = jax.lax.scan(step, jnp.zeros(len(mask)), deltas.T, reverse=True)
  return jnp.where(mask, advantages.T, 0.0)


def length_adaptive_lam(mask: Bool[Array, "B T"], alpha: float = 0.05) -> Float[Array, "B 1"]:
  """lam = 1 - 1 / (alpha length), so that the sum of GAE's weights grows with the response (VAPO,
  arXiv 2504.05118 section 4.2); 0 where a response is too short for it to be positive."""
  lengths = jnp.maximum(mask.sum(-1, keepdims=True), 1)
  return jnp.maximum(1.0 - 1.0 / (alpha * lengths), 0.0)


def value_loss(
  values: Float[Array, "B T"],
  old_values: Float[Array, "B T"],
  targets: Float[Array, "B T"],
  weights: Float[Array, "B T"],
  clip: float = 0.0,
) -> Float[Array, ""]:
  """Half the squared error, or that of the value kept within `clip` of its old one if that is
  larger (PPO2, and verl); 0 is off.

  weights: losses.token_weights, 0 outside of the responses; there the rest may be anything.
  """
  # Masked before the arithmetic: a NaN outside would come back through the gradient of a product.
  values, old_values, targets = (
    jnp.where(weights > 0, x, 0.0) for x in (values, old_values, targets)
  )
  error = jnp.square(values - targets)
  if clip:
    kept = jnp.clip(values, old_values - clip, old_values + clip)
    error = jnp.maximum(error, jnp.square(kept - targets))
  return 0.5 * (weights * error).sum()
