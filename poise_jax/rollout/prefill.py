"""Prefill: one pass over prompts. A prompt is computed once, whatever its number of samples."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from poise_jax.distributed.sharding import constrain
from poise_jax.models import ModelConfig, kv_cache
from poise_jax.models.attention import attention, xla
from poise_jax.models.block import Block, scaled
from poise_jax.models.chunks import chunk_size
from poise_jax.models.products import einsum
from poise_jax.rollout.config import RolloutConfig
from poise_jax.rollout.features import last_k

KeysValues = tuple[Float[Array, "B S G K"], Float[Array, "B S G K"]]  # of one layer


@flax.struct.dataclass
class Prefill:
  """Results of the pass over B prompts."""

  hidden: Float[Array, "B D"]  # last token's states after the last block, before the final norm
  caches: list[kv_cache.KVCache]  # keys and values per layer, B rows
  features: Float[Array, "layers B D"]  # pooled prompt states of the feature layers


class _Inputs(NamedTuple):
  """Positions to compute, all of the prompts' or a chunk of them."""

  tokens: Int[Array, "B S"]
  positions: Int[Array, "B S"]
  weights: Float[Array, "B S"]  # of the pooled prompt states
  last: Float[Array, "B S"]  # 1 at the last token


class _Outputs(NamedTuple):
  """Results of all layers."""

  hidden: Float[Array, "B D"]
  keys_values: list[KeysValues]
  features: Float[Array, "layers B D"]


@jax.named_scope("prefill")
def prefill(
  config: ModelConfig,
  params: PyTree[Array],
  tokens: Int[Array, "B Tp"],
  lengths: Int[Array, " B"],
  rollout: RolloutConfig,
) -> Prefill:
  """Computes the prompts at once, or in equal passes of at most rollout.prefill_chunk positions to
  save memory.

  Args:
    config: the decoder's shape.
    params: parameters in the sampling layout. The computation runs in their dtype.
    tokens: B prompts, padded on the right.
    lengths: their numbers of tokens. What the caches hold after them is meaningless.
    rollout: sampling options.
  """
  width = tokens.shape[1]
  chunk = chunk_size(width, rollout.prefill_chunk or width)
  tokens = jnp.pad(tokens, ((0, 0), (0, -width % chunk)))
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  mask = positions < lengths[:, None]
  inputs = _Inputs(tokens, positions, last_k(mask, rollout.feature_window), last_k(mask, 1))
  run_layers = functools.partial(_run_layers, config, params, rollout.feature_layers)

  if chunk == width:

    def attend(i, q, k, v):
      window = config.layers[i].window
      return attention(q, k, v, mask, rollout.attention, window), (k, v)

    outputs = run_layers(inputs, attend)
  else:
    start = _empty(config, params, inputs, rollout)
    outputs = _run_chunks(config, run_layers, inputs, mask, chunk, start)
  cache_dtype = jnp.dtype(rollout.cache_dtype or params["norm"]["scale"].dtype)
  caches = []
  for layer, keys_values in zip(config.layers, outputs.keys_values, strict=True):
    kept = (kv_cache.ring(x[:, :width], lengths, layer.window) for x in keys_values)
    caches.append(kv_cache.store(*kept, cache_dtype))
  return Prefill(hidden=outputs.hidden, caches=caches, features=outputs.features)


def _run_layers(config, params, feature_layers, inputs, attend) -> _Outputs:
  """Applies all layers; attend: (layer, q, k, v) -> context and the layer's keys and values."""
  with jax.named_scope("embed"):
    tables = [rope.table(config.head_dim, inputs.positions) for rope in config.ropes]
    x = scaled(config, params["embed_tokens"]["embedding"][inputs.tokens])
  keys_values, features = [], [jnp.zeros((0, len(x), config.hidden_size))]
  for i, (layer, spec) in enumerate(zip(params["layers"], config.layers, strict=True)):
    block = Block(config, x.dtype, sampling=True, name="layers")
    attend_layer = jax.named_scope("attention")(functools.partial(attend, i))
    x, kv = block.apply({"params": layer}, x, *tables[spec.rope], attend_layer)
    keys_values.append(kv)
    if i in feature_layers:
      with jax.named_scope("features"):
        features.append(einsum("bt,btd->bd", inputs.weights, x)[None])
  hidden = einsum("bt,btd->bd", inputs.last.astype(x.dtype), x)
  return _Outputs(hidden, keys_values, jnp.concatenate(features))


def _empty(config, params, inputs, rollout) -> _Outputs:
  """Outputs before the first chunk."""
  rows, dtype = len(inputs.tokens), params["embed_tokens"]["embedding"].dtype
  shape = (*inputs.tokens.shape, config.num_key_value_heads, config.head_dim)
  zeros = jnp.zeros(shape, dtype)
  return _Outputs(
    jnp.zeros((rows, config.hidden_size), dtype),
    [(zeros, zeros)] * config.num_hidden_layers,
    jnp.zeros((len(rollout.feature_layers), rows, config.hidden_size)),
  )


def _run_chunks(
  config: ModelConfig,
  run_layers: Callable[..., _Outputs],
  inputs: _Inputs,
  mask: Bool[Array, "B S"],
  chunk: int,
  empty: _Outputs,
) -> _Outputs:
  """Runs the layers on `chunk` positions after the other; S is a multiple of it."""

  def step(outputs, start):

    def attend(i, q, *new):
      """Queries read the keys up to their own position; later ones are masked."""
      put = jax.lax.dynamic_update_slice_in_dim
      k, v = (
        constrain(put(old, x, start, 1), "batch", None, "kv_heads", None)
        for old, x in zip(outputs.keys_values[i], new, strict=True)
      )
      return xla(q, k, v, mask, start, config.layers[i].window), (k, v)

    part = [jax.lax.dynamic_slice_in_dim(x, start, chunk, axis=1) for x in inputs]
    after = run_layers(_Inputs(*part), attend)
    sums = outputs.hidden + after.hidden, outputs.features + after.features
    return after._replace(hidden=sums[0], features=sums[1]), None

  outputs, _ = jax.lax.scan(step, empty, jnp.arange(0, mask.shape[1], chunk))
  return outputs
