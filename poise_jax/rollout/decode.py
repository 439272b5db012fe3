"""Decoding: one step feeds every row's newest token and draws its next one.

Letters are those of poise_jax/types.py, and R = P * n rows, U = T + 1 positions, k states in a
feature window.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from poise_jax.models import ModelConfig, kv_cache, unembedding
from poise_jax.models.attention import decode_attention
from poise_jax.models.block import Block, RMSNorm
from poise_jax.models.products import matmul
from poise_jax.models.rotary import rope
from poise_jax.rollout.config import RolloutConfig
from poise_jax.rollout.draw import draw
from poise_jax.rollout.prefill import Prefill
from poise_jax.types import Prompts

Drawn = tuple[Int[Array, "P n"], Float[Array, "P n"], Float[Array, "P n"]]  # see draw.draw


@flax.struct.dataclass
class DecodeInputs:
  """What every step reads and none changes."""

  params: PyTree[Array]  # in the sampling layout
  row_keys: Key[Array, " R"]  # a row draws its token t with fold_in(row key, t)
  prompt_caches: list[kv_cache.KVCache]  # per layer, P rows
  prompt_mask: Bool[Array, "P Tp"]
  prompt_lengths: Int[Array, " R"]  # positions of the first response tokens
  rotary: tuple[Float[Array, "S half"], Float[Array, "S half"]]  # cosines and sines, S = Tp + T


@flax.struct.dataclass
class DecodeState:
  """The carry of the decode loop.

  Responses have U = T + 1 positions: tokens drawn after position T - 1 are written to the last one,
  which is cut off.
  """

  t: Int[Array, ""]  # response position of the token to feed next
  tokens: Int[Array, "P n U"]  # drawn up to position t, int32
  mask: Bool[Array, "P n U"]  # True on tokens that belong to the response
  logprobs: Float[Array, "P n U"]  # float32, nats
  entropies: Float[Array, "P n U"]  # float32, nats
  caches: list[kv_cache.KVCache]  # responses' keys and values per layer, R rows
  window: Float[Array, "layers P n k D"]  # ring buffer of the last k states
  # Sum of the window where the last end-of-thinking marker ended, float32; () without a marker.
  at_marker: Float[Array, "layers P n D"] | tuple[()]


def inputs(
  config: ModelConfig,
  params: PyTree[Array],
  prompts: Prompts,
  prompt: Prefill,
  row_keys: Key[Array, " R"],
  rollout: RolloutConfig,
) -> DecodeInputs:
  """Gathers what the steps read after `prompt`, the prefill of `prompts`."""
  lengths = jnp.repeat(prompts.mask.sum(-1), rollout.n)
  # Computed once: inside the loop XLA would compute the cosines in every layer, for every head.
  rotary = rope(config, jnp.arange(prompts.tokens.shape[1] + rollout.max_new_tokens))
  return DecodeInputs(
    params=params,
    row_keys=row_keys,
    prompt_caches=prompt.caches,
    prompt_mask=prompts.mask,
    prompt_lengths=lengths,
    rotary=rotary,
  )


def start(
  hidden: Float[Array, "P D"], inputs: DecodeInputs, config: ModelConfig, rollout: RolloutConfig
) -> DecodeState:
  """Draws the first tokens from the prompts' last states; the caches have no positions yet."""
  dtype = inputs.params["norm"]["scale"].dtype
  cache_dtype = jnp.dtype(rollout.cache_dtype or dtype)
  p, n, width = len(hidden), rollout.n, rollout.max_new_tokens + 1
  no_keys = jnp.zeros((p * n, 0, config.num_key_value_heads, config.head_dim), dtype)
  zeros = jnp.zeros((p, n, width), jnp.float32)
  window = (len(rollout.feature_layers), p, n, rollout.feature_window, config.hidden_size)
  state = DecodeState(
    t=jnp.int32(0),
    tokens=jnp.full(zeros.shape, rollout.pad_id, jnp.int32),
    mask=zeros.astype(bool),
    logprobs=zeros,
    entropies=zeros,
    caches=[kv_cache.store(no_keys, no_keys, cache_dtype)] * config.num_hidden_layers,
    window=jnp.zeros(window, dtype),
    at_marker=jnp.zeros((*window[:3], window[-1]), jnp.float32) if rollout.think_end else (),
  )
  drawn = _draw_next(jnp.repeat(hidden, n, axis=0).T, 0, inputs, config, rollout)
  return _write(state, 0, jnp.ones((p, n), bool), drawn, rollout.pad_id)


def grow(state: DecodeState, positions: int) -> DecodeState:
  """The same state with room for `positions` response tokens in its caches."""
  return state.replace(caches=[kv_cache.grow(cache, positions) for cache in state.caches])


def any_alive(state: DecodeState) -> Bool[Array, ""]:
  """Whether a row still decodes: whether a token was drawn for position t."""
  return _at(state.mask, state.t).any()


@jax.named_scope("decode_step")
def step(
  state: DecodeState, inputs: DecodeInputs, config: ModelConfig, rollout: RolloutConfig
) -> DecodeState:
  """Feeds the tokens at position t, pools their states and draws the tokens at t + 1."""
  t, tokens, alive = state.t, _at(state.tokens, state.t), _at(state.mask, state.t)
  x, caches, states = _run_layers(state, tokens, inputs, config, rollout.feature_layers)
  window, at_marker = state.window, state.at_marker
  if states:
    window = _push(window, states, t, alive)
    if rollout.think_end:
      ends = alive & _ends_with(state.tokens, t, rollout.think_end)
      at_marker = jnp.where(ends[..., None], total(window), at_marker)
  state = state.replace(caches=caches, window=window, at_marker=at_marker)
  alive &= ~is_eos(tokens, rollout)
  return _write(state, t + 1, alive, _draw_next(x, t + 1, inputs, config, rollout), rollout.pad_id)


def is_eos(tokens: Int[Array, "..."], rollout: RolloutConfig) -> Bool[Array, "..."]:
  """Which tokens end a response."""
  return jnp.isin(tokens, jnp.array(rollout.eos_ids, jnp.int32))


def _run_layers(state, tokens, inputs, config, feature_layers):
  """Final states [D, R], all layers' caches, and the states [P, n, D] of the feature layers."""
  p, n = tokens.shape
  embedding = inputs.params["embed_tokens"]["embedding"]
  with jax.named_scope("embed"):
    cos, sin = (x[inputs.prompt_lengths + state.t].T for x in inputs.rotary)  # [K / 2, R]
    x = embedding[tokens.reshape(-1)].T  # [D, R]
  caches, states = [], []
  written = jnp.arange(state.caches[0].positions) <= state.t
  for i, layer in enumerate(inputs.params["layers"]):

    @jax.named_scope("attention")
    def attend(q, k, v, i=i):
      cache = kv_cache.write(state.caches[i], k, v, state.t)
      q = q.reshape(p, n, *q.shape[1:])
      context = decode_attention(q, inputs.prompt_caches[i], inputs.prompt_mask, cache, written)
      return context.reshape(p * n, *q.shape[2:]), cache

    block = Block(config, embedding.dtype, sampling=True, features_first=True, name="layers")
    x, cache = block.apply({"params": layer}, x, cos, sin, attend)
    caches.append(cache)
    if i in feature_layers:
      states.append(x.T.reshape(p, n, -1))
  return x, caches, states


def _draw_next(x, t, inputs, config, rollout) -> Drawn:
  """Tokens of response position t and their log-probs and entropies, from states [D, R]."""
  with jax.named_scope("head"):
    norm = RMSNorm(config.rms_norm_eps, features_first=True, name="norm")
    x = norm.apply({"params": inputs.params["norm"]}, x)
    unembed = unembedding(config, inputs.params).T
    logits = matmul(unembed, x, jnp.float32)
  with jax.named_scope("draw"):
    keys = jax.vmap(lambda key: jax.random.fold_in(key, t))(inputs.row_keys)
    return tuple(a.reshape(-1, rollout.n) for a in draw(logits, keys, rollout))


def _write(state, t, alive, drawn, pad_id):
  """Enters the tokens drawn for position t of the rows that are alive there."""

  def put(buffer, x):
    x = x.astype(buffer.dtype)[:, :, None]
    return jax.lax.dynamic_update_slice(buffer, x, (0, 0, t))

  tokens, logprobs, entropies = drawn
  return state.replace(
    t=jnp.asarray(t, jnp.int32),
    tokens=put(state.tokens, jnp.where(alive, tokens, pad_id)),
    mask=put(state.mask, alive),
    logprobs=put(state.logprobs, jnp.where(alive, logprobs, 0.0)),
    entropies=put(state.entropies, jnp.where(alive, entropies, 0.0)),
  )


@jax.named_scope("features")
def total(window: Float[Array, "layers P n k D"]) -> Float[Array, "layers P n D"]:
  """Sum over a ring buffer, float32."""
  return window.astype(jnp.float32).sum(3)


@jax.named_scope("features")
def _push(window, states, t, alive):
  """Writes the states of position t to the ring buffer, for the rows that are alive there."""
  slot = t % window.shape[3]
  old = jax.lax.dynamic_index_in_dim(window, slot, axis=3, keepdims=False)
  new = jnp.where(alive[..., None], jnp.stack(states), old)
  return jax.lax.dynamic_update_index_in_dim(window, new, slot, axis=3)


def _ends_with(tokens, t, marker):
  """Whether each response up to position t ends with the marker's tokens, [P, n]."""
  ends = jnp.ones(tokens.shape[:2], bool)
  for back, token in enumerate(reversed(marker)):
    ends &= (_at(tokens, t - back) == token) & (t >= back)
  return ends


def _at(buffer, t):
  """[P, n, T + 1] -> [P, n] at position t."""
  return jax.lax.dynamic_index_in_dim(buffer, t, axis=2, keepdims=False)
