"""The decoder: Flax Linen modules used as pure functions. Llama, Qwen2 and Qwen3 are one module.

Every parameter carries logical axis names; distributed/sharding.py alone knows what mesh axes they
mean. Training runs the layers under one `nn.scan` (parameters stacked by layer, one compiled body);
sampling runs the same Block unrolled over per-layer caches (rollout/sampler.py).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from poise_jax.distributed.sharding import constrain
from poise_jax.models.attention import KEPT, attention
from poise_jax.models.config import ModelConfig
from poise_jax.models.rows import Rows

_POLICIES = jax.checkpoint_policies
_KEPT = _POLICIES.save_only_these_names(KEPT)  # of splash attention: its results, a row's [T, H, K]
REMAT_POLICIES = {
  "none": None,  # keep every activation
  "full": _KEPT,  # keep layer inputs only
  # keep matrix products
  "dots": _POLICIES.save_from_both_policies(_POLICIES.dots_with_no_batch_dims_saveable, _KEPT),
}


@flax.struct.dataclass
class Output:
  """What a forward pass returns."""

  hidden: jax.Array  # [B, T, D] after the final norm: what the unembedding reads
  logits: jax.Array  # [B, T, V] float32
  layers: jax.Array  # [L, B, T, D] the residual stream after each block, before the final norm


@jax.custom_vjp
def linear(x, kernel):
  """x [..., in] @ kernel [in, out]."""
  return jnp.matmul(x, kernel)


def _linear_forward(x, kernel):
  # Not `linear`: a rematerialisation policy sees the product only where it stands by itself.
  return jnp.matmul(x, kernel), (x, kernel)


def _linear_backward(saved, dy):
  x, kernel = saved
  # Without the barrier XLA fuses what made dy into its transposition, once for each operand.
  dy = jax.lax.optimization_barrier(dy)
  rows = dy.reshape(-1, dy.shape[-1])
  return jnp.matmul(dy, kernel.T), jnp.matmul(x.reshape(-1, x.shape[-1]).T, rows)


linear.defvjp(_linear_forward, _linear_backward)


class Dense(nn.Module):
  """x @ kernel + bias, with kernel [in, out] of logical `axes`: the training layout."""

  features: int
  axes: tuple[str, str]
  use_bias: bool
  dtype: Any

  @nn.compact
  def __call__(self, x):
    """[..., in] -> [..., out]."""
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), self.axes)
    y = linear(x, self.param("kernel", init, (x.shape[-1], self.features)).astype(self.dtype))
    if self.use_bias:
      init = nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes[-1:])
      y += self.param("bias", init, (self.features,)).astype(self.dtype)
    return y


class SamplingDense(nn.Module):
  """The same map in the sampling layout: kernel [*out, in], bias [*out].

  Several maps of one input stand side by side in one kernel, which is read faster than several.
  """

  features: tuple[int, ...]
  use_bias: bool
  dtype: Any
  columns: bool

  @nn.compact
  def __call__(self, x):
    """[..., in] -> [..., *out]; as columns [in, R] -> [*out, R]."""
    width = x.shape[0 if self.columns else -1]
    zeros = nn.initializers.zeros_init()
    kernel = self.param("kernel", zeros, (*self.features, width)).astype(self.dtype)
    if self.columns:
      y = jnp.tensordot(kernel, x, 1)
    else:
      y = jnp.tensordot(x, kernel, (-1, -1))
    if self.use_bias:
      bias = self.param("bias", zeros, self.features).astype(self.dtype)
      y += bias[..., None] if self.columns else bias
    return y


class RMSNorm(nn.Module):
  """Root-mean-square normalisation over the features, in float32."""

  epsilon: float
  axis: str = "embed"
  columns: bool = False

  @nn.compact
  def __call__(self, x):
    """[..., D] -> [..., D], or as columns [..., D, R] -> [..., D, R], in x's dtype."""
    axis = -2 if self.columns else -1
    init = nn.with_logical_partitioning(nn.initializers.ones_init(), (self.axis,))
    scale = self.param("scale", init, (x.shape[axis],))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=axis, keepdims=True) + self.epsilon)
    return (y * (scale[:, None] if self.columns else scale)).astype(x.dtype)


def rope(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine tables [..., K / 2] float32 of integer positions [...].

  Rotary embedding (arXiv 2104.09864) in Hugging Face's half-split order, with Llama 3's scaling.
  """
  exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
  frequencies = 1.0 / config.rope_theta**exponents
  if (s := config.rope_scaling) is not None:
    wavelengths = 2 * jnp.pi / frequencies
    turns = s.original_max_position_embeddings / wavelengths
    keep = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    keep = jnp.clip(keep, 0.0, 1.0)  # 0: slowed down by `factor`, 1: as it was
    frequencies = frequencies * (keep + (1 - keep) / s.factor)
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cos, sin, axis=-1):
  """Turns x, whose `axis` is head_dim, by rotary tables that broadcast against its halves."""
  first, second = jnp.split(x, 2, axis=axis)
  turned = first * cos - second * sin, second * cos + first * sin
  return jnp.concatenate(turned, axis=axis).astype(x.dtype)


class Attention(nn.Module):
  """Projections of grouped-query attention; the Block decides what attends to what."""

  config: ModelConfig
  dtype: Any
  sampling: bool
  columns: bool

  def setup(self):
    """Declares the projections."""
    c = self.config
    ratio = c.num_attention_heads // c.num_key_value_heads
    if self.sampling:  # a key head with its query heads in front and its value head behind
      fused = (c.num_key_value_heads, ratio + 2, c.head_dim)
      self.qkv_proj = SamplingDense(fused, c.qkv_bias, self.dtype, self.columns)
      self.o_proj = SamplingDense((c.hidden_size,), c.out_bias, self.dtype, self.columns)
    else:
      heads, kv = (n * c.head_dim for n in (c.num_attention_heads, c.num_key_value_heads))
      self.q_proj = Dense(heads, ("embed", "heads"), c.qkv_bias, self.dtype)
      self.k_proj = Dense(kv, ("embed", "kv_heads"), c.qkv_bias, self.dtype)
      self.v_proj = Dense(kv, ("embed", "kv_heads"), c.qkv_bias, self.dtype)
      self.o_proj = Dense(c.hidden_size, ("heads", "embed"), c.out_bias, self.dtype)
    if c.qk_norm:
      self.q_norm = RMSNorm(c.rms_norm_eps, "head_dim", self.columns)
      self.k_norm = RMSNorm(c.rms_norm_eps, "head_dim", self.columns)

  def qkv(self, x, cos, sin):
    """[B, T, D] -> queries [B, T, H, K], keys and values [B, T, G, K], rotated.

    As columns: [D, R] -> [R, H, K] and [R, G, K].
    """
    c = self.config
    if self.columns:
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

  def out(self, context):
    """[B, T, H, K] -> [B, T, D]; as columns [R, H, K] -> [D, R]."""
    if self.columns:
      return self.o_proj(context.reshape(len(context), -1).T)
    return self.o_proj(context.reshape(*context.shape[:2], -1))


class Mlp(nn.Module):
  """SwiGLU."""

  config: ModelConfig
  dtype: Any
  sampling: bool
  columns: bool

  @nn.compact
  def __call__(self, x):
    """[B, T, D] -> [B, T, D]; as columns [D, R] -> [D, R]."""
    c = self.config
    if self.sampling:
      how = dict(use_bias=c.mlp_bias, dtype=self.dtype, columns=self.columns)
      fused = SamplingDense((2, c.intermediate_size), **how, name="gate_up_proj")
      down = SamplingDense((c.hidden_size,), **how, name="down_proj")
      gate, up = jnp.moveaxis(fused(x), 0 if self.columns else -2, 0)
    else:
      how = dict(use_bias=c.mlp_bias, dtype=self.dtype)
      gate = Dense(c.intermediate_size, ("embed", "mlp"), **how, name="gate_proj")(x)
      up = Dense(c.intermediate_size, ("embed", "mlp"), **how, name="up_proj")(x)
      down = Dense(c.hidden_size, ("mlp", "embed"), **how, name="down_proj")
    return down(nn.silu(gate) * up)


class Block(nn.Module):
  """One pre-norm decoder layer.

  It computes in rows, a position's features side by side, or in columns. Decoding's few rows are
  columns: its products, bound by reading their kernels, then need no transposition.
  """

  config: ModelConfig
  dtype: Any = jnp.float32
  sampling: bool = False  # parameters are in the sampling layout
  columns: bool = False  # only in the sampling layout

  @nn.compact
  def __call__(self, x, cos, sin, attend):
    """[B, T, D] -> ([B, T, D], whatever `attend` returns beside the context).

    attend: (q [B, T, H, K], k, v [B, T, G, K]) -> (context [B, T, H, K], extra).
    cos, sin: [B, T, K / 2].

    As columns of R positions: [D, R]; q [R, H, K], k, v [R, G, K]; cos, sin [K / 2, R].
    """
    how = (self.config, self.dtype, self.sampling, self.columns)
    attn = Attention(*how, name="self_attn")
    norm = dict(epsilon=self.config.rms_norm_eps, columns=self.columns)
    context, extra = attend(*attn.qkv(RMSNorm(**norm, name="input_layernorm")(x), cos, sin))
    x = x + attn.out(context)
    x = x + Mlp(*how, name="mlp")(RMSNorm(**norm, name="post_attention_layernorm")(x))
    return x, extra


class Transformer(nn.Module):
  """The whole decoder, layers scanned; `init`, `forward` and friends below call it."""

  config: ModelConfig
  dtype: Any = jnp.float32
  remat: str = "none"
  attention: str = "xla"

  @nn.compact
  def __call__(self, rows, collect=lambda x: None):
    """Rows of B sequences -> hidden [B, T, D], and `collect` of each layer [L, ...]."""
    c = self.config
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
    embed = nn.Embed(
      c.vocab_size, c.hidden_size, dtype=self.dtype, embedding_init=init, name="embed_tokens"
    )
    if not c.tie_word_embeddings:
      # Used through `unembedding`: the loss reads it in chunks and never makes [B, T, V] logits.
      head = Dense(c.vocab_size, ("embed", "vocab"), False, self.dtype, name="lm_head")
      head(jnp.zeros((1, c.hidden_size), self.dtype))
    table = constrain(embed.embedding.astype(self.dtype), "vocab", None)
    x = constrain(table[rows.tokens], "batch", None, None)
    cos, sin = rope(c, rows.positions)
    mask = rows.split(rows.mask)

    def attend(q, k, v):
      q, k, v = (rows.split(x) for x in (q, k, v))
      # Pinned, or GSPMD may gather the heads, or the batch, where it thinks that cheaper.
      q = constrain(q, "batch", None, "heads", None)
      k, v = (constrain(x, "batch", None, "kv_heads", None) for x in (k, v))
      context = attention(q, k, v, mask, self.attention)
      context = constrain(context, "batch", None, "heads", None)
      return rows.merge(context), None

    def layer(block, x, _):
      x, _ = block(x, cos, sin, attend)
      x = constrain(x, "batch", None, None)
      return x, collect(rows.split(x))

    policy = REMAT_POLICIES[self.remat]
    if policy is not None:
      layer = nn.remat(layer, policy=policy, prevent_cse=False)
    scan = nn.scan(
      layer,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      length=c.num_hidden_layers,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, collected = scan(Block(c, self.dtype, name="layers"), x, None)
    return rows.split(RMSNorm(c.rms_norm_eps, name="norm")(x)), collected


def _init_boxed(config, key):
  one = jnp.ones((1, 1), jnp.int32)
  return Transformer(config).init(key, Rows(one, one.astype(bool)))["params"]


def init(config: ModelConfig, key: jax.Array) -> Any:
  """Random float32 parameters in the training layout: normal(0.02) kernels, zero biases."""
  return nn.meta.unbox(_init_boxed(config, key))


def abstract_params(config: ModelConfig) -> Any:
  """The parameters as jax.ShapeDtypeStruct leaves: shapes without memory."""
  return nn.meta.unbox(jax.eval_shape(lambda k: _init_boxed(config, k), jax.random.key(0)))


def logical_axes(config: ModelConfig) -> Any:
  """The parameters' tree with a tuple of logical axis names at each leaf."""
  boxed = jax.eval_shape(lambda k: _init_boxed(config, k), jax.random.key(0))
  return jax.tree.map(
    lambda b: b.names, boxed, is_leaf=lambda b: isinstance(b, nn.meta.AxisMetadata)
  )


def unembedding(config: ModelConfig, params: Any) -> jax.Array:
  """The matrix [D, V] that turns final hidden states into logits."""
  if config.tie_word_embeddings:
    return params["embed_tokens"]["embedding"].T
  return params["lm_head"]["kernel"]


def hidden_states(
  config: ModelConfig,
  params: PyTree[Array],
  rows: Rows,
  dtype: DTypeLike = jnp.float32,
  remat: str = "none",
  collect: Callable[[Float[Array, "B T D"]], PyTree[Array]] = lambda x: None,
  attention: str = "xla",
) -> tuple[Float[Array, "B T D"], PyTree[Array]]:
  """Teacher-forced pass without logits.

  Args:
    config: the decoder's shape.
    params: parameters in the training layout.
    rows: tokens of B sequences; a shared prompt is computed once, except for its attention.
    dtype: computation dtype; parameters are cast to it.
    remat: a key of REMAT_POLICIES.
    collect: applied to each layer's output [B, T, D]; its results come back stacked by layer.
    attention: implementation, see models/attention.py.

  Returns:
    States [B, T, D] after the final norm, and what `collect` returned [L, ...].
  """
  decoder = Transformer(config, dtype, remat, attention)
  return decoder.apply({"params": params}, rows, collect)


def forward(config: ModelConfig, params: Any, tokens: jax.Array, mask: jax.Array) -> Output:
  """Everything a forward pass can tell, in float32. For small inputs: it holds [L, B, T, D] and
  [B, T, V]."""
  hidden, layers = hidden_states(config, params, Rows(tokens, mask), collect=lambda x: x)
  logits = jnp.einsum("btd,dv->btv", hidden, unembedding(config, params))
  return Output(hidden=hidden, logits=logits, layers=layers)


def sampling_params(config: ModelConfig, params: Any, dtype: Any = jnp.float32) -> Any:
  """The same weights laid out for decoding: `dtype`, one subtree a layer, kernels [*out, in], and
  maps of the same input in one kernel.

  This copies the weights once a step; decoding from stacked weights would slice (copy) every layer
  again for every token.
  """
  groups = config.num_key_value_heads

  def by_key_head(x):  # [in, heads * K] or [heads * K] -> [G, heads / G, K, in] or [G, ..., K]
    return x.T.reshape(groups, -1, config.head_dim, *x.shape[:-1])

  def one_layer(i):
    layer = jax.tree.map(lambda x: x[i], params["layers"])
    attention, mlp = dict(layer["self_attn"]), dict(layer["mlp"])
    q, k, v = (attention.pop(f"{name}_proj") for name in "qkv")
    gate, up = (mlp.pop(f"{name}_proj") for name in ("gate", "up"))
    attention["o_proj"] = jax.tree.map(jnp.transpose, attention["o_proj"])
    attention["qkv_proj"] = jax.tree.map(
      lambda *parts: jnp.concatenate([by_key_head(x) for x in parts], axis=1), q, k, v
    )
    mlp = jax.tree.map(jnp.transpose, mlp)
    mlp["gate_up_proj"] = jax.tree.map(lambda *parts: jnp.stack([x.T for x in parts]), gate, up)
    return {**layer, "self_attn": attention, "mlp": mlp}

  layers = [one_layer(i) for i in range(config.num_hidden_layers)]
  return jax.tree.map(lambda x: x.astype(dtype), {**params, "layers": layers})


def sampling_axes(config: ModelConfig) -> Any:
  """The tree of `logical_axes` for what `sampling_params` returns."""
  axes = logical_axes(config)
  is_names = lambda x: type(x) is tuple  # noqa: E731
  # Without "layers" in front, and with the two axes of kernels swapped.
  layer = jax.tree.map(lambda names: names[:0:-1], axes["layers"], is_leaf=is_names)
  attention, mlp = dict(layer["self_attn"]), dict(layer["mlp"])
  _, k, _ = (attention.pop(f"{name}_proj") for name in "qkv")
  gate, _ = (mlp.pop(f"{name}_proj") for name in ("gate", "up"))
  attention["qkv_proj"] = jax.tree.map(
    lambda names: ("kv_heads", None, "head_dim", *names[1:]), k, is_leaf=is_names
  )
  mlp["gate_up_proj"] = jax.tree.map(lambda names: (None, *names), gate, is_leaf=is_names)
  layer = {**layer, "self_attn": attention, "mlp": mlp}
  return {**axes, "layers": [layer] * config.num_hidden_layers}
