"""Groups become rows and micro-batches in order, and a prompt is stored once a row.

That an update and a critic's values do not depend on the rows is in test_update.py and in
estimators/test_critic.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax.distributed.sharding import make_mesh
from poise_jax.learner import batching
from poise_jax.types import Prompts, Rollouts, TrainState

P, N, TP, T = 3, 4, 2, 5


@pytest.fixture(scope="module")
def rollouts():
  """Token i of the batch is i; the prompt of group p is [100 + p, 200 + p]."""
  tokens = jnp.arange(P * N * T, dtype=jnp.int32).reshape(P, N, T)
  prompts = Prompts(
    jnp.array([100, 200]) + jnp.arange(P)[:, None], jnp.arange(TP) >= jnp.arange(P)[:, None] % 2
  )
  values = tokens.astype(jnp.float32)
  return Rollouts(
    prompts=prompts,
    tokens=tokens,
    mask=tokens % 7 > 0,
    logprobs=values,
    entropies=values,
    truncated=jnp.zeros((P, N), bool),
    features=jnp.zeros((P, N, 0)),
  )


@pytest.mark.parametrize("m", [1, 2, 4])
def test_rows_hold_the_groups_in_order(rollouts, m):
  fields = {"advantages": jnp.arange(P * N, dtype=jnp.float32).reshape(P, N, 1)}
  batch = batching.form(rollouts, m, fields)
  rows = P * N // m
  assert batch.prompts.tokens.shape == batch.prompts.mask.shape == (rows, TP)
  np.testing.assert_array_equal(
    batch.prompts.tokens, np.repeat(rollouts.prompts.tokens, N // m, axis=0)
  )
  for ours, groups in ((batch.tokens, rollouts.tokens), (batch.mask, rollouts.mask)):
    assert ours.shape == (rows, m, T)
    np.testing.assert_array_equal(batching.flat(ours), groups.reshape(-1, T))
  assert batch.fields["advantages"].shape == (rows, m, 1)
  np.testing.assert_array_equal(batching.flat(batch.fields["advantages"])[:, 0], np.arange(P * N))


@pytest.mark.parametrize("m", [1, 2, 4])
def test_a_pass_over_rows_sees_each_response_after_its_prompt(rollouts, m):
  batch = batching.form(rollouts, m, {})
  rows = batch.rows
  assert rows.tokens.shape == (P * N // m, TP + m * T)
  sequences = rows.split(rows.tokens)
  prompts = np.repeat(rollouts.prompts.tokens, N, axis=0)
  np.testing.assert_array_equal(sequences[:, :TP], prompts)
  np.testing.assert_array_equal(sequences[:, TP:], rollouts.tokens.reshape(-1, T))
  before = batch.before_tokens(sequences)  # tokens in the place of states
  np.testing.assert_array_equal(before[:, 0], prompts[:, -1])
  np.testing.assert_array_equal(before[:, 1:], rollouts.tokens.reshape(-1, T)[:, :-1])


@pytest.mark.parametrize("m", [3, 5, 8])
def test_a_row_must_divide_its_group(rollouts, m):
  with pytest.raises(ValueError, match=f"must divide n=4, got {m}"):
    batching.form(rollouts, m, {})


@pytest.mark.parametrize(
  "n,microbatch_size,devices,expected",
  [
    (4, 8, 1, 4),
    (4, 2, 1, 2),
    (6, 4, 1, 2),
    (3, 4, 1, 1),
    (1, 8, 1, 1),
    (4, 8, 4, 2),
    (8, 8, 8, 1),
  ],
)
def test_responses_per_row(n, microbatch_size, devices, expected):
  """The largest part of a group of which a device's part of a micro-batch is a multiple."""
  mesh = make_mesh(devices=devices)  # abstract: no devices needed
  assert batching.responses_per_row(n, microbatch_size, mesh) == expected


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_micro_batches_keep_the_order_and_the_sum(rollouts, rows):
  batch = batching.form(rollouts, 2, {})
  mapped = batching.map_microbatches(lambda micro: batching.flat(micro.tokens), batch, rows)
  np.testing.assert_array_equal(mapped, rollouts.tokens.reshape(-1, T))

  def loss_fn(weight, micro):
    values = weight * batching.flat(micro.tokens * 1.0)
    return (values**2).sum(), {"tokens": micro.mask.sum()}

  grads, metrics = batching.accumulate(loss_fn, jnp.float32(0.5), batch, rows)
  np.testing.assert_allclose(grads, (np.arange(P * N * T) ** 2).sum(), rtol=1e-6)
  assert metrics["tokens"] == rollouts.mask.sum()


def test_mini_batches_are_taken_in_order_up_to_the_count(rollouts):
  batch = batching.form(rollouts, 4, {})

  def step(state, mini):
    return state.replace(step=state.step + 1), {"first": mini.tokens[0, 0, 0] * 1.0}

  start = TrainState(jnp.int32(0), {}, (), jnp.int32(0), jnp.int32(0))
  state, history = batching.over_minibatches(step, start, batch, 1, 2)
  assert state.step == 2
  assert [metrics["first"] for metrics in history] == [0, N * T]  # the third is left out


def test_fields_are_added_to_those_of_the_batch(rollouts):
  batch = batching.form(rollouts, 4, {"a": rollouts.logprobs})
  both = batch.with_fields(b=batch.fields["a"] + 1)
  assert set(batch.fields) == {"a"} and set(both.fields) == {"a", "b"}
  assert jax.tree.structure(both.replace(fields={})) == jax.tree.structure(batch.replace(fields={}))
