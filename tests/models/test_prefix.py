"""A prompt that stands once for its samples: the states of each are those of its whole row."""

import jax
import numpy as np
import pytest

from poise_jax import models
from poise_jax.models.prefix import pack, unpack

CONFIG = models.ModelConfig("qwen3", 40, 32, 48, 2, 4, 2, 8, qk_norm=True, rope_theta=1e5)
PROMPTS, SAMPLES, TP, T = 3, 2, 5, 4


@pytest.fixture(scope="module")
def rows():
  """Tokens and mask [6, 9]; prompts are padded on the left and responses end early."""
  rng = np.random.default_rng(0)
  prompts = np.repeat(rng.integers(0, 40, (PROMPTS, TP)), SAMPLES, axis=0)
  before = np.repeat(np.arange(TP) >= np.array([[0], [3], [4]]), SAMPLES, axis=0)
  own = rng.integers(0, 40, (PROMPTS * SAMPLES, T))
  after = np.arange(T) < np.array([4, 2, 1, 4, 0, 3])[:, None]
  return np.concatenate([prompts, own], 1), np.concatenate([before, after], 1)


def test_a_packed_row_is_a_prompt_and_its_samples(rows):
  tokens = rows[0]
  packed = pack(tokens, TP, SAMPLES)
  assert packed.shape == (PROMPTS, TP + SAMPLES * T)
  np.testing.assert_array_equal(packed[1], [*tokens[2, :TP], *tokens[2, TP:], *tokens[3, TP:]])
  np.testing.assert_array_equal(unpack(packed, TP, SAMPLES), tokens)
  states = np.arange(PROMPTS * (TP + SAMPLES * T) * 6.0).reshape(PROMPTS, -1, 2, 3)
  np.testing.assert_array_equal(pack(unpack(states, TP, SAMPLES), TP, SAMPLES), states)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_sharing_changes_no_state_and_no_gradient(rows, remat):
  tokens, mask = rows
  params = jax.tree.map(lambda x: 3 * x, models.init(CONFIG, jax.random.key(0)))
  cotangent = jax.random.normal(jax.random.key(1), (*tokens.shape, CONFIG.hidden_size))
  cotangent *= mask[..., None]

  def run(samples):
    def loss(params):
      hidden, layers = models.hidden_states(
        CONFIG,
        params,
        tokens,
        mask,
        remat=remat,
        collect=lambda x: x,
        prompt=TP,
        samples=samples,
      )
      return (hidden * cotangent).sum() + (layers[0] * cotangent).sum(), (hidden, layers)

    return jax.jit(jax.grad(loss, has_aux=True))(params)

  (ours, (hidden, layers)), (theirs, (plain, plain_layers)) = run(SAMPLES), run(1)
  assert np.abs(plain[mask]).max() > 1
  np.testing.assert_allclose(hidden[mask], plain[mask], atol=1e-5)
  np.testing.assert_allclose(layers[:, mask], plain_layers[:, mask], atol=1e-5)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
