"""Linear maps in the two layouts of the weights: Dense trains, SamplingDense samples."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


@jax.custom_vjp
def linear(x: Float[Array, "... M"], kernel: Float[Array, "M N"]) -> Float[Array, "... N"]:
  """x @ kernel, with a backward pass that XLA compiles well."""
  return jnp.matmul(x, kernel)


def _linear_forward(x, kernel):
  # Not `linear`: a rematerialisation policy recognises the product only where it stands by itself.
  return jnp.matmul(x, kernel), (x, kernel)


def _linear_backward(residuals, dy):
  x, kernel = residuals
  # Without the barrier XLA fuses the producer of dy into its transpose, once for each operand.
  dy = jax.lax.optimization_barrier(dy)
  rows = dy.reshape(-1, dy.shape[-1])
  return jnp.matmul(dy, kernel.T), jnp.matmul(x.reshape(-1, x.shape[-1]).T, rows)


linear.defvjp(_linear_forward, _linear_backward)


class Dense(nn.Module):
  """x @ kernel + bias in the training layout: kernel [M, N] with logical `axes`."""

  features: int
  axes: tuple[str, str]
  use_bias: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "... M"]) -> Float[Array, "... N"]:
    """Inputs [..., M] -> [..., N]."""
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), self.axes)
    y = linear(x, self.param("kernel", init, (x.shape[-1], self.features)).astype(self.dtype))
    if self.use_bias:
      init = nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes[-1:])
      y += self.param("bias", init, (self.features,)).astype(self.dtype)
    return y


class SamplingDense(nn.Module):
  """The same map in the sampling layout: kernel [*features, M], bias [*features].

  One kernel holds several maps of the same input: reading it is faster than reading several.
  """

  features: tuple[int, ...]
  use_bias: bool
  dtype: DTypeLike
  features_first: bool  # inputs are [M, R] instead of [..., M]

  @nn.compact
  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Inputs [..., M] -> [..., *features]; features first, [M, R] -> [*features, R]."""
    width = x.shape[0 if self.features_first else -1]
    zeros = nn.initializers.zeros_init()
    kernel = self.param("kernel", zeros, (*self.features, width)).astype(self.dtype)
    if self.features_first:
      y = jnp.tensordot(kernel, x, 1)
    else:
      y = jnp.tensordot(x, kernel, (-1, -1))
    if self.use_bias:
      bias = self.param("bias", zeros, self.features).astype(self.dtype)
      y += bias[..., None] if self.features_first else bias
    return y
