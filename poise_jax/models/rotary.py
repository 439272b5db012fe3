"""Rotary position embedding (arXiv 2104.09864) in Hugging Face's half-split order."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Table = tuple[Float[Array, "*rows half"], Float[Array, "*rows half"]]  # cosines and sines


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3's scaling of the low rotary frequencies."""

  rope_type: ClassVar[str] = "llama3"
  attention_factor: ClassVar[float] = 1.0

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position_embeddings: int

  def scale(self, frequencies: Float[Array, " half"], theta: float) -> Float[Array, " half"]:
    """The frequencies of a model whose context is longer than the original one."""
    turns = self.original_max_position_embeddings * frequencies / (2 * jnp.pi)
    unscaled = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
    unscaled = jnp.clip(unscaled, 0.0, 1.0)  # 0: divided by `factor`, 1: unchanged
    return frequencies * (unscaled + (1 - unscaled) / self.factor)


@dataclasses.dataclass(frozen=True)
class LinearScaling:
  """All rotary frequencies divided by a factor."""

  rope_type: ClassVar[str] = "linear"
  attention_factor: ClassVar[float] = 1.0

  factor: float

  def scale(self, frequencies: Float[Array, " half"], theta: float) -> Float[Array, " half"]:
    """See RopeScaling.scale."""
    return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class YarnScaling:
  """YaRN (arXiv 2309.00071): low frequencies are divided by a factor, high ones are kept.

  The ramp between them is linear in the index of the frequency.
  """

  rope_type: ClassVar[str] = "yarn"

  factor: float
  original_max_position_embeddings: int
  beta_fast: float = 32.0  # turns within the original context from which frequencies are kept
  beta_slow: float = 1.0  # turns up to which frequencies are divided
  attention_factor: float = 0.0  # multiplier of queries and keys; 0: 0.1 ln(factor) + 1
  truncate: bool = True  # whether the ramp begins and ends at whole indices

  def __post_init__(self):
    if not self.attention_factor:
      object.__setattr__(self, "attention_factor", 0.1 * math.log(max(self.factor, 1.0)) + 1.0)

  def scale(self, frequencies: Float[Array, " half"], theta: float) -> Float[Array, " half"]:
    """See RopeScaling.scale."""
    half = frequencies.shape[0]

    def index(turns):  # of the frequency that makes so many turns within the original context
      ratio = self.original_max_position_embeddings / (turns * 2 * math.pi)
      return half * math.log(ratio) / math.log(theta)

    low, high = index(self.beta_fast), index(self.beta_slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    width = high - low or 1e-3
    divided = jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / width, 0.0, 1.0)
    return frequencies * (1 - divided) + frequencies / self.factor * divided


SCALINGS = {kind.rope_type: kind for kind in (RopeScaling, LinearScaling, YarnScaling)}
Scaling = RopeScaling | LinearScaling | YarnScaling


@dataclasses.dataclass(frozen=True)
class Rope:
  """A rotary embedding: its wavelengths, and how they are scaled."""

  theta: float  # base of the wavelengths
  scaling: Scaling | None = None  # None: unscaled

  @jax.named_scope("rope")
  def table(self, dim: int, positions: Int[Array, "*rows"]) -> Table:
    """Cosines and sines [..., dim / 2] of the rotation angles, float32; `dim` is head_dim."""
    exponents = jnp.arange(0, dim, 2, dtype=jnp.float32) / dim
    frequencies = 1.0 / self.theta**exponents
    factor = 1.0
    if self.scaling is not None:
      frequencies = self.scaling.scale(frequencies, self.theta)
      factor = self.scaling.attention_factor
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return factor * jnp.cos(angles), factor * jnp.sin(angles)


@dataclasses.dataclass(frozen=True)
class NoRope:
  """No rotary embedding: rotation by an angle of 0."""

  def table(self, dim: int, positions: Int[Array, "*rows"]) -> Table:
    """See Rope.table."""
    cos = jnp.ones((*positions.shape, dim // 2))
    return cos, jnp.zeros_like(cos)


def rotate(
  x: Float[Array, "..."], cos: Float[Array, "..."], sin: Float[Array, "..."]
) -> Float[Array, "..."]:
  """Rotates x along its last axis, head_dim; the tables broadcast against its two halves."""
  first, second = jnp.split(x, 2, axis=-1)
  rotated = first * cos - second * sin, second * cos + first * sin
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
