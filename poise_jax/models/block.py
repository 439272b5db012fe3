"""One decoder layer. Llama, Qwen2 and Qwen3 are the same Block with different options.

Activations are [B, T, D]. Decoding feeds one position per row and computes features first, [D, R]:
its products are bound by reading the kernels, which then need no transposition.
"""

from collections.abc import Callable
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from poise_jax.models.config import ModelConfig
from poise_jax.models.linear import Dense, SamplingDense
from poise_jax.models.rotary import rotate

States = Float[Array, "B T D"] | Float[Array, "D R"]  # the second if features come first
Heads = Float[Array, "B T _ K"] | Float[Array, "R _ K"]  # likewise
Tables = Float[Array, "B T half"] | Float[Array, "half R"]  # likewise; half = K / 2
Extra = TypeVar("Extra")


class RMSNorm(nn.Module):
  """Root-mean-square normalisation over the features, in float32."""

  epsilon: float
  axis: str = "embed"  # logical axis of the scale
  features_first: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Normalises [..., D], or [..., D, R] if features come first; keeps the dtype."""
    axis = -2 if self.features_first else -1
    init = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,))
    scale = self.param("scale", init, (x.shape[axis],))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=axis, keepdims=True) + self.epsilon)
    return (y * (scale[:, None] if self.features_first else scale)).astype(x.dtype)


class Attention(nn.Module):
  """Projections of grouped-query attention; the Block's `attend` computes the attention itself."""

  config: ModelConfig
  dtype: DTypeLike
  sampling: bool
  features_first: bool

  def setup(self):
    """Declares the projections."""
    c = self.config
    ratio = c.num_attention_heads // c.num_key_value_heads
    if self.sampling:  # a key head with its query heads in front and its value head behind
      fused = (c.num_key_value_heads, ratio + 2, c.head_dim)
      self.qkv_proj = SamplingDense(fused, c.qkv_bias, self.dtype, self.features_first)
      self.o_proj = SamplingDense((c.hidden_size,), c.out_bias, self.dtype, self.features_first)
    else:
      heads, kv = (n * c.head_dim for n in (c.num_attention_heads, c.num_key_value_heads))
      self.q_proj = Dense(heads, ("embed", "heads"), c.qkv_bias, self.dtype)
      self.k_proj = Dense(kv, ("embed", "kv_heads"), c.qkv_bias, self.dtype)
      self.v_proj = Dense(kv, ("embed", "kv_heads"), c.qkv_bias, self.dtype)
      self.o_proj = Dense(c.hidden_size, ("heads", "embed"), c.out_bias, self.dtype)
    if c.qk_norm:
      self.q_norm = RMSNorm(c.rms_norm_eps, "head_dim", self.features_first)
      self.k_norm = RMSNorm(c.rms_norm_eps, "head_dim", self.features_first)

  def qkv(self, x: States, cos: Tables, sin: Tables) -> tuple[Heads, Heads, Heads]:
    """[B, T, D] -> queries [B, T, H, K], keys and values [B, T, G, K], rotated.

    Features first: [D, R] -> [R, H, K] and [R, G, K].
    """
    c = self.config
    if self.features_first:
      fused = self.qkv_proj(x)  # [G, H / G + 2, K, R]
      q, k, v = fused[:, :-2], fused[:, -2], fused[:, -1]
      if c.qk_norm:
        q, k = self.q_norm(q), self.k_norm(k)
      q, k = rotate(q, cos, sin, -2), rotate(k, cos, sin, -2)
      return tuple(jnp.moveaxis(a.reshape(-1, *a.shape[-2:]), -1, 0) for a in (q, k, v))
    if self.sampling:
      fused = self.qkv_proj(x)
      q, k, v = fused[..., :-2, :], fused[..., -2, :], fused[..., -1, :]
    else:
      q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
    q = q.reshape(*x.shape[:2], c.num_attention_heads, c.head_dim)
    k, v = (a.reshape(*x.shape[:2], c.num_key_value_heads, c.head_dim) for a in (k, v))
    if c.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return rotate(q, cos, sin), rotate(k, cos, sin), v

  def out(self, context: Heads) -> States:
    """[B, T, H, K] -> [B, T, D]; features first, [R, H, K] -> [D, R]."""
    if self.features_first:
      return self.o_proj(context.reshape(len(context), -1).T)
    return self.o_proj(context.reshape(*context.shape[:2], -1))


class Mlp(nn.Module):
  """SwiGLU."""

  config: ModelConfig
  dtype: DTypeLike
  sampling: bool
  features_first: bool

  @nn.compact
  def __call__(self, x: States) -> States:
    """[B, T, D] -> [B, T, D]; features first, [D, R] -> [D, R]."""
    c = self.config
    if self.sampling:
      options = dict(use_bias=c.mlp_bias, dtype=self.dtype, features_first=self.features_first)
      fused = SamplingDense((2, c.intermediate_size), **options, name="gate_up_proj")
      down = SamplingDense((c.hidden_size,), **options, name="down_proj")
      gate, up = jnp.moveaxis(fused(x), 0 if self.features_first else -2, 0)
    else:
      options = dict(use_bias=c.mlp_bias, dtype=self.dtype)
      gate = Dense(c.intermediate_size, ("embed", "mlp"), **options, name="gate_proj")(x)
      up = Dense(c.intermediate_size, ("embed", "mlp"), **options, name="up_proj")(x)
      down = Dense(c.hidden_size, ("mlp", "embed"), **options, name="down_proj")
    return down(nn.silu(gate) * up)


class Block(nn.Module):
  """A pre-norm decoder layer: attention and MLP, each added to the residual stream."""

  config: ModelConfig
  dtype: DTypeLike = jnp.float32
  sampling: bool = False  # parameters are in the sampling layout
  features_first: bool = False  # activations are [D, R]; only in the sampling layout

  @nn.compact
  def __call__(
    self,
    x: States,
    cos: Tables,
    sin: Tables,
    attend: Callable[[Heads, Heads, Heads], tuple[Heads, Extra]],
  ) -> tuple[States, Extra]:
    """Applies the layer.

    Args:
      x: residual stream [B, T, D]; features first, [D, R].
      cos: rotary table [B, T, K / 2]; features first, [K / 2, R].
      sin: likewise.
      attend: (queries [B, T, H, K], keys and values [B, T, G, K]) -> (context [B, T, H, K], extra);
        features first, [R, H, K] and [R, G, K].

    Returns:
      The residual stream after the layer, and the `extra` value of `attend`.
    """
    options = (self.config, self.dtype, self.sampling, self.features_first)
    norm = dict(epsilon=self.config.rms_norm_eps, features_first=self.features_first)
    attention = Attention(*options, name="self_attn")
    context, extra = attend(*attention.qkv(RMSNorm(**norm, name="input_layernorm")(x), cos, sin))
    x = x + attention.out(context)
    x = x + Mlp(*options, name="mlp")(RMSNorm(**norm, name="post_attention_layernorm")(x))
    return x, extra
