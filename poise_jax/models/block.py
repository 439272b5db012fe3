"""One decoder layer. All families are the same Block with different options."""

import functools
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

# Of the gate of an MLP, by transformers' names.
ACTIVATIONS = {
  "silu": nn.silu,
  "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
}


class RMSNorm(nn.Module):
  """Root-mean-square normalisation over the features, in float32."""

  epsilon: float
  axis: str = "embed"  # logical axis of the scale
  offset: float = 0.0  # added to the stored scale

  @nn.compact
  def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Normalises [..., D]; keeps the dtype."""
    one = nn.initializers.constant(1.0 - self.offset)
    init = nn.with_logical_partitioning(one, (self.axis,))
    scale = self.param("scale", init, (x.shape[-1],))
    if self.offset:
      scale = scale.astype(jnp.float32) + self.offset
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
    return (y * scale).astype(x.dtype)


def norm(config: ModelConfig, name: str | None = None, axis: str = "embed") -> RMSNorm:
  """A norm of the decoder; `axis` is the logical axis of its features."""
  return RMSNorm(config.rms_norm_eps, axis, config.family.norm_offset, name=name)


def scaled(config: ModelConfig, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
  """Embeddings of tokens, multiplied by sqrt(D) in families that do so, in their own dtype."""
  if not config.family.scales_embedding:
    return x
  return x * jnp.asarray(config.hidden_size**0.5, x.dtype)


class Attention(nn.Module):
  """Projections of grouped-query attention; the Block's `attend` computes the attention itself."""

  config: ModelConfig
  dtype: DTypeLike
  sampling: bool

  def setup(self):
    """Declares the projections."""
    c = self.config
    ratio = c.num_attention_heads // c.num_key_value_heads
    if self.sampling:  # a key head with its query heads in front and its value head after
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
      whole = c.family.qk_norm == "projection"
      self.q_norm = norm(c, axis="heads" if whole else "head_dim")
      self.k_norm = norm(c, axis="kv_heads" if whole else "head_dim")

  def qkv(self, x: States, cos: Tables, sin: Tables) -> tuple[Heads, Heads, Heads]:
    """[B, T, D] -> queries [B, T, H, K], keys and values [B, T, G, K], rotated."""
    c = self.config
    if self.sampling:
      fused = self.qkv_proj(x)
      q, k, v = fused[..., :-2, :], fused[..., -2, :], fused[..., -1, :]
    else:
      q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
    if c.qk_norm and c.family.qk_norm == "projection":
      q, k = (a.reshape(*x.shape[:2], -1) for a in (q, k))
      q, k = self.q_norm(q), self.k_norm(k)
    q = q.reshape(*x.shape[:2], c.num_attention_heads, c.head_dim)
    k, v = (a.reshape(*x.shape[:2], c.num_key_value_heads, c.head_dim) for a in (k, v))
    if c.qk_norm and c.family.qk_norm != "projection":
      q, k = self.q_norm(q), self.k_norm(k)
    cos, sin = cos[:, :, None], sin[:, :, None]
    k = rotate(k, cos, sin)
    if c.query_pre_attn_scalar not in (0, c.head_dim):
      # In the tables, so that narrow queries are not rounded twice.
      scale = (c.head_dim / c.query_pre_attn_scalar) ** 0.5
      cos, sin = scale * cos, scale * sin
    return rotate(q, cos, sin), k, v

  def out(self, context: Heads) -> States:
    """[B, T, H, K] -> [B, T, D]."""
    return self.o_proj(context.reshape(*context.shape[:2], -1))


class Mlp(nn.Module):
  """A gated MLP."""

  config: ModelConfig
  dtype: DTypeLike
  sampling: bool

  @nn.compact
  def __call__(self, x: States) -> States:
    """[B, T, D] -> [B, T, D]."""
    c = self.config
    options = dict(use_bias=c.mlp_bias, dtype=self.dtype)
    if self.sampling:
      wide = functools.partial(SamplingDense, (c.intermediate_size,), **options)
      down = SamplingDense((c.hidden_size,), **options, name="down_proj")
    else:
      wide = functools.partial(Dense, c.intermediate_size, ("embed", "mlp"), **options)
      down = Dense(c.hidden_size, ("mlp", "embed"), **options, name="down_proj")
    gate, up = wide(name="gate_proj")(x), wide(name="up_proj")(x)
    return down(ACTIVATIONS[c.family.activation](gate) * up)


class Block(nn.Module):
  """A decoder layer: attention and MLP, each added to the residual stream.

  The norms of config.family stand before or after them.
  """

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
    norms = self.config.family.norms

    def normalised(x, name):
      return norm(self.config, name)(x) if name else x

    attention = Attention(*options, name="self_attn")
    q, k, v = attention.qkv(normalised(x, norms.before_attention), cos, sin)
    context, extra = attend(q, k, v)
    x = x + normalised(attention.out(context), norms.after_attention)
    y = Mlp(*options, name="mlp")(normalised(x, norms.before_mlp))
    return x + normalised(y, norms.after_mlp), extra
