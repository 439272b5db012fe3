"""The order in which training examples are used."""

from grain import MapDataset


def example_order(size: int, seed: int) -> MapDataset:
  """The endless order of training examples: element i is the index of the i-th example.

  Every epoch of `size` elements is another permutation. Access is random, so a checkpoint needs
  only a position.
  """
  return MapDataset.range(size).seed(seed).shuffle().repeat()
