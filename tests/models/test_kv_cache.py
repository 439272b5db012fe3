"""Caches in blocks and in one piece, of all dtypes, and what decode_attention reads from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import models
from poise_jax.models import kv_cache
from poise_jax.models.attention import decode_attention

GROUPS, RATIO = 2, 2
P, N = 3, 2
DTYPES = ("float32", "bfloat16", "int8")


@pytest.fixture(params=["cpu", "tpu"])
def platform(request, monkeypatch):
  monkeypatch.setattr(kv_cache, "platform", lambda: request.param)
  return request.param


def random(*shape):
  """Normal vectors of very different lengths."""
  rng = np.random.default_rng(sum(shape))
  x = rng.normal(size=shape) * rng.uniform(0.2, 2, (*shape[:-1], 1))
  return x.astype(np.float32)


def rounded(x, dtype):
  """What a cache of `dtype` holds of x [..., K], in float64."""
  if dtype != "int8":
    return x.astype(jnp.dtype(dtype)).astype(float)
  step = np.abs(x).max(-1, keepdims=True) / 127
  return np.round(x / step) * step.astype(float)


def oracle(q, k, v):
  """One query [H, K] over the keys and values [S, G, K] of its row, head by head, in float64."""
  out = np.zeros(q.shape)
  for head in range(len(q)):
    scores = k[:, head // RATIO] @ q[head] / np.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max())
    out[head] = weights @ v[:, head // RATIO] / weights.sum()
  return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 80])
def test_decoding_reads_what_was_written(platform, dim, dtype):
  """40 tokens, one after the other, over caches that grow from 0 to 33 and to 64 positions."""
  prompt = random(2, P, 37, GROUPS, dim)
  own = random(2, P * N, 40, GROUPS, dim)
  q = random(P, N, GROUPS * RATIO, dim)
  mask = np.arange(37) >= np.array([[0], [5], [36]])

  @jax.jit
  def run():
    shared = kv_cache.store(*prompt, jnp.dtype(dtype))
    mine = kv_cache.store(*own[:, :, :0], jnp.dtype(dtype))
    for size, start, end in ((33, 0, 33), (64, 33, 40)):
      mine = jax.lax.fori_loop(
        start,
        end,
        lambda t, mine: kv_cache.write(mine, *jnp.asarray(own)[:, :, t], t),
        kv_cache.grow(mine, size),
      )
    assert shared.positions >= 37 and mine.positions == 64
    context = decode_attention(q, shared, mask, mine, jnp.arange(mine.positions) < 40)
    return context, decode_attention(q, shared, mask, mine, jnp.arange(33) < 33)

  for length, context in zip((40, 33), run(), strict=True):
    for p in range(P):
      for i in range(N):
        k, v = (
          rounded(np.concatenate([prompt[j, p][mask[p]], own[j, p * N + i, :length]]), dtype)
          for j in range(2)
        )
        np.testing.assert_allclose(context[p, i], oracle(q[p, i], k, v), atol=2e-5)


@pytest.mark.parametrize("dtype,size", [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_a_cache_takes_the_bytes_that_are_planned(platform, dtype, size):
  config = models.ModelConfig("qwen3", 60, 48, 64, 2, 4, 2, 16, qk_norm=True, rope_theta=1e4)
  vectors = jnp.ones((3, 5, 2, 16))
  own = kv_cache.grow(kv_cache.store(vectors, vectors, jnp.dtype(dtype)), 64)
  layer = sum(x.nbytes for x in jax.tree.leaves(own))
  assert layer * config.num_hidden_layers == 3 * 64 * kv_cache.token_bytes(config, dtype)
  scales = 4 if dtype == "int8" else 0
  assert layer == 3 * 64 * 2 * 2 * (16 * size + scales)
  # Blocks are whole.
  assert kv_cache.grow(own, 65).positions == (96 if platform == "cpu" else 65)


def test_integers_are_half_a_step_away_at_most(platform):
  x = random(2, 5, 3, 64) * 10.0 ** np.arange(-3, 2)[:, None, None]
  got = jax.device_get(jax.jit(lambda k, v: kv_cache.store(k, v, jnp.int8))(x, 2 * x))
  blocks = (2, 3, 1, 32, 64) if platform == "cpu" else (2, 3, 1, 5, 64)
  k = got.keys.swapaxes(3, 4).reshape(2, 3, -1, 64)[:, :, :5]
  v = got.values.swapaxes(2, 3).reshape(2, 3, -1, 64)[:, :, :5]
  assert got.keys.swapaxes(3, 4).shape == blocks
  for wanted, integers, scales in (
    (x.swapaxes(1, 2), k, got.key_scales),
    (2 * x.swapaxes(1, 2), v, got.value_scales),
  ):
    step = np.abs(wanted).max(-1, keepdims=True) / 127
    assert (np.abs(integers * scales[:, :, :5, None] - wanted) <= 0.5001 * step).all()
  assert not kv_cache.store(x * 0, x * 0, jnp.int8).keys.any()
