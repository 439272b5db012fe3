"""The parts in which a long axis is computed, to save memory."""


def chunk_size(length: int, most: int) -> int:
  """The size of the fewest equal parts of at most `most`, of which the last may need padding.

  Parts of `most` would be nearly all padding where the length is a little above a multiple of it.
  """
  return -(-length // -(-length // most))
