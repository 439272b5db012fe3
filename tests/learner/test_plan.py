"""Plans: every sequence once, within its row; few shapes; few positions that hold nothing."""

import itertools

import numpy as np
import pytest

from poise_jax.learner import plan as lib
from poise_jax.learner.plan import Lengths

MODERN = dict(prompts=(40, 250), limits=(256, 8192), mean=0.3, sigma=0.8)


def lognormal(count, samples=2, seed=0, prompts=(3, 20), limits=(20, 300), mean=0.3, sigma=0.8):
  """Responses of log-normal lengths with this mean share of the limit, cut at the limit."""
  rng = np.random.default_rng(seed)
  drawn = np.exp(np.log(mean * limits[1]) - sigma**2 / 2 + sigma * rng.standard_normal(count))
  responses = np.clip(np.ceil(drawn), 1, limits[1]).astype(int)
  before = np.repeat(rng.integers(*prompts, count // samples), samples)
  return Lengths(before, responses, np.arange(count) // samples, limits)


def occupied(lengths, plan):
  """{(pass, row, column): sequence} of a plan's tokens; fails where two share a position."""
  found = {}
  for number, micro in enumerate(plan.micro_batches):
    for i in np.flatnonzero(micro.row >= 0):
      first = micro.start[i] + 1 - lengths.prompts[i]
      end = micro.start[i] + 1 + lengths.responses[i]
      assert first >= 0 and end <= micro.width and micro.row[i] < micro.rows
      for column in range(first, end):
        assert found.setdefault((number, micro.row[i], column), i) == i
  return found


CASES = {
  "ragged": lognormal(32),
  "of one length": lognormal(32, sigma=0.0),
  "at the limit": lognormal(16, mean=9.0),
  "long prompts": lognormal(32, 8, prompts=(150, 200), limits=(200, 40)),
  "a prompt": lognormal(1, 1),
  "some left out": lognormal(32),
}
CASES["some left out"].responses[[0, 1, 7, 20]] = 0  # not the longest


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size,shards", [(1, 1), (8, 1), (8, 4), (32, 8)])
def test_every_sequence_has_a_place_of_its_own(monkeypatch, name, size, shards):
  monkeypatch.setattr(lib, "LEAST_POSITIONS", 16)
  lengths = CASES[name]
  plan = lib.plan(lengths, size, shards)
  found = occupied(lengths, plan)
  present = lengths.responses > 0
  assert len(found) == (lengths.prompts + lengths.responses)[present].sum()
  placed = np.stack([micro.row >= 0 for micro in plan.micro_batches]).sum(0)
  np.testing.assert_array_equal(placed, present)
  assert plan.tokens <= plan.positions
  budget = size // shards * sum(lengths.limits)
  for micro in plan.micro_batches:
    assert micro.rows % (shards * micro.responses) == 0  # devices have equal shares
    assert micro.positions <= budget * shards


@pytest.mark.parametrize("name", CASES)
def test_a_plan_never_has_more_positions_than_sequences_at_the_limit(name):
  lengths = CASES[name]
  assert lib.plan(lengths, 8, 1).positions <= -(-len(lengths) // 8) * 8 * sum(lengths.limits)


@pytest.mark.parametrize(
  "size,shards,useful", [(64, 1, 0.9), (16, 1, 0.9), (4, 1, 0.9), (16, 16, 0.75), (32, 16, 0.75)]
)
def test_most_positions_hold_a_token(size, shards, useful):
  """Lengths of reasoning; mini-batches of 64. Padded to the limit, 29 % do."""
  everything = lognormal(40 * 64, **MODERN)
  parts = [everything.part(i, i + 64) for i in range(0, len(everything), 64)]
  plans = [lib.plan(part, size, shards) for part in parts]
  tokens = sum(plan.tokens for plan in plans)
  assert tokens == sum((part.prompts + part.responses).sum() for part in parts)
  positions = sum(plan.positions for plan in plans)
  assert tokens / positions >= useful
  shapes = {(m.rows, m.width, m.prompt, m.responses) for p in plans for m in p.micro_batches}
  assert len(shapes) <= 4


def test_micro_batches_are_cut_down_to_a_row_and_then_narrowed():
  assert lib.part_shapes(64, 8448) == [(64, 8448), (16, 8448), (4, 8448), (1, 8448)]
  assert lib.part_shapes(2, 8448) == [(2, 8448), (1, 8448), (1, 4224)]
  assert lib.part_shapes(1, 8448) == [(1, 8448), (1, 4224), (1, 2112)]
  assert lib.part_shapes(128, 26) == [(128, 26), (32, 26)]  # 8 rows would be 208 positions
  assert lib.part_shapes(4, 11) == [(4, 11)]


def test_rows_are_as_wide_as_the_longest_sequence_of_the_batch_needs():
  for longest, width in ((None, 528), (6000, 6336), (8000, 8448)):
    short = lognormal(64, mean=0.02, sigma=0.3, prompts=(40, 250), limits=(256, 8192))
    responses = short.responses.copy()
    responses[5] = longest or responses[5]
    batch = Lengths(short.prompts, responses, short.groups, short.limits)
    for part in (batch, batch.part(32, 64)):  # mini-batches have the same programs
      assert {m.width for m in lib.plan(part, 16, 1).micro_batches} == {width}


def test_short_sequences_have_rows_of_several_at_the_limit():
  """17 of 26 tokens fit into a row of 26 once, into one of 104 six times."""
  lengths = Lengths(np.full(128, 9), np.full(128, 8), np.arange(128) // 2, (10, 16))
  plan = lib.packed(lengths, 128 * 26, 1)
  assert {m.width for m in plan.micro_batches} == {104}
  assert plan.tokens / plan.positions > 0.85
  # All that fits, and a divisor of what fits: 3 of 6, as 4 would leave 2 unused.
  assert {m.width for m in lib.packed(lengths, 2 * 26, 1).micro_batches} == {52}
  assert {m.width for m in lib.packed(lengths, 6 * 26, 1).micro_batches} == {78}


def tokens_a_group(prompt, response, n, size=16, shards=1, sigma=0.0):
  """Positions a group of 8 groups with one length of prompts, relative to prompt + n responses."""
  groups = 8
  rng = np.random.default_rng(0)
  responses = np.minimum(response * np.exp(sigma * rng.standard_normal(groups * n)), response)
  lengths = Lengths(
    np.full(groups * n, prompt),
    np.ceil(responses).astype(int),
    np.arange(groups * n) // n,
    (prompt, response),
  )
  plan = lib.plan(lengths, size, shards)
  return plan, plan.positions / (groups * prompt + lengths.responses.sum())


@pytest.mark.parametrize(
  "prompt,response,n,size",
  [
    (2048, 256, 8, 64),
    (2048, 256, 8, 16),
    (2048, 256, 8, 2),
    (1000, 100, 16, 32),
    (600, 600, 4, 8),
  ],
)
def test_long_prompts_are_shared(prompt, response, n, size):
  plan, ratio = tokens_a_group(prompt, response, n, size)
  assert all(micro.responses == n for micro in plan.micro_batches)
  assert ratio <= 1.15


def test_a_prompt_is_shared_as_far_as_memory_allows():
  """One sequence at the limit holds no second response, two hold all eight."""
  assert {m.responses for m in tokens_a_group(2048, 256, 8, 1)[0].micro_batches} == {1}
  assert {m.responses for m in tokens_a_group(2048, 256, 8, 2)[0].micro_batches} == {8}
  # Eight prompts on 16 devices: two devices have a half of the responses each.
  assert {m.responses for m in tokens_a_group(2048, 256, 8, 32, 16)[0].micro_batches} == {4}


def test_prompts_are_copied_where_sharing_would_pad_responses():
  plan, _ = tokens_a_group(50, 4000, 8, 16, sigma=1.0)
  assert {m.responses for m in plan.micro_batches} == {1}
  assert plan.tokens / plan.positions > 0.9
  shared = lib.shared(lognormal(64, 8, **MODERN), 16 * 8448, 1)
  assert shared.tokens / shared.positions < 0.5


def test_a_mini_batch_without_tokens_has_one_pass_over_a_row():
  lengths = lognormal(64, **MODERN)
  lengths.responses[:] = 0
  (micro,) = lib.plan(lengths, 16, 1).micro_batches
  assert micro.rows == 1 and (micro.row < 0).all()


def test_the_longest_possible_sequences_always_have_a_plan():
  for count, size, shards in itertools.product((4, 12), (4, 8), (1, 2, 4)):
    lengths = lognormal(count, 1, mean=50.0, prompts=(20, 21))
    plan = lib.packed(lengths, size // shards * 320, shards)
    assert occupied(lengths, plan)
    assert plan.tokens <= plan.positions
