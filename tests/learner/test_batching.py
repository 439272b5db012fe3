"""Sequences stand in the rows of a pass, and values of its positions come back to their tokens.

That an update and a critic's values do not depend on the passes is in test_update.py and in
estimators/test_critic.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax.learner import batching
from poise_jax.learner import plan as planning
from poise_jax.types import Prompts, Rollouts, TrainState

P, N, TP, T = 3, 4, 3, 5
LENGTHS = np.array([[5, 1, 3, 2], [0, 4, 4, 5], [2, 2, 1, 3]])  # one response has no token


@pytest.fixture(scope="module")
def rollouts():
  """Token t of sequence b is 100 b + t + 1; the tokens of prompt p are -10 p - 1, -10 p - 2, ..."""
  tokens = 100 * jnp.arange(P * N).reshape(P, N, 1) + jnp.arange(1, T + 1)
  before = jnp.arange(TP) >= jnp.array([0, 2, 1])[:, None]
  prompts = Prompts(-10 * jnp.arange(P)[:, None] - jnp.arange(1, TP + 1), before)
  values = tokens.astype(jnp.float32)
  return Rollouts(
    prompts=prompts,
    tokens=tokens,
    mask=jnp.arange(T) < LENGTHS[..., None],
    logprobs=values,
    entropies=values,
    truncated=jnp.zeros((P, N), bool),
    features=jnp.zeros((P, N, 0)),
  )


def passes(rollouts, kind):
  """The whole batch as one mini-batch, with packed rows or with shared prompts."""
  batch = batching.form(rollouts, {})
  lengths = batching.lengths(batch)
  made = getattr(planning, kind)(lengths, 6 * (TP + T), 1)
  return batching.Minibatch(batch, made)


def test_a_batch_holds_the_sequences_in_order(rollouts):
  fields = {"advantages": jnp.arange(P * N, dtype=jnp.float32).reshape(P, N, 1)}
  batch = batching.form(rollouts, fields)
  np.testing.assert_array_equal(batch.tokens, rollouts.tokens.reshape(-1, T))
  np.testing.assert_array_equal(batch.mask, rollouts.mask.reshape(-1, T))
  np.testing.assert_array_equal(batch.group, np.repeat(np.arange(P), N))
  assert batch.prompts.tokens.shape == (P, TP)  # no copy for each sample
  np.testing.assert_array_equal(batch.fields["advantages"][:, 0], np.arange(P * N))


@pytest.mark.parametrize("kind", ["packed", "shared"])
def test_a_pass_holds_each_response_behind_its_prompt(rollouts, kind):
  batch, made = passes(rollouts, kind)
  found = {}
  for micro in made.micro_batches:
    rows = batch.rows(micro)
    assert rows.tokens.size == micro.positions  # a shared prompt counts once
    tokens, segments = np.asarray(rows.split(rows.tokens)), np.asarray(rows.split(rows.segments))
    positions = np.asarray(rows.split(rows.positions))
    assert not tokens[segments == 0].any()
    for row in range(micro.rows):
      for number in np.unique(segments[row][segments[row] > 0]):
        where = segments[row] == number
        sequence = tokens[row][where].tolist()
        np.testing.assert_array_equal(positions[row][where], np.arange(len(sequence)))
        if sequence[-1] > 0:  # the slot of an empty response has the prompt alone
          found[(sequence[-1] - 1) // 100] = sequence
  mask = np.asarray(rollouts.mask).reshape(-1, T)
  for b in range(P * N):
    p = b // N
    prompt = np.asarray(rollouts.prompts.tokens)[p][np.asarray(rollouts.prompts.mask)[p]]
    response = np.asarray(rollouts.tokens).reshape(-1, T)[b][mask[b]]
    assert found.pop(b, []) == ([*prompt, *response] if len(response) else [])
  assert not found


@pytest.mark.parametrize("kind", ["packed", "shared"])
def test_values_come_back_to_the_tokens_that_they_belong_to(rollouts, kind):
  """A position's value is its own token, and its target the next one."""
  batch, made = passes(rollouts, kind)

  def values(batch, micro, shifted):
    rows = batch.rows(micro)
    read = micro.before_tokens(rows.split(rows.tokens)) if shifted else micro.targets(rows)
    return micro.read(read * 1.0, T)

  part = batching.Minibatch(batch, made)
  (targets,) = batching.map_microbatches(functools.partial(values, shifted=False), [part])
  (before,) = batching.map_microbatches(functools.partial(values, shifted=True), [part])
  mask = np.asarray(batch.mask)
  np.testing.assert_array_equal(np.asarray(targets)[mask], np.asarray(batch.tokens)[mask])
  last = np.asarray(batch.prompts.tokens)[batch.group, -1:]
  expected = np.concatenate([last, np.asarray(batch.tokens)[:, :-1]], axis=1)
  np.testing.assert_array_equal(np.asarray(before)[mask], expected[mask])


@pytest.mark.parametrize("kind", ["packed", "shared"])
def test_cotangents_go_to_the_positions_that_were_read(rollouts, kind):
  batch, made = passes(rollouts, kind)
  micro = made.micro_batches[0]
  columns = micro.width - max(micro.prompt - 1, 0)
  x = jnp.arange(micro.rows * columns, dtype=jnp.float32).reshape(micro.rows, columns)
  mask = batch.mask & micro.inside
  read, pull = jax.vjp(lambda x: jnp.where(mask, micro.read(x, T), 0), x)
  (back,) = pull(read)
  positions = np.zeros(x.size)
  taken = np.asarray(read)[np.asarray(mask)].astype(int)
  assert len(set(taken)) == len(taken) == int(mask.sum())
  positions[taken] = taken
  np.testing.assert_array_equal(np.asarray(back).ravel(), positions)


@pytest.mark.parametrize("size", [1, 2, 4, 12])
def test_sums_over_micro_batches_are_sums_over_sequences(rollouts, size):
  parts = batching.minibatches(batching.form(rollouts, {}), P * N, size)

  def gradient(total, weight, batch, micro):
    mask = batch.mask & micro.inside

    def loss(weight):
      values = weight * micro.read(micro.targets(batch.rows(micro)) * 1.0, T)
      return jnp.where(mask, values**2, 0.0).sum()

    return total + jax.grad(loss)(weight), {"tokens": mask.sum()}

  grads, metrics = batching.accumulate(gradient, jnp.float32(0.5), parts[0])
  mask = np.asarray(rollouts.mask)
  np.testing.assert_allclose(grads, (np.asarray(rollouts.tokens)[mask] ** 2.0).sum(), rtol=1e-6)
  assert metrics["tokens"] == LENGTHS.sum()


def test_mini_batches_are_taken_in_order_up_to_the_count(rollouts):
  parts = batching.minibatches(batching.form(rollouts, {}), 4, 4, count=2)

  def step(state, part):
    return state.replace(step=state.step + 1), {"first": part.batch.tokens[0, 0] * 1.0}

  start = TrainState(jnp.int32(0), {}, (), jnp.int32(0), jnp.int32(0))
  state, history = batching.over_minibatches(step, start, parts, epochs=1)
  assert state.step == 2
  assert [metrics["first"] for metrics in history] == [1, 401]  # the third is left out
  state, history = batching.over_minibatches(step, start, parts, epochs=2)
  assert state.step == 4
  assert [metrics["first"] for metrics in history] == [1, 401, 1, 401]
  assert len(batching.minibatches(batching.form(rollouts, {}), 5, 4)) == 1  # not a multiple


def test_useful_positions_are_the_share_that_holds_a_token(rollouts):
  parts = batching.minibatches(batching.form(rollouts, {}), 4, 4)
  prompts = np.asarray(rollouts.prompts.mask).sum(1)
  positions, tokens = 0, 0
  for p, part in enumerate(parts):
    for micro in part.plan.micro_batches:
      segments = np.asarray(part.batch.rows(micro).segments)
      positions, tokens = positions + segments.size, tokens + (segments > 0).sum()
      assert (segments > 0).sum() >= prompts[p]
  assert batching.useful_positions(parts) == pytest.approx(tokens / positions)


def test_traced_batches_have_the_lengths_of_the_limits(rollouts):
  found = []

  def trace(rollouts):
    found.append(batching.lengths(batching.form(rollouts, {})))
    return rollouts.mask

  jax.eval_shape(trace, rollouts)
  assert (found[0].prompts == TP).all() and (found[0].responses == T).all()
  np.testing.assert_array_equal(found[0].groups, np.repeat(np.arange(P), N))


def test_fields_are_added_to_those_of_the_batch(rollouts):
  batch = batching.form(rollouts, {"a": rollouts.logprobs})
  both = batch.with_fields(b=batch.fields["a"] + 1)
  assert set(batch.fields) == {"a"} and set(both.fields) == {"a", "b"}
