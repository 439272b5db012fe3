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

from poise_jax.models import ModelConfig, sampling_params, unembedding
from poise_jax.models.attention import attention, decode_attention
from poise_jax.models.transformer import Block, RMSNorm, positions_of, rope
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
  # The caches have the shapes in which attention multiplies them: a reshape in between would make
  # XLA update (and copy) each of them twice.
  keys: list[jax.Array]  # a layer: [P * n, G, K, S], S the positions of the stage
  values: list[jax.Array]  # a layer: [P * n, G, S, K]
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
    ValueError: a feature layer does not exist, or there are no prompts.
  """
  check_layers(config, rollout)
  if not prompts.tokens.size:
    raise ValueError(f"no prompts to sample from: tokens have shape {prompts.tokens.shape}")
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
    """Final states [P * n, D] -> token, logprob and entropy of position t, [P, n] each."""
    x = RMSNorm(config.rms_norm_eps).apply({"params": params["norm"]}, x)
    # As in Dense: the large operand first, and no folding of the transpose.
    logits = jnp.dot(unembedding(config, params).T, x.T, preferred_element_type=jnp.float32)
    logits = jax.lax.optimization_barrier(logits).T
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
    cos, sin = rope(config, jnp.broadcast_to((prompt_lengths + t)[:, None], (p, n)))
    x = params["embed_tokens"]["embedding"][token]  # [P, n, D]: a prompt's samples as positions
    keys, values, states = [], [], []
    written = jnp.arange(state.keys[0].shape[-1]) <= t
    for i, layer in enumerate(params["layers"]):

      def attend(q, k, v, i=i):
        k, v = (a.reshape(p * n, *a.shape[2:]) for a in (k, v))
        k = jax.lax.dynamic_update_slice(state.keys[i], k[..., None], (0, 0, 0, t))
        v = jax.lax.dynamic_update_slice(state.values[i], v[..., None, :], (0, 0, t, 0))
        return decode_attention(q, *prompt_caches[i], prompts.mask, k, v, written), (k, v)

      x, (k, v) = Block(config, dtype, sampling=True).apply({"params": layer}, x, cos, sin, attend)
      keys.append(k)
      values.append(v)
      if i in rollout.feature_layers:
        states.append(x)
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
    state = state.replace(keys=keys, values=values, window=window, thinking=thinking)
    alive &= ~is_eos(token)
    return write(state, t + 1, alive, draw_next(x.reshape(p * n, -1), t + 1))

  def is_eos(tokens):
    return jnp.isin(tokens, jnp.array(rollout.eos_ids, jnp.int32))

  x, prompt_caches, prompt_states = prefill(config, params, prompts, rollout)
  prompt_lengths = prompts.mask.sum(-1)  # [P]: the rotary position of response token 0
  nothing = jnp.zeros((p * n, config.num_key_value_heads, 0, config.head_dim), dtype)
  zeros = jnp.zeros((p, n, t_max + 1), jnp.float32)
  layers = len(rollout.feature_layers)
  state = DecodeState(
    t=jnp.int32(0),
    tokens=jnp.full(zeros.shape, rollout.pad_id, jnp.int32),
    mask=zeros.astype(bool),
    logprobs=zeros,
    entropies=zeros,
    keys=[nothing.swapaxes(2, 3)] * config.num_hidden_layers,
    values=[nothing] * config.num_hidden_layers,
    thinking=jnp.ones((p, n), bool),
    window=jnp.zeros((layers, p, n, rollout.feature_window, config.hidden_size), dtype),
  )
  first = draw_next(jnp.repeat(x, n, axis=0), 0)
  state = write(state, 0, jnp.ones((p, n), bool), first)
  # The last token is drawn at t = T - 1; feeding it too only serves its state, for the features.
  steps = t_max if layers else t_max - 1
  for size in stages(t_max):
    room = size - state.keys[0].shape[-1]
    state = state.replace(
      keys=[jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, room))) for k in state.keys],
      values=[jnp.pad(v, ((0, 0), (0, 0), (0, room), (0, 0))) for v in state.values],
    )
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
  """How many response positions the caches hold, stage by stage. Each is compiled on its own."""
  return (length // 4, length // 2, length) if length >= 64 else (length,)


def prefill(config, params, prompts, rollout):
  """One pass over the prompts.

  Returns: the last states [P, D] before the final norm, each layer's keys [P, G, K, Tp] and values
  [P, G, Tp, K], and the pooled prompt states [layers, P, D] of the feature layers.
  """
  cos, sin = rope(config, positions_of(prompts.mask))
  pool = last_k(prompts.mask, rollout.feature_window)
  x = params["embed_tokens"]["embedding"][prompts.tokens]
  caches, states = [], []

  def attend(q, k, v):
    return attention(q, k, v, prompts.mask, rollout.attention), (k, v)

  for i, layer in enumerate(params["layers"]):
    block = Block(config, x.dtype, sampling=True)
    x, (k, v) = block.apply({"params": layer}, x, cos, sin, attend)
    caches.append((k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)))
    if i in rollout.feature_layers:
      states.append(jnp.einsum("pt,ptd->pd", pool, x))
  return x[:, -1], caches, states and jnp.stack(states)
