"""Linear maps in the two layouts of the weights: Dense trains, SamplingDense samples."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from poise_jax.models.products import matmul, tensordot


@jax.custom_vjp
def linear(x: Float[Array, "... M"], kernel: Float[Array, "M N"]) -> Float[Array, "... N"]:
  """x @ kernel in the dtype of x, with a backward pass that XLA compiles well.

  The kernel's gradient has the dtype of the kernel: it is summed over positions and devices in
  float32 where the master weights are.
  """
  return matmul(x, kernel.astype(x.dtype))


def _linear_forward(x, kernel):
  # Not `linear`: a rematerialisation policy recognises the product only where it stands by itself.
  return matmul(x, kernel.astype(x.dtype)), (x, kernel)


def _linear_backward(residuals, dy):
  x, kernel = residuals
  # Without the barrier XLA fuses the producer of dy into its transpose, once for each operand.
  dy = jax.lax.optimization_barrier(dy)
  rows = dy.reshape(-1, dy.shape[-1])
  dx = matmul(dy, kernel.astype(dy.dtype).T)
  return dx, matmul(x.reshape(-1, x.shape[-1]).T, rows, kernel.dtype)


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
    y = linear(x.astype(self.dtype), self.param("kernel", init, (x.shape[-1], self.features)))
    if self.use_bias:
      init = nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes[-1:])
      bias = self.param("bias", init, (self.features,))
      # Broadcast before the cast, so that its gradient is summed before it, in float32.
      y += jnp.broadcast_to(bias, y.shape).astype(self.dtype)
    return y


class SamplingDense(nn.Module):
  """The same map in the sampling layout: kernel [*features, M], bias [*features].

  One kernel may hold several maps of the same input. The product takes it as a matrix: of a kernel
  with more axes, XLA for CPUs makes a transposed copy in every decode step.
  """

  features: tuple[int, ...]
  use_bias: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "*rows M"]) -> Float[Array, "..."]:
    """Inputs [..., M] -> [..., *features]."""
    zeros = nn.initializers.zeros_init()
    kernel = self.param("kernel", zeros, (*self.features, x.shape[-1])).astype(self.dtype)
    y = tensordot(x, kernel.reshape(-1, x.shape[-1]), (-1, -1))
    y = y.reshape(*x.shape[:-1], *self.features)
    if self.use_bias:
      y += self.param("bias", zeros, self.features).astype(self.dtype)
    return y
