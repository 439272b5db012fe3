"""Prefill, decode and pooled features in one jitted program.

A prompt is prefilled once and its cache is shared by its n samples. The decode loop carries, beside
the caches, only the last k states of each row's reasoning: O(P·n·k·D), never [P, n, T, D]. It runs
in stages over growing caches, because each token reads all of them, filled or not.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from poise_jax.distributed.sharding import constrain
from poise_jax.errors import UserError
from poise_jax.models import ModelConfig, kv_cache, sampling_params, unembedding
from poise_jax.models.attention import attention, decode_attention, xla
from poise_jax.models.rows import positions_of
from poise_jax.models.transformer import Block, RMSNorm, rope
from poise_jax.rollout.config import RolloutConfig
from poise_jax.rollout.draw import draw
from poise_jax.rollout.features import (
  assemble,
  check_layers,
  last_k,
  mean_entropies,
  reasoning_mask,
)
from poise_jax.types import Prompts, Rollouts


@flax.struct.dataclass
class DecodeState:
  """The decode loop's carry. The outputs have T + 1 positions: the last one is a place to write
  what is drawn after the end, and is cut off."""

  t: jax.Array  # [] int32, the response position whose token is fed next
  tokens: jax.Array  # [P, n, T + 1] int32, drawn up to and including position t
  mask: jax.Array  # [P, n, T + 1] bool, what belongs to the response
  logprobs: jax.Array  # [P, n, T + 1] float32
  entropies: jax.Array  # [P, n, T + 1] float32
  caches: list[kv_cache.KVCache]  # a layer, of P * n rows and the stage's positions
  thinking: jax.Array  # [P, n] bool, position t is reasoning
  window: jax.Array  # [layers, P, n, k, D], ring buffer of the last reasoning states


def sample(
  config: ModelConfig, params: Any, prompts: Prompts, key: jax.Array, rollout: RolloutConfig
) -> Rollouts:
  """Samples n responses a prompt, with their log-probs, entropies and features, in one pass.

  Args:
    config: the decoder's shape.
    params: in the training layout or, to unstack them only once for several calls, as
      `models.sampling_params` returns them. The computation runs in their dtype.
    prompts: P prompts, padded on the left.
    key: row r = p * n + i draws token t with fold_in(fold_in(key, r), t). Or a key a prompt, [P]:
      sample i of prompt p draws with fold_in(fold_in(key[p], i), t), whatever stands beside it.
    rollout: sampling options.

  Raises:
    UserError: a feature layer does not exist, or there are no prompts.
  """
  check_layers(config, rollout)
  if not prompts.tokens.size:
    raise UserError(f"no prompts to sample from: tokens have shape {prompts.tokens.shape}")
  return _sample(config, params, prompts, key, rollout)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _sample(config, params, prompts, key, rollout):
  if not isinstance(params["layers"], list):
    params = sampling_params(config, params, params["norm"]["scale"].dtype)
  dtype = params["norm"]["scale"].dtype
  p, n, t_max = prompts.tokens.shape[0], rollout.n, rollout.max_new_tokens
  if key.ndim:
    key, number = jnp.repeat(key, n), jnp.tile(jnp.arange(n), p)
  else:
    key, number = jnp.broadcast_to(key, (p * n,)), jnp.arange(p * n)
  row_keys = jax.vmap(jax.random.fold_in)(key, number)

  def draw_next(x, t):
    """Final states [D, P * n] -> token, logprob and entropy of position t, [P, n] each."""
    x = RMSNorm(config.rms_norm_eps, columns=True).apply({"params": params["norm"]}, x)
    logits = jnp.dot(unembedding(config, params).T, x, preferred_element_type=jnp.float32)
    keys = jax.vmap(lambda k: jax.random.fold_in(k, t))(row_keys)
    return [a.reshape(p, n) for a in draw(logits, keys, rollout)]

  def write(state, t, alive, drawn):
    """Enters what was drawn for position t of the rows that are alive there."""

    def put(buffer, x):
      x = x.astype(buffer.dtype)[:, :, None]
      return jax.lax.dynamic_update_slice(buffer, x, (0, 0, t))

    token, logprob, entropy = drawn
    return state.replace(
      t=jnp.asarray(t, jnp.int32),
      tokens=put(state.tokens, jnp.where(alive, token, rollout.pad_id)),
      mask=put(state.mask, alive),
      logprobs=put(state.logprobs, jnp.where(alive, logprob, 0.0)),
      entropies=put(state.entropies, jnp.where(alive, entropy, 0.0)),
    )

  def at(buffer, t):
    return jax.lax.dynamic_index_in_dim(buffer, t, axis=2, keepdims=False)

  def step(state):
    """Feeds token t, keeps its states, draws token t + 1."""
    t, token, alive = state.t, at(state.tokens, state.t), at(state.mask, state.t)
    cos, sin = (x[positions + t].T for x in rotary)  # [K / 2, P * n]
    x = params["embed_tokens"]["embedding"][token.reshape(-1)].T  # [D, P * n]
    caches, states = [], []
    written = jnp.arange(state.caches[0].positions) <= t
    for i, layer in enumerate(params["layers"]):

      def attend(q, k, v, i=i):
        own = kv_cache.write(state.caches[i], k, v, t)
        q = q.reshape(p, n, *q.shape[1:])
        context = decode_attention(q, prompt_caches[i], prompts.mask, own, written)
        return context.reshape(p * n, *q.shape[2:]), own

      block = Block(config, dtype, sampling=True, columns=True)
      x, own = block.apply({"params": layer}, x, cos, sin, attend)
      caches.append(own)
      if i in rollout.feature_layers:
        states.append(x.T.reshape(p, n, -1))
    window, thinking = state.window, state.thinking
    if states:
      slot = t % rollout.feature_window
      old = jax.lax.dynamic_index_in_dim(window, slot, axis=3, keepdims=False)
      new = jnp.where((alive & thinking)[..., None], jnp.stack(states), old)
      window = jax.lax.dynamic_update_index_in_dim(window, new, slot, axis=3)
    if rollout.think_end:
      marker = jnp.ones_like(thinking)
      for back, end_id in enumerate(reversed(rollout.think_end)):
        marker &= (at(state.tokens, t - back) == end_id) & (t >= back)
      thinking &= ~marker
    state = state.replace(caches=caches, window=window, thinking=thinking)
    alive &= ~is_eos(token)
    return write(state, t + 1, alive, draw_next(x, t + 1))

  def is_eos(tokens):
    return jnp.isin(tokens, jnp.array(rollout.eos_ids, jnp.int32))

  cache_dtype = jnp.dtype(rollout.cache_dtype or dtype)
  x, prompt_kv, prompt_states = prefill(config, params, prompts, rollout)
  prompt_caches = [kv_cache.store(k, v, cache_dtype) for k, v in prompt_kv]
  positions = jnp.repeat(prompts.mask.sum(-1), n)  # [P * n]: of response token 0
  # Made once: inside of the loop XLA computes the cosines in every layer, for every head.
  rotary = rope(config, jnp.arange(prompts.tokens.shape[1] + t_max))
  nothing = jnp.zeros((p * n, 0, config.num_key_value_heads, config.head_dim), dtype)
  zeros = jnp.zeros((p, n, t_max + 1), jnp.float32)
  layers = len(rollout.feature_layers)
  state = DecodeState(
    t=jnp.int32(0),
    tokens=jnp.full(zeros.shape, rollout.pad_id, jnp.int32),
    mask=zeros.astype(bool),
    logprobs=zeros,
    entropies=zeros,
    caches=[kv_cache.store(nothing, nothing, cache_dtype)] * config.num_hidden_layers,
    thinking=jnp.ones((p, n), bool),
    window=jnp.zeros((layers, p, n, rollout.feature_window, config.hidden_size), dtype),
  )
  first = draw_next(jnp.repeat(x, n, axis=0).T, 0)
  state = write(state, 0, jnp.ones((p, n), bool), first)
  # The last token is drawn at t = T - 1; feeding it too only serves its state, for the features.
  steps = t_max if layers else t_max - 1
  for size in stages(t_max):
    state = state.replace(caches=[kv_cache.grow(own, size) for own in state.caches])
    end = min(size, steps)
    state = jax.lax.while_loop(lambda s, e=end: (s.t < e) & at(s.mask, s.t).any(), step, state)

  tokens, mask, logprobs, entropies = (
    a[:, :, :t_max] for a in (state.tokens, state.mask, state.logprobs, state.entropies)
  )
  features = jnp.zeros((p, n, 0), jnp.float32)
  if layers:
    reasoning = reasoning_mask(tokens, mask, rollout.think_end)
    count = jnp.clip(reasoning.sum(-1), 1, rollout.feature_window)
    pooled = state.window.astype(jnp.float32).sum(3) / count[..., None]
    features = assemble(prompt_states, pooled, mean_entropies(entropies, mask, reasoning))
  return Rollouts(
    prompts=prompts,
    tokens=tokens,
    mask=mask,
    logprobs=logprobs,
    entropies=entropies,
    truncated=mask[:, :, -1] & ~is_eos(tokens[:, :, -1]),
    features=features,
  )


def stages(length: int) -> tuple[int, ...]:
  """How many response positions the caches hold, stage by stage.

  Each is compiled on its own, all layers of it, so they are few: doubling up to the length, because
  a batch whose answers are short should read little, and a step between its half and all, where a
  full batch reads most: 8,192 tokens read 1.21 times what they have written so far, without that
  step 1.33. They start at 512 positions, below which reading weights is what a token costs, but for
  short responses at a quarter; those of fewer than 64 tokens are not worth a second one.
  """
  if length < 64:
    return (length,)
  sizes = [length, 3 * length // 4, length // 2, length // 4]
  while sizes[-1] >= 1024:
    sizes.append(sizes[-1] // 2)
  return tuple(sorted(sizes))


def prefill(config, params, prompts, rollout):
  """One pass over the prompts, whole or rollout.prefill_chunk positions at a time.

  Returns: the last states [P, D] before the final norm, each layer's keys and values
  [P, Tp, G, K], and the pooled prompt states [layers, P, D] of the feature layers.
  """
  width = prompts.tokens.shape[1]
  chunk = min(rollout.prefill_chunk or width, width)
  pad = -width % chunk  # on the left, where the padding is
  tokens, mask = (jnp.pad(x, ((0, 0), (pad, 0))) for x in (prompts.tokens, prompts.mask))
  embedding = params["embed_tokens"]["embedding"]
  inputs = (tokens, positions_of(mask), last_k(mask, rollout.feature_window))

  def layers(inputs, attend):
    """attend: (layer, q, k, v) -> context and what of the layer's keys and values is kept."""
    tokens, positions, pool = inputs
    cos, sin = rope(config, positions)
    x = embedding[tokens]
    kept, states = [], [jnp.zeros((0, len(x), config.hidden_size))]
    for i, layer in enumerate(params["layers"]):
      block = Block(config, x.dtype, sampling=True)
      x, kv = block.apply({"params": layer}, x, cos, sin, functools.partial(attend, i))
      kept.append(kv)
      if i in rollout.feature_layers:
        states.append(jnp.einsum("pt,ptd->pd", pool, x)[None])
    return x[:, -1], kept, jnp.concatenate(states)

  if chunk == width:
    return layers(inputs, lambda i, q, k, v: (attention(q, k, v, mask, rollout.attention), (k, v)))

  def one(carry, start):
    """The chunk at `start`, whose queries read the keys so far; those to come are masked."""
    _, kept, states = carry

    def attend(i, q, *new):
      put = jax.lax.dynamic_update_slice_in_dim
      k, v = (
        constrain(put(all_, x, start, 1), "batch", None, "kv_heads", None)
        for all_, x in zip(kept[i], new, strict=True)
      )
      return xla(q, k, v, mask, start), (k, v)

    part = [jax.lax.dynamic_slice_in_dim(x, start, chunk, axis=1) for x in inputs]
    last, kept, more = layers(part, attend)
    return (last, kept, states + more), None

  p, layer_count = len(tokens), len(rollout.feature_layers)
  empty = jnp.zeros((p, width + pad, config.num_key_value_heads, config.head_dim), embedding.dtype)
  carry = (
    jnp.zeros((p, config.hidden_size), embedding.dtype),
    [(empty, empty)] * config.num_hidden_layers,
    jnp.zeros((layer_count, p, config.hidden_size)),
  )
  (last, kept, states), _ = jax.lax.scan(one, carry, jnp.arange(0, width + pad, chunk))
  return last, [(k[:, pad:], v[:, pad:]) for k, v in kept], states
