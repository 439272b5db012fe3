"""Rotary position embedding (arXiv 2104.09864) in Hugging Face's half-split order."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from poise_jax.models.config import ModelConfig


@jax.named_scope("rope")
def rope(
  config: ModelConfig, positions: Int[Array, "*rows"]
) -> tuple[Float[Array, "*rows half"], Float[Array, "*rows half"]]:
  """Cosines and sines [..., head_dim / 2] of the rotation angles, float32.

  Low frequencies are scaled as in Llama 3 if config.rope_scaling is set.
  """
  exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
  frequencies = 1.0 / config.rope_theta**exponents
  if (s := config.rope_scaling) is not None:
    wavelengths = 2 * jnp.pi / frequencies
    turns = s.original_max_position_embeddings / wavelengths
    unscaled = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    unscaled = jnp.clip(unscaled, 0.0, 1.0)  # 0: divided by `factor`, 1: unchanged
    frequencies = frequencies * (unscaled + (1 - unscaled) / s.factor)
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(
  x: Float[Array, "..."], cos: Float[Array, "..."], sin: Float[Array, "..."]
) -> Float[Array, "..."]:
  """Rotates x along its last axis, head_dim; the tables broadcast against its two halves."""
  first, second = jnp.split(x, 2, axis=-1)
  rotated = first * cos - second * sin, second * cos + first * sin
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
