"""The order of training examples: epochs, and resuming at a position."""

import itertools

from poise_jax.data.order import example_order


def elements(order, position, count):
  return [int(order[position + i]) for i in range(count)]


def test_every_epoch_is_another_permutation():
  order = example_order(10, seed=3)
  epochs = [elements(order, 10 * i, 10) for i in range(5)]
  assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
  assert all(a != b for a, b in itertools.combinations(epochs, 2))
  assert elements(example_order(10, seed=4), 0, 10) != epochs[0]


def test_a_new_order_continues_at_any_position():
  order = elements(example_order(10, seed=3), 0, 40)
  for position in (0, 4, 10, 17, 33):  # most of these batches of 7 cross an epoch boundary
    assert elements(example_order(10, seed=3), position, 7) == order[position : position + 7]
