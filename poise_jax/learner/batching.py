"""From groups to micro-batches. This is the only module that knows how a batch is cut up.

A batch keeps a prompt once for the responses that share it. Letters: P prompts, n samples a prompt,
R rows, m responses in a row, T response and Tp prompt positions. A row is a whole group (m = n)
where that fits into a device's part of a micro-batch, otherwise an equal part of a group.
"""

import functools
import math
from collections.abc import Callable
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from poise_jax.distributed.sharding import batch_shards, constrain
from poise_jax.models import Rows
from poise_jax.types import Prompts, Rollouts, TrainState

Tree = TypeVar("Tree", bound=PyTree[Array])


@flax.struct.dataclass
class Batch:
  """Rows of one prompt and m responses to it, with what the loss needs beside the tokens."""

  prompts: Prompts  # [R, Tp]
  tokens: Int[Array, "R m T"]
  mask: Bool[Array, "R m T"]  # the responses' tokens
  fields: dict[str, Shaped[Array, "R m _"]]  # a number a token, or a response as [R, m, 1]

  @property
  def rows(self) -> Rows:
    """The tokens as a teacher-forced pass reads them."""

    def side_by_side(prompt, responses):
      return jnp.concatenate([prompt, responses.reshape(len(responses), -1)], axis=1)

    return Rows(
      side_by_side(self.prompts.tokens, self.tokens),
      side_by_side(self.prompts.mask, self.mask),
      prompt=self.prompts.tokens.shape[1],
      responses=self.tokens.shape[1],
    )

  def before_tokens(self, states: Shaped[Array, "B L ..."]) -> Shaped[Array, "B T ..."]:
    """The states [R m, T, ...] that predict the responses' tokens, of a pass over `rows`."""
    length = self.tokens.shape[2]
    return states[:, -length - 1 : -1]  # the state before a token predicts it

  def with_fields(self, **fields: Shaped[Array, "R m _"]) -> "Batch":
    """The same rows with more fields."""
    return self.replace(fields={**self.fields, **fields})


def flat(x: Shaped[Array, "R m T"]) -> Shaped[Array, "B T"]:
  """[R, m, T] -> [R m, T]: one row a response, as losses take them."""
  return x.reshape(-1, x.shape[-1])


def responses_per_row(n: int, microbatch_size: int, mesh: Mesh | AbstractMesh | None = None) -> int:
  """m, how many of a prompt's n responses share a row, so that a device's part of a micro-batch
  consists of whole rows.

  Args:
    n: samples a prompt.
    microbatch_size: responses in a micro-batch, over all devices.
    mesh: the devices; None: the mesh in use.
  """
  mesh = mesh or jax.sharding.get_abstract_mesh()
  return math.gcd(n, microbatch_size // (1 if mesh.empty else batch_shards(mesh)))


@functools.partial(jax.jit, static_argnames="responses")
def form(rollouts: Rollouts, responses: int, fields: dict[str, Shaped[Array, "P n _"]]) -> Batch:
  """Groups [P, n, ...] -> P n / m rows of m = `responses`, in order.

  Raises:
    ValueError: `responses` does not divide n.
  """
  n = rollouts.tokens.shape[1]
  if n % responses:
    raise ValueError(f"rows of {responses} responses do not divide groups of n={n}")

  def rows(x):
    return x.reshape(-1, responses, *x.shape[2:])

  prompts = jax.tree.map(lambda x: jnp.repeat(x, n // responses, axis=0), rollouts.prompts)
  return Batch(prompts, rows(rollouts.tokens), rows(rollouts.mask), jax.tree.map(rows, fields))


@functools.partial(jax.jit, static_argnames=("index", "rows"))
def minibatch(batch: Tree, index: int, rows: int) -> Tree:
  """Mini-batch `index` of `rows` rows."""
  return jax.tree.map(lambda x: x[index * rows : (index + 1) * rows], batch)


def over_minibatches(
  step: Callable[[TrainState, Tree], tuple[TrainState, dict[str, Float[Array, ""]]]],
  state: TrainState,
  batch: Tree,
  rows: int,
  count: int,
) -> tuple[TrainState, list[dict[str, Float[Array, ""]]]]:
  """Takes an optimizer step on each of the first `count` mini-batches of `rows` rows, in order.

  Args:
    step: (state, which it may donate, and a mini-batch) -> (state, metrics).
    state: before the first optimizer step.
    batch: arrays whose leading axis is rows.
    rows: rows a mini-batch.
    count: number of mini-batches.

  Returns:
    The state after the last optimizer step, and each mini-batch's metrics.
  """
  history = []
  for index in range(count):
    state, metrics = step(state, minibatch(batch, index, rows))
    history.append(metrics)
  return state, history


def microbatches(batch: Tree, rows: int) -> Tree:
  """[R, ...] -> [R / rows, rows, ...], each device its part of every micro-batch."""
  split = jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), batch)
  return jax.tree.map(lambda x: constrain(x, None, "batch", *[None] * (x.ndim - 2)), split)


def map_microbatches(
  function: Callable[[Tree], Shaped[Array, "B ..."]], batch: Tree, rows: int
) -> Shaped[Array, "N ..."]:
  """function(micro-batch) -> [B, ...] of one micro-batch of `rows` rows after another, joined to
  [N, ...]."""
  parts = jax.lax.map(function, microbatches(batch, rows))
  return parts.reshape(-1, *parts.shape[2:])


def accumulate(
  loss_fn: Callable[[PyTree[Array], Tree], tuple[Float[Array, ""], PyTree[Array]]],
  params: PyTree[Array],
  batch: Tree,
  rows: int,
) -> tuple[PyTree[Array], PyTree[Array]]:
  """Gradients and metrics of loss_fn(params, micro-batch) -> (loss, metrics), summed over all
  micro-batches of `rows` rows."""
  parts = microbatches(batch, rows)
  gradient = jax.grad(loss_fn, has_aux=True)
  first = jax.tree.map(lambda x: x[0], parts)
  if len(jax.tree.leaves(parts)[0]) == 1:
    return gradient(params, first)

  def add(total, micro):
    return jax.tree.map(jnp.add, total, gradient(params, micro)), None

  # From zero, not from the first micro-batch: its gradient would be compiled a second time.
  shapes = jax.eval_shape(gradient, params, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(add, zeros, parts)[0]
