"""Matrix products that are as precise as their operands.

Of float32 operands, GPUs round the factors to TF32 (10 bits) and TPUs to bfloat16 (7 bits) unless a
precision is set. Every product of models, sampler, losses and critics is computed here, so that a
float32 run is one in float32. Products of narrower operands, whose factors are exact anyway, keep
JAX's default: their speed does not change.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def _precision(x, y):
  wide = jnp.result_type(x, y) == jnp.float32
  return jax.lax.Precision.HIGHEST if wide else None


def matmul(
  x: Float[Array, "..."], y: Float[Array, "..."], dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
  """jnp.matmul. Accelerators sum in float32; `dtype` of the result, default: the operands'."""
  return jnp.matmul(x, y, precision=_precision(x, y), preferred_element_type=dtype)


def tensordot(
  x: Float[Array, "..."], y: Float[Array, "..."], axes: int | Sequence[int]
) -> Float[Array, "..."]:
  """jnp.tensordot."""
  return jnp.tensordot(x, y, axes, precision=_precision(x, y))


def einsum(subscripts: str, x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
  """jnp.einsum of two operands."""
  return jnp.einsum(subscripts, x, y, precision=_precision(x, y))
