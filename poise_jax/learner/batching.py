"""From groups to mini-batches and their passes. No other module knows how a batch is divided.

Letters: P prompts, n samples a prompt, B sequences, T response and Tp prompt positions.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from poise_jax.distributed.sharding import batch_shards, fetch
from poise_jax.learner.micro_batch import MicroBatch
from poise_jax.learner.plan import Lengths, Plan, plan
from poise_jax.models import Rows
from poise_jax.types import Prompts, Rollouts, TrainState


@flax.struct.dataclass
class Batch:
  """B sequences, with the fields that a loss reads beside the tokens."""

  prompts: Prompts  # [P, Tp]
  group: Int[Array, " B"]  # number of a sequence's prompt
  tokens: Int[Array, "B T"]
  mask: Bool[Array, "B T"]  # the responses' tokens, which come before all padding
  fields: dict[str, Shaped[Array, "B _"]]  # [B, T], or [B, 1]: one value a response

  def rows(self, micro: MicroBatch) -> Rows:
    """The rows of a teacher-forced pass over the sequences of a micro-batch."""
    prompts = jax.tree.map(lambda x: x[self.group], self.prompts)
    return micro.lay_out((prompts.tokens, self.tokens), (prompts.mask, self.mask))

  def with_fields(self, **fields: Shaped[Array, "B _"]) -> "Batch":
    """The same sequences with more fields."""
    return self.replace(fields={**self.fields, **fields})


class Minibatch(NamedTuple):
  """The sequences of an optimizer step, and the passes in which they are computed."""

  batch: Batch
  plan: Plan

  def with_fields(self, **fields: Shaped[Array, "B _"]) -> "Minibatch":
    """The same mini-batch with more fields."""
    return self._replace(batch=self.batch.with_fields(**fields))


def flat(x: Shaped[Array, "P n T"]) -> Shaped[Array, "B T"]:
  """[P, n, T] -> [P n, T], the shape that losses take."""
  return x.reshape(-1, x.shape[-1])


@jax.jit
def form(rollouts: Rollouts, fields: dict[str, Shaped[Array, "P n _"]]) -> Batch:
  """Groups -> B = P n sequences, in order.

  Args:
    rollouts: P groups.
    fields: values of tokens [P, n, T] or of responses [P, n, 1].
  """
  p, n, _ = rollouts.tokens.shape
  group = jnp.repeat(jnp.arange(p), n)
  tokens, mask = flat(rollouts.tokens), flat(rollouts.mask)
  return Batch(rollouts.prompts, group, tokens, mask, jax.tree.map(flat, fields))


def lengths(batch: Batch) -> Lengths:
  """Lengths of the sequences, on the host; all processes must call this.

  Where a batch has no values, because a program is only traced, all sequences have the limit.
  """
  limits = batch.prompts.tokens.shape[1], batch.tokens.shape[1]
  if isinstance(batch.mask, jax.core.Tracer):
    sizes = [np.full(len(batch.mask), limit) for limit in limits]
    return Lengths(*sizes, np.arange(len(batch.mask)) // _samples(batch), limits)
  return Lengths(*(np.asarray(x) for x in fetch(_lengths(batch))), limits)


def _samples(batch):
  """Samples a prompt; traced batches have whole groups."""
  return len(batch.tokens) // len(batch.prompts.tokens)


@jax.jit
def _lengths(batch):
  # A prompt without a token has one position, whose state predicts the response.
  prompts = jnp.maximum(batch.prompts.mask.sum(1), 1)[batch.group]
  return prompts, batch.mask.sum(1), batch.group


def minibatches(
  batch: Batch, size: int, microbatch_size: int, count: int | None = None
) -> list[Minibatch]:
  """The first `count` mini-batches of `size` sequences, in order, with their plans.

  Args:
    batch: the sequences.
    size: sequences a mini-batch. A batch that is not a multiple of it is one mini-batch.
    microbatch_size: see `plan.plan`.
    count: number of mini-batches; None: all.
  """
  size = size if len(batch.tokens) % size == 0 else len(batch.tokens)
  count = len(batch.tokens) // size if count is None else count
  mesh = jax.sharding.get_abstract_mesh()
  shards = 1 if mesh.empty else batch_shards(mesh)
  everything = lengths(batch)
  parts = []
  for index in range(count):
    part = everything.part(index * size, (index + 1) * size)
    made = plan(part, max(microbatch_size, shards), shards)
    # Explicitly, as the loop allows no other transfers.
    tables = jax.device_put([(m.row, m.start) for m in made.micro_batches])
    passes = [
      m.replace(row=row, start=start)
      for m, (row, start) in zip(made.micro_batches, tables, strict=True)
    ]
    parts.append(Minibatch(_part(batch, index, size), made._replace(micro_batches=passes)))
  return parts


@functools.partial(jax.jit, static_argnames=("index", "size"))
def _part(batch, index, size):
  """Sequences [index * size, (index + 1) * size), with all prompts."""
  part = jax.tree.map(lambda x: x[index * size : (index + 1) * size], batch.replace(prompts=None))
  return part.replace(prompts=batch.prompts)


def useful_positions(parts: list[Minibatch]) -> float:
  """Share of the positions of the passes of mini-batches that hold a token."""
  tokens, positions = (
    sum(getattr(part.plan, name) for part in parts) for name in ("tokens", "positions")
  )
  return tokens / max(positions, 1)


def over_minibatches(
  step: Callable[[TrainState, Minibatch], tuple[TrainState, dict[str, Float[Array, ""]]]],
  state: TrainState,
  parts: list[Minibatch],
  epochs: int,
) -> tuple[TrainState, list[dict[str, Float[Array, ""]]]]:
  """Takes an optimizer step on each mini-batch, in order, `epochs` times.

  All epochs have the same mini-batches in the same order, as in verl and TRL. So each keeps its
  plan and the values that were computed before the first epoch, and a step needs no random order
  that a resumed run would have to draw again.

  Args:
    step: (state, mini-batch) -> (state, metrics); may donate the state.
    state: state before the first optimizer step.
    parts: mini-batches.
    epochs: passes over them.

  Returns:
    The state after the last optimizer step, and the metrics of each optimizer step.
  """
  history = []
  for part in parts * epochs:
    state, metrics = step(state, part)
    history.append(metrics)
  return state, history


def map_microbatches(
  function: Callable[[Batch, MicroBatch], Float[Array, "B T"]], parts: list[Minibatch]
) -> list[Float[Array, "B T"]]:
  """One value for each token of the responses, computed a micro-batch after the other.

  Args:
    function: (mini-batch, micro-batch) -> values, 0 for sequences that are not in it, as
      `MicroBatch.read` gives them; jitted.
    parts: mini-batches.

  Returns:
    Each mini-batch's values.
  """
  results = []
  for batch, passes in parts:
    tokens = batch.replace(fields={})  # so that passes of all kinds are one program
    values = [function(tokens, micro) for micro in passes.micro_batches]
    results.append(functools.reduce(_add, values))
  return results


def accumulate(
  gradient: Callable[..., tuple[PyTree[Array], PyTree[Array]]],
  params: PyTree[Array],
  part: Minibatch,
) -> tuple[PyTree[Array], PyTree[Array]]:
  """Sums gradients and metrics over the micro-batches of a mini-batch.

  Args:
    gradient: (total, params, mini-batch, micro-batch) -> (total plus the gradient of the
      micro-batch's part of the loss, its metrics); jitted, may donate the total.
    params: point at which gradients are taken.
    part: the mini-batch.

  Returns:
    The gradient of the summed loss, and the summed metrics.
  """
  total, metrics = _zeros(params), []
  for micro in part.plan.micro_batches:
    total, sums = gradient(total, params, part.batch, micro)
    metrics.append(sums)
  return total, functools.reduce(_add, metrics)


def _zeros(params):
  """Zeros with the shapes and shardings of the parameters."""
  leaves, structure = jax.tree.flatten(params)
  if isinstance(leaves[0], jax.core.Tracer):
    return jax.tree.map(jnp.zeros_like, params)
  make = _zeros_program(tuple((x.shape, x.dtype, x.sharding) for x in leaves))
  return jax.tree.unflatten(structure, make())


@functools.cache
def _zeros_program(arrays):
  # Zeros do not depend on params, and without their shardings XLA would replicate them.
  shardings = [sharding for _, _, sharding in arrays]
  return jax.jit(lambda: [jnp.zeros(*x[:2]) for x in arrays], out_shardings=shardings)


@jax.jit
def _add(a, b):
  return jax.tree.map(jnp.add, a, b)
