"""The whole decoder, as pure functions of its parameters in the training layout.

Parameters carry logical axis names, which poise_jax/distributed alone maps to mesh axes. Training
scans over the layers, whose parameters are stacked: one Block is compiled. Sampling applies the
same Block layer by layer, each with its own cache (poise_jax/rollout).
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from poise_jax.distributed.sharding import constrain
from poise_jax.models.attention import RESIDUALS, attention
from poise_jax.models.block import Block, norm, scaled
from poise_jax.models.config import LayerSpec, ModelConfig
from poise_jax.models.linear import Dense
from poise_jax.models.products import matmul
from poise_jax.models.rows import Rows

_POLICIES = jax.checkpoint_policies
_ATTENTION = _POLICIES.save_only_these_names(RESIDUALS)
REMAT_POLICIES = {
  "none": None,  # save every activation
  "full": _ATTENTION,  # save the inputs of layers and what splash attention needs
  # save the results of matrix products as well
  "dots": _POLICIES.save_from_both_policies(_POLICIES.dots_with_no_batch_dims_saveable, _ATTENTION),
}


@flax.struct.dataclass
class Output:
  """The results of a forward pass."""

  hidden: Float[Array, "B T D"]  # after the final norm: the input of the unembedding
  logits: Float[Array, "B T V"]  # float32
  layers: Float[Array, "L B T D"]  # residual stream after each block, before the final norm


class Transformer(nn.Module):
  """The decoder with its layers scanned; `init`, `hidden_states` and `forward` apply it."""

  config: ModelConfig
  dtype: DTypeLike = jnp.float32
  remat: str = "none"
  attention: str = "xla"

  @nn.compact
  def __call__(
    self, rows: Rows, collect: Callable[[Float[Array, "B T D"]], PyTree[Array]] = lambda x: None
  ) -> tuple[Float[Array, "B T D"], PyTree[Array]]:
    """Final hidden states [B, T, D] of B sequences, and `collect` of every layer [L, ...]."""
    c = self.config
    x = self._embed(rows.tokens)
    positions, segments = rows.positions, rows.split(rows.segments)
    # One branch for each kind of window and of rotary embedding; layers pick theirs by index.
    windows = sorted({layer.window for layer in c.layers})
    within = [
      functools.partial(attention, segments=segments, implementation=self.attention, window=window)
      for window in windows
    ]
    tables = [rope.table(c.head_dim, positions) for rope in c.ropes]
    specs = LayerSpec(
      jnp.array([windows.index(layer.window) for layer in c.layers]),
      jnp.array([layer.rope for layer in c.layers]),
    )

    @jax.named_scope("attention")
    def attend(window, q, k, v):
      q, k, v = (rows.split(x) for x in (q, k, v))
      # Pinned, because GSPMD may otherwise gather the heads or the batch.
      q = constrain(q, "batch", None, "heads", None)
      k, v = (constrain(x, "batch", None, "kv_heads", None) for x in (k, v))
      context = jax.lax.switch(window, within, q, k, v)
      context = constrain(context, "batch", None, "heads", None)
      return rows.merge(context), None

    def layer(block, x, spec):
      cos, sin = jax.lax.switch(spec.rope, [lambda table=table: table for table in tables])
      x, _ = block(x, cos, sin, functools.partial(attend, spec.window))
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
    x, collected = scan(Block(c, self.dtype, name="layers"), x, specs)
    return rows.split(norm(c, "norm")(x)), collected

  @nn.nowrap
  @jax.named_scope("embed")
  def _embed(self, tokens):
    c = self.config
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
    embed = nn.Embed(
      c.vocab_size, c.hidden_size, dtype=self.dtype, embedding_init=init, name="embed_tokens"
    )
    if not c.tie_word_embeddings:
      # Declared here, used through `unembedding`: no pass makes logits [B, T, V].
      head = Dense(c.vocab_size, ("embed", "vocab"), False, self.dtype, name="lm_head")
      head(jnp.zeros((1, c.hidden_size), self.dtype))
    # Looked up before the cast, so that the gradient of a frequent token, a sum over thousands of
    # positions, is summed in float32. Each device looks up its features for the tokens of all
    # devices that share them; they send states, not the table.
    x = constrain(embed.embedding[tokens], "replica", None, "embed").astype(self.dtype)
    return constrain(scaled(c, x), "batch", None, None)


def _init_boxed(config, key):
  one = jnp.ones((1, 1), jnp.int32)
  return Transformer(config).init(key, Rows(one, one.astype(bool)))["params"]


def init(config: ModelConfig, key: Key[Array, ""]) -> PyTree[Array]:
  """Random float32 parameters in the training layout: normal(0.02) kernels, zero biases."""
  return nn.meta.unbox(_init_boxed(config, key))


def abstract_params(config: ModelConfig) -> PyTree[jax.ShapeDtypeStruct]:
  """The shapes and dtypes of the parameters in the training layout, without memory."""
  return nn.meta.unbox(jax.eval_shape(lambda k: _init_boxed(config, k), jax.random.key(0)))


def logical_axes(config: ModelConfig) -> PyTree[tuple[str | None, ...]]:
  """The logical axis names of every parameter in the training layout, as tuples."""
  boxed = jax.eval_shape(lambda k: _init_boxed(config, k), jax.random.key(0))
  return jax.tree.map(
    lambda b: b.names, boxed, is_leaf=lambda b: isinstance(b, nn.meta.AxisMetadata)
  )


def unembedding(config: ModelConfig, params: PyTree[Array]) -> Float[Array, "D V"]:
  """The matrix that turns final hidden states into logits; `params` in either layout."""
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
    collect: function of a layer's output [B, T, D]; its results are stacked by layer.
    attention: a key of models.attention.IMPLEMENTATIONS, or "auto".

  Returns:
    States [B, T, D] after the final norm, and the results of `collect` [L, ...].
  """
  decoder = Transformer(config, dtype, remat, attention)
  return decoder.apply({"params": params}, rows, collect)


def forward(
  config: ModelConfig, params: PyTree[Array], tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Output:
  """Logits and all states in float32, for small inputs: holds [L, B, T, D] and [B, T, V]."""
  hidden, layers = hidden_states(config, params, Rows(tokens, mask), collect=lambda x: x)
  logits = matmul(hidden, unembedding(config, params))
  return Output(hidden=hidden, logits=logits, layers=layers)
