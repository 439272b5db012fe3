"""Prefill: one pass over the prompts. A prompt is computed once, whatever its number of samples."""

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
from poise_jax.models.block import Block
from poise_jax.models.products import einsum
from poise_jax.models.rotary import rope
from poise_jax.models.rows import positions_of
from poise_jax.rollout.config import RolloutConfig
from poise_jax.rollout.features import last_k
from poise_jax.types import Prompts

KeysValues = tuple[Float[Array, "P S G K"], Float[Array, "P S G K"]]  # of one layer


@flax.struct.dataclass
class Prefill:
  """Results of the pass over P prompts."""

  hidden: Float[Array, "P D"]  # last position's states after the last block, before the final norm
  caches: list[kv_cache.KVCache]  # keys and values per layer, P rows
  features: Float[Array, "layers P D"]  # pooled prompt states of the feature layers


class _Inputs(NamedTuple):
  """Positions to compute, all of the prompts' or a chunk of them."""

  tokens: Int[Array, "P S"]
  positions: Int[Array, "P S"]
  weights: Float[Array, "P S"]  # of the pooled prompt states


class _Outputs(NamedTuple):
  """Results of all layers."""

  hidden: Float[Array, "P D"]
  keys_values: list[KeysValues]
  features: Float[Array, "layers P D"]


@jax.named_scope("prefill")
def prefill(
  config: ModelConfig, params: PyTree[Array], prompts: Prompts, rollout: RolloutConfig
) -> Prefill:
  """Computes the prompts at once, or rollout.prefill_chunk positions at a time to save memory.

  Args:
    config: the decoder's shape.
    params: parameters in the sampling layout. The computation runs in their dtype.
    prompts: P prompts, padded on the left.
    rollout: sampling options.
  """
  width = prompts.tokens.shape[1]
  chunk = min(rollout.prefill_chunk or width, width)
  padding = -width % chunk  # on the left, as the prompts' own
  tokens, mask = (jnp.pad(x, ((0, 0), (padding, 0))) for x in (prompts.tokens, prompts.mask))
  inputs = _Inputs(tokens, positions_of(mask), last_k(mask, rollout.feature_window))
  run_layers = functools.partial(_run_layers, config, params, rollout.feature_layers)

  if chunk == width:

    def attend(_, q, k, v):
      return attention(q, k, v, mask, rollout.attention), (k, v)

    outputs = run_layers(inputs, attend)
  else:
    empty = _empty_outputs(config, params, inputs, rollout)
    outputs = _run_chunks(run_layers, inputs, mask, chunk, empty)
    keys_values = [(k[:, padding:], v[:, padding:]) for k, v in outputs.keys_values]
    outputs = outputs._replace(keys_values=keys_values)
  cache_dtype = jnp.dtype(rollout.cache_dtype or params["norm"]["scale"].dtype)
  caches = [kv_cache.store(k, v, cache_dtype) for k, v in outputs.keys_values]
  return Prefill(hidden=outputs.hidden, caches=caches, features=outputs.features)


def _run_layers(config, params, feature_layers, inputs, attend) -> _Outputs:
  """Applies all layers; attend: (layer, q, k, v) -> context and the layer's keys and values."""
  with jax.named_scope("embed"):
    cos, sin = rope(config, inputs.positions)
    x = params["embed_tokens"]["embedding"][inputs.tokens]
  keys_values, features = [], [jnp.zeros((0, len(x), config.hidden_size))]
  for i, layer in enumerate(params["layers"]):
    block = Block(config, x.dtype, sampling=True, name="layers")
    attend_layer = jax.named_scope("attention")(functools.partial(attend, i))
    x, kv = block.apply({"params": layer}, x, cos, sin, attend_layer)
    keys_values.append(kv)
    if i in feature_layers:
      with jax.named_scope("features"):
        features.append(einsum("pt,ptd->pd", inputs.weights, x)[None])
  return _Outputs(x[:, -1], keys_values, jnp.concatenate(features))


def _empty_outputs(config, params, inputs, rollout) -> _Outputs:
  """Outputs before the first chunk."""
  rows, dtype = len(inputs.tokens), params["embed_tokens"]["embedding"].dtype
  shape = (*inputs.tokens.shape, config.num_key_value_heads, config.head_dim)
  empty = jnp.zeros(shape, dtype)
  return _Outputs(
    jnp.zeros((rows, config.hidden_size), dtype),
    [(empty, empty)] * config.num_hidden_layers,
    jnp.zeros((len(rollout.feature_layers), rows, config.hidden_size)),
  )


def _run_chunks(
  run_layers: Callable[..., _Outputs],
  inputs: _Inputs,
  mask: Bool[Array, "P S"],
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
      return xla(q, k, v, mask, start), (k, v)

    part = [jax.lax.dynamic_slice_in_dim(x, start, chunk, axis=1) for x in inputs]
    after = run_layers(_Inputs(*part), attend)
    return after._replace(features=outputs.features + after.features), None

  outputs, _ = jax.lax.scan(step, empty, jnp.arange(0, mask.shape[1], chunk))
  return outputs
