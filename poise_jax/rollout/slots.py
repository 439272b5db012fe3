"""Slots: the rows of a decode step. A slot holds one response; when it ends, another one moves in.

Letters: see queue.py.
"""

import flax.struct
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from poise_jax.models import ModelConfig
from poise_jax.models import decode_attention as attention
from poise_jax.models.cpu_cache import CpuCache
from poise_jax.models.kv_cache import KVCache, room
from poise_jax.rollout.config import RolloutConfig
from poise_jax.rollout.draw import is_eos
from poise_jax.rollout.queue import Queue, Staged

IDLE = 16  # slots are refilled once one in so many is free


@flax.struct.dataclass
class Window:
  """The last k states of each slot's response, for its features; empty without feature layers."""

  states: Float[Array, "layers R k D"]  # ring buffer
  # Their sum where the last end-of-thinking marker ended, float32, and whether there was one.
  at_marker: Float[Array, "layers R D"]
  has_marker: Bool[Array, " R"]
  recent: Int[Array, "R marker"]  # last response tokens, as many as the marker has


@flax.struct.dataclass
class Slots:
  """R slots. A slot that is not alive is free."""

  response: Int[Array, " R"]  # number in the queue; N before the first one
  alive: Bool[Array, " R"]  # whether there is a token to feed
  token: Int[Array, " R"]  # the response's newest token, which a step feeds
  length: Int[Array, " R"]  # tokens in the cache, and position of the token to feed
  drawn: Int[Array, " R"]  # t, tokens drawn so far
  caches: list[KVCache] | list[CpuCache]  # keys and values per layer
  window: Window


def count(slots: int, responses: int, shards: int) -> int:
  """The number of slots of a device.

  Args:
    slots: rollout.slots.
    responses: of all devices, P * n.
    shards: number of devices that split the batch.
  """
  return -(-min(slots or responses, responses) // shards)


def idle(rows: int) -> int:
  """The number of free slots, of so many, at which they are refilled: at once would be too often,
  since each refill rewrites the prompts' part of all caches."""
  return -(-rows // IDLE)


def implementation(config: ModelConfig, dtype: DTypeLike, rollout: RolloutConfig) -> str:
  """The implementation of attention to the slots' caches, for a computation in `dtype`."""
  cache_dtype = jnp.dtype(rollout.cache_dtype or dtype)
  return attention.resolve(rollout.attention, config, jnp.dtype(dtype), cache_dtype)


def empty(
  config: ModelConfig, queue: Queue, rows: int, dtype: DTypeLike, rollout: RolloutConfig
) -> Slots:
  """Free slots with room for the longest response to the longest prompt.

  Args:
    config: the decoder's shape.
    queue: the responses to come.
    rows: R, number of slots.
    dtype: dtype of the computation.
    rollout: sampling options.
  """
  cache_dtype = jnp.dtype(rollout.cache_dtype or dtype)
  cache_type = attention.cache_type(implementation(config, dtype, rollout))
  positions = queue.tokens.shape[1] + rollout.max_new_tokens
  sizes = [room(layer, positions) for layer in config.layers]
  layers, k, width = len(rollout.feature_layers), rollout.feature_window, config.hidden_size
  zeros = jnp.zeros(rows, jnp.int32)
  return Slots(
    response=zeros + queue.keys.size,
    alive=zeros > 0,
    token=zeros,
    length=zeros,
    drawn=zeros,
    caches=[cache_type.empty(config, rows, size, cache_dtype) for size in sizes],
    window=Window(
      states=jnp.zeros((layers, rows, k, width), dtype),
      at_marker=jnp.zeros((layers, rows, width)),
      has_marker=zeros > 0,
      recent=jnp.full((rows, len(rollout.think_end)), -1),
    ),
  )


def refill(
  slots: Slots, queue: Queue, staged: Staged, following: Int[Array, ""], rollout: RolloutConfig
) -> tuple[Slots, Bool[Array, " R"]]:
  """Moves the next responses of the queue to free slots, as many as there are prompts staged for.

  Args:
    slots: of which some are free.
    queue: all responses.
    staged: prompts, which include that of response `following` if there is one.
    following: number of the next response.
    rollout: sampling options.

  Returns:
    The slots, and which of them have a new response, of whose tokens the first is drawn.
  """
  n = queue.keys.shape[1]
  end = (staged.first + staged.features.shape[1]) * n
  rank = jnp.cumsum(~slots.alive) - 1
  chosen = ~slots.alive & (following + rank < end)
  response = jnp.where(chosen, following + rank, slots.response)
  prompt = jnp.where(chosen, response // n, staged.first)
  first_tokens = staged.drawn[0]
  token = jnp.where(chosen, first_tokens[response - staged.first * n], slots.token)
  drawn = jnp.where(chosen, 1, slots.drawn)
  caches = [
    cache.insert(prompts, prompt - staged.first, chosen)
    for cache, prompts in zip(slots.caches, staged.caches, strict=True)
  ]
  window = slots.window
  starts = chosen & is_fed(token, drawn, queue.limits[prompt], rollout)
  slots = Slots(
    response=response,
    alive=slots.alive | starts,
    token=token,
    length=jnp.where(chosen, queue.lengths[prompt], slots.length),
    drawn=drawn,
    caches=caches,
    window=Window(
      states=jnp.where(chosen[:, None, None], 0, window.states),
      at_marker=jnp.where(chosen[:, None], 0, window.at_marker),
      has_marker=window.has_marker & ~chosen,
      recent=jnp.where(chosen[:, None], -1, window.recent),
    ),
  )
  return slots, chosen


def is_fed(
  token: Int[Array, " R"], drawn: Int[Array, " R"], limit: Int[Array, " R"], rollout: RolloutConfig
) -> Bool[Array, " R"]:
  """Whether a response's newest token is fed: the last one only for features, for its states."""
  return bool(rollout.feature_layers) | ~is_last(token, drawn, limit, rollout)


def is_last(
  token: Int[Array, " R"], drawn: Int[Array, " R"], limit: Int[Array, " R"], rollout: RolloutConfig
) -> Bool[Array, " R"]:
  """Whether a response ends with its newest token, after `drawn` tokens of at most `limit`."""
  return is_eos(token, rollout) | (drawn >= limit)


def compact(slots: Slots, size: int) -> Slots:
  """`size` slots with all responses that are alive, which are at most as many."""
  rows = jnp.argsort(~slots.alive)[:size]
  window = slots.window
  return Slots(
    caches=[cache.take(rows) for cache in slots.caches],
    window=Window(
      states=window.states[:, rows],
      at_marker=window.at_marker[:, rows],
      has_marker=window.has_marker[rows],
      recent=window.recent[rows],
    ),
    **{
      name: getattr(slots, name)[rows] for name in ("response", "alive", "token", "length", "drawn")
    },
  )
