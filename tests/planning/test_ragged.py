"""Bytes of ragged decoding against a loop over steps and rows, and the shares that to expect."""

import numpy as np
import pytest

from poise_jax.planning import ragged
from poise_jax.planning.ragged import DecodeCost

COST = DecodeCost(weights=1000.0, position=3.0, page=4)


def simulated(prompts, responses, slots, refill):
  """(rows alive, bytes) of each step, one step and one row after another."""
  queue, alive, steps = list(range(len(responses))), {}, []
  while queue or alive:
    if len(alive) == 0 or slots - len(alive) >= refill:
      while queue and len(alive) < slots:
        alive[queue.pop(0)] = 0
    read = COST.weights
    for row in alive:
      alive[row] += 1
      positions = prompts[row] + alive[row]
      while positions % COST.page:
        positions += 1
      read += positions * COST.position
    steps.append((len(alive), read))
    alive = {row: said for row, said in alive.items() if said < responses[row]}
  return np.array(steps)


@pytest.mark.parametrize("slots,refill", [(30, 1), (7, 1), (7, 3), (7, 7), (1, 1)])
def test_slots_and_their_bytes(slots, refill):
  rng = np.random.default_rng(0)
  prompts, responses = rng.integers(1, 9, 30), rng.integers(1, 40, 30)
  found = ragged.in_slots(prompts, responses, COST, slots, refill)
  expected = simulated(prompts, responses, slots, refill)
  np.testing.assert_array_equal(found.busy, expected[:, 0])
  np.testing.assert_allclose(found.bytes, expected[:, 1])
  assert found.busy.sum() == responses.sum()
  if slots == 30:
    all_rows = ragged.resident(prompts, responses, COST)
    np.testing.assert_array_equal(all_rows.bytes, found.bytes)
    assert found.steps == responses.max()


def test_the_least_bytes_by_hand():
  cost = DecodeCost(100.0, 2.0, page=16)
  prompts, responses = np.array([5, 5, 7]), np.array([2, 4, 3])
  own = (1 + 2) + (1 + 2 + 3 + 4) + (1 + 2 + 3)
  shared = 4 * 5 + 3 * 7  # as long as a row of the prompt is alive
  expected = 4 * 100 + 2 * (own + shared)
  assert ragged.least(prompts, responses, np.array([0, 0, 1]), cost) == expected
  exact = DecodeCost(100.0, 2.0)
  assert ragged.resident(prompts, responses, exact).bytes.sum() == expected + 2 * 2 * 5


def test_the_slowest_device_decides():
  busy = np.ones(3, int)
  short = ragged.Decoding(busy[:2], np.array([4.0, 1.0]))
  long = ragged.Decoding(busy, np.array([2.0, 3.0, 5.0]))
  assert ragged.seconds([short, long], bandwidth=2.0) == (2 + 3 + 5) / 2


def test_the_fewer_slots_the_more_rows_are_useful():
  """512 responses of log-normal lengths: lock-step wastes most, and a drain remains."""
  rng = np.random.default_rng(1)
  draws = np.exp(np.log(0.3) - 0.32 + 0.8 * rng.standard_normal(512))
  responses = np.clip(np.ceil(1024 * draws), 1, 1024).astype(int)
  prompts = np.full(512, 20)
  decodings = {s: ragged.in_slots(prompts, responses, COST, s, 1) for s in (512, 128, 64)}
  share = {slots: d.useful(slots) for slots, d in decodings.items()}
  assert 0.2 < share[512] < 0.35 < share[128] < share[64] < 1
  steps = [d.steps for d in decodings.values()]
  assert steps == sorted(steps) and steps[0] == responses.max()
