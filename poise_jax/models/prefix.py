"""Samples of one prompt in a row of their own, where the prompt stands once for all of them.

A layer's products and norms are of single positions, and a prompt's positions see the prompt alone:
they are the same for all of its samples. Only attention wants each sample behind its prompt.
"""

import jax
import jax.numpy as jnp


def pack(x: jax.Array, prompt: int, samples: int) -> jax.Array:
  """[B, prompt + T, ...] -> [B / samples, prompt + samples * T, ...].

  x: every `samples` rows, one after another, have their first `prompt` positions in common.
  """
  if samples == 1:
    return x
  groups = x.reshape(-1, samples, *x.shape[1:])
  own = groups[:, :, prompt:]
  own = own.reshape(len(own), -1, *own.shape[3:])
  return jnp.concatenate([groups[:, 0, :prompt], own], axis=1)


def unpack(x: jax.Array, prompt: int, samples: int) -> jax.Array:
  """The inverse of `pack`: a row a sample again, with its prompt before it."""
  if samples == 1:
    return x
  before = jnp.repeat(x[:, :prompt], samples, axis=0)
  own = x[:, prompt:].reshape(len(before), -1, *x.shape[2:])
  return jnp.concatenate([before, own], axis=1)
