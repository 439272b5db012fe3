"""Any number of slots gives the rollouts of an oracle, which computes every prefix from scratch."""

import dataclasses
import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import models, rollout
from poise_jax.rollout import RolloutConfig
from poise_jax.rollout.busy import busy_rows
from poise_jax.rollout.draw import draw
from poise_jax.types import Prompts

CONFIG = models.ModelConfig("qwen3", 90, 32, 48, 2, 4, 2, 8, qk_norm=True, rope_theta=1e4)
P, N, T = 6, 4, 20
BASE = RolloutConfig(
  n=N,
  max_new_tokens=T,
  temperature=0.8,
  eos_ids=(1, 2, 3, 4),
  pad_id=3,
  feature_layers=(0, 1),
  feature_window=4,
)
PLAIN = dict(feature_layers=())
PROMPTS = Prompts(
  tokens=jax.random.randint(jax.random.key(1), (P, 7), 5, 90),
  mask=jnp.arange(7) >= jnp.array([2, 0, 6, 1, 0, 4])[:, None],
)
KEY = jax.random.key(2)
FIELDS = ("tokens", "mask", "truncated")
FLOATS = ("logprobs", "entropies", "features")


@pytest.fixture(scope="module")
def params():
  """Kernels large enough for tokens to differ in their probabilities."""
  return jax.tree.map(lambda x: 2 * x, models.init(CONFIG, jax.random.key(0)))


def sample(params, prompts=PROMPTS, key=KEY, **changes):
  return rollout.sample(CONFIG, params, prompts, key, dataclasses.replace(BASE, **changes))


def oracle(params, limits=(T,) * P, **changes):
  """Tokens and log-probs by passes over all that was said so far, in lock-step."""
  options, rows = dataclasses.replace(BASE, **changes), P * N
  prompts = np.repeat(np.asarray(PROMPTS.tokens), N, axis=0)
  valid = np.repeat(np.asarray(PROMPTS.mask), N, axis=0)
  limits = np.repeat(limits, N)
  tokens, mask = np.full((rows, T), BASE.pad_id), np.zeros((rows, T), bool)
  logprobs = np.zeros((rows, T), np.float32)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(rows))

  @jax.jit
  def following(tokens, mask, t):
    logits = models.forward(CONFIG, params, tokens, mask).logits
    logits = jax.lax.dynamic_index_in_dim(logits, t + prompts.shape[1] - 1, 1, keepdims=False)
    return draw(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, t), options)

  alive = np.ones(rows, bool)
  for t in range(T):
    text = (np.concatenate([a, b], axis=1) for a, b in ((prompts, tokens), (valid, mask)))
    token, logprob, _ = following(*text, t)
    alive &= t < limits
    tokens[alive, t], logprobs[alive, t], mask[alive, t] = token[alive], logprob[alive], True
    alive &= ~np.isin(token, BASE.eos_ids)
  return [x.reshape(P, N, T) for x in (tokens, mask, logprobs)]


def assert_same(actual, expected, atol=1e-4):
  for name in FIELDS:
    np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))
  for name in FLOATS:
    np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), atol=atol)


@pytest.mark.parametrize("changes", [{}, PLAIN], ids=["features", "plain"])
@pytest.mark.parametrize(
  "slots", [0, *(pytest.param(count, marks=pytest.mark.slow) for count in (P * N // 4, 1)), 7]
)
def test_slots_give_the_oracles_rollouts(params, slots, changes):
  tokens, mask, logprobs = oracle(params, **changes)
  assert 0.3 < mask.mean() < 0.9 and mask.sum(-1).min() < 4 and mask.sum(-1).max() == T
  out = sample(params, slots=slots, **changes)
  np.testing.assert_array_equal(out.tokens, tokens)
  np.testing.assert_array_equal(out.mask, mask)
  np.testing.assert_allclose(out.logprobs, logprobs, atol=1e-4)
  if not changes:
    forced = rollout.features_of(CONFIG, params, out, BASE)
    np.testing.assert_allclose(out.features, forced, atol=1e-4)


@pytest.mark.parametrize(
  "changes",
  [
    dict(think_end=(17,), top_k=12),
    dict(prefill_chunk=3, cache_dtype="bfloat16"),
    pytest.param(dict(temperature=0.0), marks=pytest.mark.slow),
  ],
  ids=["markers", "chunks and bfloat16 caches", "greedy"],
)
def test_slots_change_nothing(params, changes):
  expected = sample(params, **changes)
  for slots in (5, 1):
    assert_same(sample(params, slots=slots, **changes), expected)


def test_slots_change_int8_caches_by_rounding_only(params):
  """A number between two steps of int8 is rounded either way, by other orders of a sum."""
  params = jax.tree.map(lambda x: x / 2, params)
  expected = sample(params, cache_dtype="int8")
  assert_same(sample(params, cache_dtype="int8", slots=5), expected, atol=2e-3)


@pytest.mark.parametrize("slots", [pytest.param(0, marks=pytest.mark.slow), 5])
def test_a_row_has_a_limit_of_its_own(params, slots):
  limits = np.array([T, 1, 3, 30, 2, 11])  # one is above the config's
  prompts = PROMPTS.replace(max_tokens=jnp.asarray(limits))
  for changes in ({}, PLAIN):
    tokens, mask, logprobs = oracle(params, np.minimum(limits, T), **changes)
    out = sample(params, prompts, slots=slots, **changes)
    np.testing.assert_array_equal(out.tokens, tokens)
    np.testing.assert_array_equal(out.mask, mask)
    np.testing.assert_allclose(out.logprobs, logprobs, atol=1e-4)
    ended = np.isin(tokens, BASE.eos_ids) & mask
    np.testing.assert_array_equal(out.truncated, ~ended.any(-1))
    assert out.truncated[1].any() and not out.truncated.all()


def test_a_row_per_response_is_drained_in_fewer_rows(params, monkeypatch):
  """24 responses, of which 12 go on in 12 rows, and then the 4 of one prompt in 4: the same
  rollouts."""
  prompts = PROMPTS.replace(max_tokens=jnp.array([T, 1, 3, 3, 2, 4]))
  expected = sample(params, prompts)
  monkeypatch.setattr(rollout.sampler, "DRAIN", (2, 6))
  monkeypatch.setattr(rollout.sampler, "DRAIN_FROM", 12)
  jax.clear_caches()
  out = sample(params, prompts)
  jax.clear_caches()
  assert_same(out, expected)
  fed = np.asarray(out.mask.sum(-1))
  alive = [(fed > t).sum() for t in range(fed.max())]
  rows = sum(24 if a > 12 else 12 if a > 4 else 4 for a in alive)
  np.testing.assert_allclose(out.decode_rows.sum(), rows)


def test_what_is_left_of_a_queue_is_drained_in_fewer_rows(params, monkeypatch):
  """Slots for half of the responses, refilled; the last ones go on in 6 rows, and then in 2."""
  expected = sample(params)
  monkeypatch.setattr(rollout.sampler, "DRAIN", (2, 6))
  monkeypatch.setattr(rollout.sampler, "DRAIN_FROM", 12)
  jax.clear_caches()
  out = sample(params, slots=12)
  monkeypatch.setattr(rollout.sampler, "DRAIN_FROM", 13)
  jax.clear_caches()
  whole = sample(params, slots=12)
  jax.clear_caches()
  assert_same(out, expected)
  assert out.decode_rows.sum() < whole.decode_rows.sum()


def test_prompts_are_prefilled_in_small_batches_while_others_wait(params, monkeypatch):
  """At most 14 positions at once are two of the prompts, where 12 slots would take three."""
  expected, widths = sample(params), []
  prefill = rollout.queue.prefill

  def noted(config, params, tokens, *rest):
    widths.append(tokens.shape)
    return prefill(config, params, tokens, *rest)

  monkeypatch.setattr(rollout.queue, "prefill", noted)
  monkeypatch.setattr(rollout.queue, "POSITIONS", 14)
  jax.clear_caches()
  out = sample(params, slots=12)
  jax.clear_caches()
  assert set(widths) == {(2, 7)}
  assert_same(out, expected)


@pytest.mark.parametrize(
  "prompts, width, n, rows, expected",
  [
    (64, 4096, 2, 128, 64),  # a slot for each: all at once
    (64, 4096, 2, 32, 4),
    (64, 128, 2, 32, 16),  # as many as the slots take
    (64, 20_000, 2, 32, 1),
    (64, 128, 8, 1, 1),
  ],
)
def test_how_many_prompts_are_prefilled_at_once(prompts, width, n, rows, expected):
  assert rollout.queue.batch(prompts, width, n, rows) == expected


def test_rows_are_counted(params):
  """All at once: as many steps as the longest response has; one slot wastes no row."""
  out = sample(params, **PLAIN)
  lengths = np.asarray(out.mask.sum(-1))
  assert out.decode_rows.shape == (P, N)
  np.testing.assert_allclose(out.decode_rows.sum(), (lengths.max() - 1) * P * N)
  one = sample(params, slots=1, **PLAIN)
  np.testing.assert_allclose(one.decode_rows.sum(), (lengths - 1).sum(), rtol=1e-5)
  few = sample(params, slots=6, **PLAIN)
  assert (lengths - 1).sum() < few.decode_rows.sum() < 0.8 * out.decode_rows.sum()


def list_schedule(lengths, slots):
  """Decode steps before each response starts, if the next one takes the first slot that is free."""
  free, starts = [0] * slots, []
  for length in lengths:
    starts.append(heapq.heappop(free))
    heapq.heappush(free, starts[-1] + length - 1)
  return starts


@pytest.mark.parametrize("slots", [0, 6, 1])
def test_busy_rows_are_those_that_drew_a_token(params, slots):
  out = sample(params, slots=slots, **PLAIN)
  busy, lengths, rows = busy_rows(out), np.asarray(out.mask.sum(-1)).ravel(), slots or P * N
  assert busy.sum() == (lengths - 1).sum()
  # Every step computed that many rows, and the last one still drew a token.
  np.testing.assert_allclose(len(busy) * rows, out.decode_rows.sum(), rtol=1e-6)
  starts = list_schedule(lengths, rows)
  np.testing.assert_array_equal(out.decode_starts.ravel(), starts)
  assert (busy[: max(starts)] == rows).all()  # while responses wait, no slot is free
  spans, t = np.stack([starts, starts + lengths - 1]), np.arange(len(busy))[:, None]
  np.testing.assert_array_equal(busy, ((spans[0] <= t) & (t < spans[1])).sum(1))


def test_responses_of_one_token_keep_no_row_busy(params):
  out = sample(params, PROMPTS.replace(max_tokens=jnp.ones(P, jnp.int32)), slots=6, **PLAIN)
  assert busy_rows(out).shape == (0,)


def test_caches_are_as_large_as_slots(params):
  """The compiled program's memory for 4 slots, beside that for 24."""

  def temporary(slots):
    options = dataclasses.replace(BASE, slots=slots, max_new_tokens=1000, **PLAIN)
    weights = jax.eval_shape(lambda: models.sampling_params(CONFIG, params))
    program = jax.jit(rollout.sample, static_argnums=(0, 4))
    program = program.lower(CONFIG, weights, PROMPTS, KEY, options).compile()
    return program.memory_analysis().temp_size_in_bytes

  cache = 2 * 2 * 2 * 8 * 1000 * 4  # of one row: layers, keys and values, heads, head_dim
  assert temporary(0) - temporary(4) > 0.9 * 20 * cache


def test_prompts_are_prefilled_once(params, monkeypatch):
  """Prompts are staged in groups that fill the slots; as few prefills as there are groups."""
  prefilled = []
  monkeypatch.setattr(
    rollout.queue,
    "prefill",
    lambda config, params, tokens, lengths, options, real=rollout.queue.prefill: (
      jax.debug.callback(lambda x: prefilled.extend(x.tolist()), tokens[:, 0]),
      real(config, params, tokens, lengths, options),
    )[1],
  )
  jax.clear_caches()
  sample(params, slots=8)  # 2 prompts at once
  jax.effects_barrier()
  jax.clear_caches()
  first = np.asarray(PROMPTS.tokens)[np.arange(P), np.asarray(PROMPTS.mask).argmax(1)]
  assert sorted(prefilled) == sorted(first.tolist())


def test_negative_slots_are_refused():
  with pytest.raises(ValueError, match="rollout.slots must not be negative, got -1; 0 decodes all"):
    dataclasses.replace(BASE, slots=-1)
