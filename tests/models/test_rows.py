"""Responses that share a prompt, and sequences that share a row, have the states and gradients of
sequences of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import models
from poise_jax.models import Rows

CONFIG = models.ModelConfig(
  *("qwen3", 40, 32, 48, 2, 4, 2, 8),
  qk_norm=True,
  rope_theta=1e5,
  layer_types=("sliding_attention", "full_attention"),
  sliding_window=3,
)
PROMPTS, SAMPLES, TP, T = 3, 2, 5, 4


@pytest.fixture(scope="module")
def sequences():
  """Tokens and mask [6, 9]; prompts are padded on the left and responses end early."""
  rng = np.random.default_rng(0)
  prompts = np.repeat(rng.integers(0, 40, (PROMPTS, TP)), SAMPLES, axis=0)
  before = np.repeat(np.arange(TP) >= np.array([[0], [3], [4]]), SAMPLES, axis=0)
  responses = rng.integers(0, 40, (PROMPTS * SAMPLES, T))
  after = np.arange(T) < np.array([4, 2, 1, 4, 0, 3])[:, None]
  return jnp.concatenate([prompts, responses], 1), jnp.concatenate([before, after], 1)


def merged(tokens, mask):
  """Rows in which the sequences of a prompt share it."""
  rows = Rows(tokens, mask, TP, SAMPLES)
  return rows.replace(tokens=rows.merge(tokens), segments=rows.merge(mask))


def test_a_row_is_a_prompt_and_its_responses(sequences):
  tokens = sequences[0]
  rows = merged(*sequences)
  assert rows.tokens.shape == (PROMPTS, TP + SAMPLES * T)
  np.testing.assert_array_equal(rows.tokens[1], [*tokens[2], *tokens[3, TP:]])
  np.testing.assert_array_equal(rows.split(rows.tokens), tokens)
  states = jnp.arange(PROMPTS * (TP + SAMPLES * T) * 6.0).reshape(PROMPTS, -1, 2, 3)
  np.testing.assert_array_equal(rows.merge(rows.split(states)), states)


def packed(tokens, mask):
  """The six sequences in two rows, with padding between, before and after them; and where: the
  row and column of each token [6, 9]."""
  row = np.array([0, 1, 0, 1, 1, 0])
  lengths = np.asarray(mask).sum(1)
  before = np.array([1, 0, 1 + lengths[0], lengths[1] + 2, lengths[[1, 3]].sum() + 3, 0])
  before[5] = before[2] + lengths[2]
  first = np.asarray(mask).argmax(1)
  column = np.where(mask, before[:, None] + np.arange(TP + T) - first[:, None], 0)
  shape = 2, int(column.max()) + 4
  all_rows = np.broadcast_to(row[:, None], column.shape)
  where = all_rows[mask], column[mask]
  laid, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  laid[where] = np.asarray(tokens)[mask]
  segments[where] = np.broadcast_to(np.arange(1, 7)[:, None], column.shape)[mask]
  return Rows(jnp.asarray(laid), jnp.asarray(segments)), (all_rows, column)


def test_packed_sequences_have_the_states_and_gradients_of_sequences_alone(sequences, optimized):
  tokens, mask = sequences
  rows, where = packed(tokens, mask)
  positions = np.asarray(rows.positions)[where][mask]
  np.testing.assert_array_equal(positions, np.asarray(Rows(tokens, mask).positions)[mask])
  params = jax.tree.map(lambda x: 2 * x, models.init(CONFIG, jax.random.key(0)))
  cotangent = jax.random.normal(jax.random.key(1), (*tokens.shape, CONFIG.hidden_size))
  cotangent *= mask[..., None]

  def run(rows, where):
    def loss(params):
      hidden, _ = models.hidden_states(CONFIG, params, rows)
      return (hidden[where] * cotangent).sum(), hidden[where]

    return jax.jit(jax.grad(loss, has_aux=True))(params)

  gradients, hidden = run(rows, where)
  expected_gradients, expected = run(Rows(tokens, mask), (slice(None), slice(None)))
  np.testing.assert_allclose(hidden[mask], expected[mask], atol=1e-5)
  for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("remat", ["none", pytest.param("dots", marks=pytest.mark.slow)])
def test_sharing_changes_no_state_and_no_gradient(sequences, remat, optimized):
  tokens, mask = sequences
  params = jax.tree.map(lambda x: 2 * x, models.init(CONFIG, jax.random.key(0)))
  cotangent = jax.random.normal(jax.random.key(1), (*tokens.shape, CONFIG.hidden_size))
  cotangent *= mask[..., None]

  def run(rows):
    def loss(params):
      hidden, layers = models.hidden_states(CONFIG, params, rows, remat=remat, collect=lambda x: x)
      return (hidden * cotangent).sum() + (layers[0] * cotangent).sum(), (hidden, layers)

    return jax.jit(jax.grad(loss, has_aux=True))(params)

  gradients, (hidden, layers) = run(merged(tokens, mask))
  expected_gradients, (expected_hidden, expected_layers) = run(Rows(tokens, mask))
  assert np.abs(expected_hidden[mask]).max() > 1
  np.testing.assert_allclose(hidden[mask], expected_hidden[mask], atol=1e-5)
  np.testing.assert_allclose(layers[:, mask], expected_layers[:, mask], atol=1e-5)
  for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
