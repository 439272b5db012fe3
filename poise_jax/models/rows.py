"""Rows of a teacher-forced pass, in which no position is computed twice.

A row holds sequences one after the other, told apart by their segments, or a prompt followed by
the responses that share it. Matrix products and norms work on single positions, and a prompt's
positions attend to the prompt only, so their states are the same for all of its responses.
Attention alone needs each response after its prompt. Letters: R rows, S positions in a row, m
responses in a row, Tp prompt and T response positions; S = Tp + m T where a prompt is shared.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


@flax.struct.dataclass
class Rows:
  """Tokens of R rows. By default a row is one sequence without a shared prompt."""

  tokens: Int[Array, "R S"]
  # False on padding, on either side of a sequence; or a number for each sequence, 0 on padding
  segments: Bool[Array, "R S"] | Int[Array, "R S"]
  prompt: int = flax.struct.field(pytree_node=False, default=0)  # Tp
  responses: int = flax.struct.field(pytree_node=False, default=1)  # m

  @property
  def positions(self) -> Int[Array, "R S"]:
    """Positions within each sequence, counted from 0 at its first token."""
    return self.merge(positions_of(self.split(self.segments)))

  def split(self, x: Shaped[Array, "R S ..."]) -> Shaped[Array, "B L ..."]:
    """[R, Tp + m T, ...] -> [R m, Tp + T, ...]: a row per response, each after its prompt."""
    if self.responses == 1:
      return x
    prompts = jnp.repeat(x[:, : self.prompt], self.responses, axis=0)
    responses = x[:, self.prompt :].reshape(len(prompts), -1, *x.shape[2:])
    return jnp.concatenate([prompts, responses], axis=1)

  def merge(self, x: Shaped[Array, "B L ..."]) -> Shaped[Array, "R S ..."]:
    """The inverse of `split`."""
    if self.responses == 1:
      return x
    groups = x.reshape(-1, self.responses, *x.shape[1:])
    responses = groups[:, :, self.prompt :]
    responses = responses.reshape(len(responses), -1, *responses.shape[3:])
    return jnp.concatenate([groups[:, 0, : self.prompt], responses], axis=1)


def positions_of(segments: Shaped[Array, "*rows T"]) -> Int[Array, "*rows T"]:
  """Positions counted from 0 at the first one of each run of equal segments, int32."""
  index = jnp.arange(segments.shape[-1], dtype=jnp.int32)
  before = jnp.pad(segments[..., :-1], [(0, 0)] * (segments.ndim - 1) + [(1, 0)])
  starts = jnp.where(segments != before, index, 0)
  return index - jax.lax.cummax(starts, axis=segments.ndim - 1)
