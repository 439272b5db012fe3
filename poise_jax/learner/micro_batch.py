"""Where the sequences of a mini-batch stand in the rows of one teacher-forced pass.

A row holds several sequences one after the other, which attention keeps apart (segments), or one
prompt with the responses that share it (models/rows.py). Letters: B sequences of a mini-batch, R
rows of W positions, T response and Tp prompt positions.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from poise_jax.distributed.sharding import constrain
from poise_jax.models import Rows


@flax.struct.dataclass
class MicroBatch:
  """A table of positions; each value of its static fields is one program."""

  row: Int[Array, " B"]  # a sequence's row; -1: it is in another micro-batch
  start: Int[Array, " B"]  # column of the last token of its prompt, which predicts its response
  rows: int = flax.struct.field(pytree_node=False)  # R, over all devices
  width: int = flax.struct.field(pytree_node=False)  # W
  # Columns of a prompt that `responses` neighbouring rows share; 0: rows share nothing.
  prompt: int = flax.struct.field(pytree_node=False, default=0)
  responses: int = flax.struct.field(pytree_node=False, default=1)

  @property
  def positions(self) -> int:
    """Positions of the pass, over all devices; those of a shared prompt count once."""
    return self.rows * (self.width - self.prompt) + self.rows // self.responses * self.prompt

  @property
  def inside(self) -> Bool[Array, "B 1"]:
    """Which sequences are in this micro-batch."""
    return self.row[:, None] >= 0

  @property
  def _first(self):
    """The first column that predicts a token of a response."""
    return max(self.prompt - 1, 0)

  def lay_out(
    self,
    tokens: tuple[Int[Array, "B Tp"], Int[Array, "B T"]],
    mask: tuple[Bool[Array, "B Tp"], Bool[Array, "B T"]],
  ) -> Rows:
    """The rows of the pass.

    Args:
      tokens: prompts, padded on the left, and responses, padded on the right.
      mask: False on padding.
    """
    before, after = tokens[0].shape[1], tokens[1].shape[1]
    tokens, mask = (
      constrain(jnp.concatenate(sides, axis=1), None, None) for sides in (tokens, mask)
    )
    mask &= self.inside
    numbers = jnp.arange(1, len(mask) + 1)[:, None] if self.responses == 1 else 1

    def written(x):
      # A prompt's padding may reach over the left edge of a row, a response's over the right one.
      wide = jax.ShapeDtypeStruct((self.rows, before + self.width + after), jnp.int32)
      read = lambda rows: _windows(rows, self.row, self.start + 1, x.shape[1])  # noqa: E731
      (rows,) = jax.linear_transpose(read, wide)(jnp.where(mask, x, 0).astype(jnp.int32))
      return constrain(rows[:, before : before + self.width], "batch", None)

    segments = written(jnp.broadcast_to(numbers, mask.shape))
    if self.responses > 1:
      segments = segments > 0
    rows = Rows(written(tokens), segments, self.prompt, self.responses)
    return rows.replace(tokens=rows.merge(rows.tokens), segments=rows.merge(segments))

  def before_tokens(self, states: Shaped[Array, "R W ..."]) -> Shaped[Array, "R S ..."]:
    """Of a pass's states those that may predict a token of a response."""
    return states[:, self._first :]

  def targets(self, rows: Rows) -> Int[Array, "R S"]:
    """The tokens after the positions of `before_tokens`; 0 after the last one."""
    tokens = rows.split(rows.tokens)
    return jnp.pad(tokens[:, self._first + 1 :], ((0, 0), (0, 1)))

  def read(self, values: Shaped[Array, "R S"], length: int) -> Shaped[Array, "B {length}"]:
    """Values at the positions of `before_tokens` -> one for each token of a response.

    0 for the sequences of other micro-batches, and arbitrary after a response's end.
    """
    values = constrain(jnp.pad(values, ((0, 0), (0, length))), None, None)
    values = _windows(values, self.row, self.start - self._first, length)
    return constrain(jnp.where(self.inside, values, 0), "batch", None)


def _windows(rows, row, column, length):
  """`length` values of a row from a column on, one window a sequence: [R, W] -> [B, length].

  Windows, because devices move single elements slowly.
  """
  window = lambda r, c: jax.lax.dynamic_slice(rows, (r, c), (1, length))[0]  # noqa: E731
  return jax.vmap(window)(jnp.maximum(row, 0), column)
