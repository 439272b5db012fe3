"""One decoder layer. Llama, Qwen2 and Qwen3 are the same Block with different options."""

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

States = Float[Array, "B T D"]
Heads = Float[Array, "B T _ K"]
Tables = Float[Array, "B T half"]  # half = K / 2
Extra = TypeVar("Extra")


class RMSNorm(nn.Module):
  """Root-mean-square normalisation over the features, in float32."""

  epsilon: float
  axis: str = "embed"  # logical axis of the scale

  @nn.compact
  def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Normalises [..., D]; keeps the dtype."""
    init = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,))
    scale = self.param("scale", init, (x.shape[-1],))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
    return (y * scale).astype(x.dtype)


class Attention(nn.Module):
  """Projections of grouped-query attention; the Block's `attend` computes the attention itself."""

  config: ModelConfig
  dtype: DTypeLike
  sampling: bool

  def setup(self):
    """Declares the projections."""
    c = self.config
    ratio = c.num_attention_heads // c.num_key_value_heads
    if self.sampling:  # a key head with its query heads in front and its value head behind
      fused = (c.num_key_value_heads, ratio + 2, c.head_dim)
      self.qkv_proj = SamplingDense(fused, c.qkv_bias, self.dtype)
      self.o_proj = SamplingDense((c.hidden_size,), c.out_bias, self.dtype)
    else:
      heads, kv = (n * c.head_dim for n in (c.num_attention_heads, c.num_key_value_heads))
      self.q_proj = Dense(heads, ("embed", "heads"), c.qkv_bias, self.dtype)
      self.k_proj = Dense(kv, ("embed", "kv_heads"), c.qkv_bias, self.dtype)
      self.v_proj = Dense(kv, ("embed", "kv_heads"), c.qkv_bias, self.dtype)
      self.o_proj = Dense(c.hidden_size, ("heads", "embed"), c.out_bias, self.dtype)
    if c.qk_norm:
      self.q_norm = RMSNorm(c.rms_norm_eps, "head_dim")
      self.k_norm = RMSNorm(c.rms_norm_eps, "head_dim")

  def qkv(self, x: States, cos: Tables, sin: Tables) -> tuple[Heads, Heads, Heads]:
    """[B, T, D] -> queries [B, T, H, K], keys and values [B, T, G, K], rotated."""
    c = self.config
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
    """[B, T, H, K] -> [B, T, D]."""
    return self.o_proj(context.reshape(*context.shape[:2], -1))


class Mlp(nn.Module):
  """SwiGLU."""

  config: ModelConfig
  dtype: DTypeLike
  sampling: bool

  @nn.compact
  def __call__(self, x: States) -> States:
    """[B, T, D] -> [B, T, D]."""
    c = self.config
    options = dict(use_bias=c.mlp_bias, dtype=self.dtype)
    if self.sampling:
      fused = SamplingDense((2, c.intermediate_size), **options, name="gate_up_proj")
      down = SamplingDense((c.hidden_size,), **options, name="down_proj")
      gate, up = jnp.moveaxis(fused(x), -2, 0)
    else:
      gate = Dense(c.intermediate_size, ("embed", "mlp"), **options, name="gate_proj")(x)
      up = Dense(c.intermediate_size, ("embed", "mlp"), **options, name="up_proj")(x)
      down = Dense(c.hidden_size, ("mlp", "embed"), **options, name="down_proj")
    return down(nn.silu(gate) * up)


class Block(nn.Module):
  """A pre-norm decoder layer: attention and MLP, each added to the residual stream."""

  config: ModelConfig
  dtype: DTypeLike = jnp.float32
  sampling: bool = False  # parameters are in the sampling layout

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
      x: residual stream [B, T, D].
      cos: rotary table [B, T, K / 2].
      sin: likewise.
      attend: (queries [B, T, H, K], keys and values [B, T, G, K]) -> (context [B, T, H, K], extra).

    Returns:
      The residual stream after the layer, and the `extra` value of `attend`.
    """
    options = (self.config, self.dtype, self.sampling)
    norm = dict(epsilon=self.config.rms_norm_eps)
    attention = Attention(*options, name="self_attn")
    context, extra = attend(*attention.qkv(RMSNorm(**norm, name="input_layernorm")(x), cos, sin))
    x = x + attention.out(context)
    x = x + Mlp(*options, name="mlp")(RMSNorm(**norm, name="post_attention_layernorm")(x))
    return x, extra
