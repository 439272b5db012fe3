"""Bytes of ragged decoding against a loop over steps and rows, and the shares that to expect."""

import numpy as np
import pytest

from poise_jax.planning import ragged
from poise_jax.planning.ragged import DecodeCost

COST = DecodeCost(weights=1000.0, position={0: 3.0}, page=4)
WINDOWS = DecodeCost(weights=1000.0, position={0: 1.0, 10: 2.5, 16: 0.5}, page=4)


def simulated(prompts, responses, cost, slots, refill):
  """(rows alive, bytes) of each step, one step and one row after another."""
  queue, alive, steps = list(range(len(responses))), {}, []
  while queue or alive:
    if len(alive) == 0 or slots - len(alive) >= refill:
      while queue and len(alive) < slots:
        alive[queue.pop(0)] = 0
    read = cost.weights
    for row in alive:
      alive[row] += 1
      for window, size in cost.position.items():
        positions = prompts[row] + alive[row]
        while window and positions > window:
          positions -= 1
        while positions % cost.page:
          positions += 1
        read += positions * size
    steps.append((len(alive), read))
    alive = {row: said for row, said in alive.items() if said < responses[row]}
  return np.array(steps)


@pytest.mark.parametrize("cost", [COST, WINDOWS], ids=["full", "windows"])
@pytest.mark.parametrize("slots,refill", [(30, 1), (7, 1), (7, 3), (7, 7), (1, 1)])
def test_slots_and_their_bytes(slots, refill, cost):
  rng = np.random.default_rng(0)
  prompts, responses = rng.integers(1, 9, 30), rng.integers(1, 40, 30)
  found = ragged.in_slots(prompts, responses, cost, slots, refill)
  expected = simulated(prompts, responses, cost, slots, refill)
  np.testing.assert_array_equal(found.busy, expected[:, 0])
  np.testing.assert_allclose(found.bytes, expected[:, 1])
  assert found.busy.sum() == responses.sum()
  if slots == 30:
    all_rows = ragged.resident(prompts, responses, cost)
    np.testing.assert_array_equal(all_rows.bytes, found.bytes)
    assert found.steps == responses.max()


def test_the_least_bytes_by_hand():
  cost = DecodeCost(100.0, {0: 2.0}, page=16)
  prompts, responses = np.array([5, 5, 7]), np.array([2, 4, 3])
  own = (1 + 2) + (1 + 2 + 3 + 4) + (1 + 2 + 3)
  shared = 4 * 5 + 3 * 7  # as long as a row of the prompt is alive
  expected = 4 * 100 + 2 * (own + shared)
  assert ragged.least(prompts, responses, np.array([0, 0, 1]), cost) == expected
  exact = DecodeCost(100.0, {0: 2.0})
  assert ragged.resident(prompts, responses, exact).bytes.sum() == expected + 2 * 2 * 5


def test_a_window_bounds_what_a_row_reads_by_hand():
  """A prompt of 2 and a response of 4 with a window of 3: from the second token on it slides."""
  cost = DecodeCost(0.0, {3: 10.0})
  row = np.array([2]), np.array([4])
  assert ragged.resident(*row, cost).bytes.tolist() == [30, 30, 30, 30]  # 3, then 3 of 4, 5, 6
  full = DecodeCost(0.0, {0: 10.0})
  assert ragged.resident(*row, full).bytes.tolist() == [30, 40, 50, 60]
  # Own tokens 1, 2, 3, 3; of the prompt 2, 1, 0, 0.
  assert ragged.least(*row, np.array([0]), cost) == 10 * (1 + 2 + 3 + 3 + 2 + 1)


@pytest.mark.parametrize("window", [1, 5, 8, 9, 13, 40, 100])
def test_the_least_bytes_of_a_window_one_token_after_another(window):
  rng = np.random.default_rng(window)
  prompts, responses = rng.integers(0, 12, 9), rng.integers(0, 30, 9)
  groups = np.arange(9) // 3
  prompts = prompts[groups * 3]  # rows of a group have the same prompt
  own, shared = 0, np.zeros(3)
  for prompt, response, group in zip(prompts, responses, groups, strict=True):
    seen = [range(max(0, prompt + t - window), prompt + t) for t in range(1, response + 1)]
    own += sum(sum(key >= prompt for key in keys) for keys in seen)
    shared[group] = max(shared[group], sum(sum(key < prompt for key in keys) for keys in seen))
  cost = DecodeCost(7.0, {window: 3.0})
  expected = 7 * responses.max() + 3 * (own + shared.sum())
  assert ragged.least(prompts, responses, groups, cost) == expected


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
