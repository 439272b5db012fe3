"""From groups to micro-batches. No other module knows how a batch is divided.

A row is one prompt and m responses to it: the whole group (m = n) where it fits into a device's
part of a micro-batch, otherwise an equal part of the group. Letters: P prompts, n samples a prompt,
R rows, m responses a row, B = R m sequences, T response and Tp prompt positions.
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
  """R rows, with the fields that a loss reads beside the tokens."""

  prompts: Prompts  # [R, Tp]
  tokens: Int[Array, "R m T"]
  mask: Bool[Array, "R m T"]  # the responses' tokens
  fields: dict[str, Shaped[Array, "R m _"]]  # [R, m, T], or [R, m, 1]: one value a response

  @property
  def rows(self) -> Rows:
    """The sequences of a teacher-forced pass [R, Tp + m T]: each prompt, then its responses."""

    def side_by_side(prompt, responses):
      return jnp.concatenate([prompt, responses.reshape(len(responses), -1)], axis=1)

    return Rows(
      side_by_side(self.prompts.tokens, self.tokens),
      side_by_side(self.prompts.mask, self.mask),
      prompt=self.prompts.tokens.shape[1],
      responses=self.tokens.shape[1],
    )

  def before_tokens(self, states: Shaped[Array, "B L ..."]) -> Shaped[Array, "B T ..."]:
    """The states of a pass over `rows`, [R m, Tp + T, ...], that predict the responses' tokens."""
    length = self.tokens.shape[2]
    return states[:, -length - 1 : -1]  # the state before a token predicts it

  def with_fields(self, **fields: Shaped[Array, "R m _"]) -> "Batch":
    """The same rows with more fields."""
    return self.replace(fields={**self.fields, **fields})


def flat(x: Shaped[Array, "R m T"]) -> Shaped[Array, "B T"]:
  """[R, m, T] -> [R m, T], the shape that losses take."""
  return x.reshape(-1, x.shape[-1])


def responses_per_row(n: int, microbatch_size: int, mesh: Mesh | AbstractMesh | None = None) -> int:
  """m, the responses a row with which a device's part of a micro-batch consists of whole rows.

  Args:
    n: samples a prompt.
    microbatch_size: sequences in a micro-batch, over all devices.
    mesh: the devices. None: the mesh in use.
  """
  mesh = mesh or jax.sharding.get_abstract_mesh()
  return math.gcd(n, microbatch_size // (1 if mesh.empty else batch_shards(mesh)))


@functools.partial(jax.jit, static_argnames="responses")
def form(rollouts: Rollouts, responses: int, fields: dict[str, Shaped[Array, "P n _"]]) -> Batch:
  """Groups -> R = P n / m rows, in order.

  Args:
    rollouts: P groups.
    responses: m.
    fields: values of tokens [P, n, T] or of responses [P, n, 1].

  Raises:
    ValueError: m does not divide n.
  """
  n = rollouts.tokens.shape[1]
  if n % responses:
    raise ValueError(f"the responses in a row must divide n={n}, got {responses}")

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
    step: (state, mini-batch) -> (state, metrics); may donate the state.
    state: state before the first optimizer step.
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
  """[R, ...] -> [R / rows, rows, ...]; each device holds its part of every micro-batch."""
  split = jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), batch)
  return jax.tree.map(lambda x: constrain(x, None, "batch", *[None] * (x.ndim - 2)), split)


def map_microbatches(
  function: Callable[[Tree], Shaped[Array, "B ..."]], batch: Tree, rows: int
) -> Shaped[Array, "N ..."]:
  """Applies a function to one micro-batch of `rows` rows after another.

  Args:
    function: micro-batch -> [B, ...].
    batch: arrays whose leading axis is rows.
    rows: rows a micro-batch.

  Returns:
    The results [N, ...] in order, N for all micro-batches.
  """
  parts = jax.lax.map(function, microbatches(batch, rows))
  return parts.reshape(-1, *parts.shape[2:])


def accumulate(
  loss_fn: Callable[[PyTree[Array], Tree], tuple[Float[Array, ""], PyTree[Array]]],
  params: PyTree[Array],
  batch: Tree,
  rows: int,
) -> tuple[PyTree[Array], PyTree[Array]]:
  """Sums gradients and metrics over the micro-batches of a mini-batch.

  Args:
    loss_fn: (params, micro-batch) -> (loss, metrics).
    params: point at which gradients are taken.
    batch: arrays whose leading axis is rows.
    rows: rows a micro-batch.

  Returns:
    The gradient of the summed loss, and the summed metrics.
  """
  parts = microbatches(batch, rows)
  gradient = jax.grad(loss_fn, has_aux=True)
  first = jax.tree.map(lambda x: x[0], parts)
  if len(jax.tree.leaves(parts)[0]) == 1:
    return gradient(params, first)

  def add(total, micro):
    return jax.tree.map(jnp.add, total, gradient(params, micro)), None

  # Starts from zeros: starting from the first micro-batch would compile its gradient twice.
  shapes = jax.eval_shape(gradient, params, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(add, zeros, parts)[0]
