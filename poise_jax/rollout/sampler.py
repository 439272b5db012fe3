"""The sampler: prefill, decode and pooled features in one jitted program.

Each device has a queue of its own responses and a number of slots in which they decode. When enough
slots are free the next responses move in, their prompts prefilled; a response that ends never waits
for a longer one. What a response says depends on its prompt, its key and its number alone, so
neither the number of slots nor the order changes it. Nothing is sent between devices that split the
batch, and each goes on until its own queue is empty. Only where others split the heads do all take
the same steps, because XLA exchanges data in groups of devices only if all groups do.
"""

import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Key, PyTree

from poise_jax.distributed import sharding
from poise_jax.errors import UserError
from poise_jax.models import ModelConfig, sampling_params
from poise_jax.models.decode_attention import KERNELS
from poise_jax.rollout import decode, queue, results, slots
from poise_jax.rollout.config import RolloutConfig
from poise_jax.rollout.features import check_layers
from poise_jax.types import Prompts, Rollouts

# At the end, once no more than a half of a device's slots are alive, the rest decodes in half as
# many rows, and then in an eighth. Each is another copy of the decode step, so this is done from
# DRAIN_FROM slots on, and only where free slots cost something.
DRAIN = (2, 8)
DRAIN_FROM = 64


def sample(
  config: ModelConfig,
  params: PyTree[Array],
  prompts: Prompts,
  key: Key[Array, "..."],
  rollout: RolloutConfig,
) -> Rollouts:
  """Samples n responses per prompt, with their log-probs, entropies and features, in one pass.

  Args:
    config: the decoder's shape.
    params: parameters in the training layout or, converted once for several calls, in the sampling
      layout of `models.sampling_params`. The computation runs in their dtype.
    prompts: P prompts, padded on the left. On a mesh, P is a multiple of its batch shards.
    key: one key: row r = p * n + i draws its token t with fold_in(fold_in(key, r), t). Or a key per
      prompt, [P]: sample i of prompt p draws with fold_in(fold_in(key[p], i), t), so that its
      tokens do not depend on the rest of the batch.
    rollout: sampling options.

  Raises:
    UserError: a feature layer does not exist, there are no prompts, one has no token, is padded on
      the right or has a token that the model does not know, or `key` is not a typed key of these
      shapes.
  """
  check_layers(config, rollout)
  if not prompts.tokens.size:
    raise UserError(f"no prompts to sample from: tokens have shape {prompts.tokens.shape}")
  _check_key(key, len(prompts.tokens))
  _check_prompts(config, prompts)
  if not rollout.eos_ids:
    warnings.warn(
      f"rollout.eos_ids is empty, so each response has max_new_tokens={rollout.max_new_tokens} "
      "tokens and counts as truncated; pass eos_ids=tuple(tokenizer.eos_ids)",
      stacklevel=2,
    )
  return _sample(config, params, prompts, key, rollout)


def _check_key(key, prompts):
  typed = jax.dtypes.issubdtype(getattr(key, "dtype", np.int32), jax.dtypes.prng_key)
  if not typed:
    raise UserError(
      f"key must be a typed key, as jax.random.key(seed), got {np.asarray(key).dtype} of shape "
      f"{np.shape(key)}; jax.random.wrap_key_data(key) makes one of a jax.random.PRNGKey"
    )
  if key.shape not in ((), (prompts,)):
    raise UserError(f"key must be one key, or one for each of {prompts} prompts, got {key.shape}")


def _check_prompts(config, prompts):
  """Raises UserError for prompts that are empty or do not end at the last position and for tokens
  that the model does not know, which would be read as others, if they can be read here."""
  arrays = (prompts.tokens, prompts.mask)
  if any(isinstance(x, jax.core.Tracer) or not _is_here(x) for x in arrays):
    return
  tokens, mask = (np.asarray(x) for x in arrays)
  padded = np.flatnonzero((np.diff(mask.astype(np.int8), axis=1) < 0).any(1))
  if len(padded):
    raise UserError(
      f"prompts are padded on the left, so that all end at the last position, but prompt "
      f"{padded[0]} has padding after a token; move its tokens and mask to the right"
    )
  empty = np.flatnonzero(~mask.astype(bool).any(1))
  if len(empty):
    raise UserError(
      f"prompt {empty[0]} has no token, but a response's first token follows from the prompt's "
      "last one; leave the prompt out, or begin it with a token such as tokenizer.bos_ids"
    )
  unknown = np.argwhere(mask.astype(bool) & ((tokens < 0) | (tokens >= config.vocab_size)))
  if len(unknown):
    p, position = unknown[0]
    raise UserError(
      f"prompt {p} has the token {tokens[p, position]}, but the model has {config.vocab_size} "
      "tokens, from 0 on; is the tokenizer that of the model?"
    )


def _is_here(x):
  return getattr(x, "is_fully_addressable", True)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _sample(config, params, prompts, key, rollout):
  if not isinstance(params["layers"], list):
    params = sampling_params(config, params, params["norm"]["scale"].dtype)
  keys = _keys(key, len(prompts.tokens), rollout.n)
  mesh = jax.sharding.get_abstract_mesh()
  shards = 1 if mesh.empty else sharding.batch_shards(mesh)
  rows = slots.count(rollout.slots, keys.size, shards)
  in_step = not mesh.empty and mesh.shape["tensor"] > 1
  run = functools.partial(_run, config, rollout=rollout, rows=rows, in_step=in_step)
  if not mesh.empty:
    batch = PartitionSpec(sharding.BATCH)
    run = jax.shard_map(
      run,
      in_specs=(PartitionSpec(), batch, batch),
      out_specs=batch,
      axis_names=frozenset(sharding.BATCH),
      check_vma=False,
    )
  return Rollouts(prompts=prompts, **run(params, prompts, keys))


def _run(config, params, prompts, keys, *, rollout, rows, in_step) -> dict[str, Array]:
  """The fields of Rollouts for the prompts of one device, decoded in that many rows; with
  `in_step` all devices leave and repeat loops together."""
  responses = queue.make(prompts, keys, rollout)
  inputs = decode.inputs(config, params, responses, rollout)
  n, total = rollout.n, keys.size
  dtype = params["norm"]["scale"].dtype
  free_is_free = slots.implementation(config, dtype, rollout) in KERNELS
  drains = not free_is_free and rows >= DRAIN_FROM
  floors = [*(rows // k for k in DRAIN if drains), 0]
  step = functools.partial(decode.step, inputs=inputs, config=config, rollout=rollout)
  size = queue.batch(*prompts.tokens.shape, n, rows)
  stage = functools.partial(queue.stage, config, params, responses, size=size, rollout=rollout)

  def refill(state, staged, following):
    buffers = results.keep_windows(state.results, state.slots)
    buffers = results.keep_prompts(buffers, staged)
    filled, chosen = slots.refill(state.slots, responses, staged, following, rollout)
    buffers = results.begin(buffers, filled.response, chosen)
    drawn = tuple(x[filled.response - staged.first * n] for x in staged.drawn)
    buffers = results.write(buffers, filled.response, jnp.zeros_like(filled.drawn), chosen, drawn)
    return decode.DecodeState(filled, buffers), following + chosen.sum(dtype=jnp.int32)

  def anywhere(condition):
    return jax.lax.pmax(condition.astype(jnp.int32), sharding.BATCH) > 0 if in_step else condition

  def decode_while_busy(state, least, following=total):
    """Steps until it is time for a refill or, without a queue, `least` slots are alive."""
    waiting = following < total

    def go_on(state):
      alive = state.slots.alive.sum()
      due = anywhere(waiting & (alive <= rows - slots.idle(rows)))
      return ~due & anywhere(alive > jnp.where(waiting, 0, least))

    return jax.lax.while_loop(go_on, step, state)

  def refill_and_decode(carry):
    state, staged, following = carry
    used_up = following >= (staged.first + staged.features.shape[1]) * n
    staged = jax.lax.cond(anywhere(used_up), lambda: stage(following // n), lambda: staged)
    state, following = refill(state, staged, following)
    return decode_while_busy(state, floors[0], following), staged, following

  state = decode.DecodeState(
    slots=slots.empty(config, responses, rows, dtype, rollout),
    results=results.empty(config, responses, rollout),
  )
  if rows == total:  # every response has a slot at once
    state, _ = refill(state, stage(jnp.int32(0)), jnp.int32(0))
    state = decode_while_busy(state, floors[0])
  else:
    shapes = jax.eval_shape(stage, jnp.int32(0))
    staged = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    staged = staged.replace(first=jnp.int32(-staged.features.shape[1]))  # all used up
    carry = (state, staged, jnp.int32(0))
    state, _, _ = jax.lax.while_loop(lambda c: anywhere(c[2] < total), refill_and_decode, carry)
  for size, floor in itertools.pairwise(floors):
    state = state.replace(results=results.keep_windows(state.results, state.slots))
    state = decode_while_busy(state.replace(slots=slots.compact(state.slots, size)), floor)
  state = state.replace(results=results.keep_windows(state.results, state.slots))
  return results.fields(state.results, n, rollout)


def _keys(key, prompts, n) -> Key[Array, "P n"]:
  """A key per response, from one key or a key per prompt; see `sample`."""
  if key.ndim:
    key, number = jnp.repeat(key, n), jnp.tile(jnp.arange(n), prompts)
  else:
    key, number = jnp.broadcast_to(key, (prompts * n,)), jnp.arange(prompts * n)
  return jax.vmap(jax.random.fold_in)(key, number).reshape(prompts, n)
