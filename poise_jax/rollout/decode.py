"""Decoding: one step feeds every slot's token and draws its next one. Letters: see queue.py."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from poise_jax.models import ModelConfig
from poise_jax.models import decode_attention as attention
from poise_jax.models.block import Block, scaled
from poise_jax.models.rotary import Table
from poise_jax.rollout.config import RolloutConfig
from poise_jax.rollout.draw import next_tokens
from poise_jax.rollout.queue import Queue
from poise_jax.rollout.results import Results, write
from poise_jax.rollout.slots import Slots, implementation, is_fed, is_last


@flax.struct.dataclass
class DecodeInputs:
  """What every step reads and none changes."""

  params: PyTree[Array]  # in the sampling layout
  queue: Queue
  rotary: list[Table]  # cosines and sines [S, K / 2] of each of config.ropes


@flax.struct.dataclass
class DecodeState:
  """The carry of the decode loop."""

  slots: Slots
  results: Results


def inputs(
  config: ModelConfig, params: PyTree[Array], queue: Queue, rollout: RolloutConfig
) -> DecodeInputs:
  """Gathers what the steps read."""
  # Computed once: inside the loop XLA would compute the cosines in every layer, for every head.
  positions = jnp.arange(queue.tokens.shape[1] + rollout.max_new_tokens)
  tables = [rope.table(config.head_dim, positions) for rope in config.ropes]
  return DecodeInputs(params=params, queue=queue, rotary=tables)


@jax.named_scope("decode_step")
def step(
  state: DecodeState, inputs: DecodeInputs, config: ModelConfig, rollout: RolloutConfig
) -> DecodeState:
  """Feeds the token of each slot that is alive, pools its states and draws the next token.

  A response's last token is fed, too, if there are feature layers, for its states.
  """
  slots, queue = state.slots, inputs.queue
  x, caches, states = _run_layers(slots, inputs, config, rollout)
  keys = queue.keys.reshape(-1)[slots.response]
  drawn = next_tokens(config, inputs.params, x, keys, slots.drawn, rollout)
  limit = queue.limits[slots.response // rollout.n]
  more = slots.alive & ~is_last(slots.token, slots.drawn, limit, rollout)
  results = write(state.results, slots.response, slots.drawn, more, drawn)
  count = slots.drawn + more
  slots = slots.replace(
    alive=more & is_fed(drawn[0], count, limit, rollout),
    token=drawn[0],
    length=slots.length + slots.alive,
    drawn=count,
    caches=caches,
    window=_pool(slots, states, rollout) if states else slots.window,
  )
  results = results.replace(steps=results.steps + 1, rows=results.rows + len(more))
  return DecodeState(slots=slots, results=results)


def _run_layers(slots, inputs, config, rollout):
  """Final states [R, D], all layers' caches, and the states [R, D] of the feature layers."""
  embedding = inputs.params["embed_tokens"]["embedding"]
  name = implementation(config, embedding.dtype, rollout)
  with jax.named_scope("embed"):
    tables = jax.tree.map(lambda x: x[slots.length][:, None], inputs.rotary)  # [R, 1, K / 2]
    x = scaled(config, embedding[slots.token])[:, None]  # [R, 1, D]
  caches, states = [], []
  for i, (layer, spec) in enumerate(zip(inputs.params["layers"], config.layers, strict=True)):

    def attend(q, k, v, i=i, spec=spec):
      rows = (slots.caches[i], slots.length, slots.alive)
      new = (a[:, 0] for a in (q, k, v))
      context, cache = attention.append_and_attend(*new, *rows, name, spec.window)
      return context[:, None], cache

    block = Block(config, embedding.dtype, sampling=True, name="layers")
    x, cache = block.apply({"params": layer}, x, *tables[spec.rope], attend)
    caches.append(cache)
    if i in rollout.feature_layers:
      states.append(x[:, 0])
  return x[:, 0], caches, states


@jax.named_scope("features")
def _pool(slots, states, rollout):
  """The windows with the states of the tokens that were fed."""
  window, k = slots.window, slots.window.states.shape[2]
  here = slots.alive[:, None] & (jnp.arange(k) == ((slots.drawn - 1) % k)[:, None])
  new = jnp.where(here[..., None], jnp.stack(states)[:, :, None], window.states)
  window = window.replace(states=new)
  if not rollout.think_end:
    return window
  recent = jnp.concatenate([window.recent[:, 1:], slots.token[:, None]], axis=1)
  ends = slots.alive & (recent == jnp.array(rollout.think_end)).all(-1)
  total = new.astype(jnp.float32).sum(2)
  return window.replace(
    recent=recent,
    has_marker=window.has_marker | ends,
    at_marker=jnp.where(ends[:, None], total, window.at_marker),
  )
