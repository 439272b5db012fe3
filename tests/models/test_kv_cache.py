"""Caches in blocks and in one piece, in all dtypes, and decode_attention over them."""

import functools

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
  """Normal vectors with very different norms."""
  rng = np.random.default_rng(sum(shape))
  x = rng.normal(size=shape) * rng.uniform(0.2, 2, (*shape[:-1], 1))
  return x.astype(np.float32)


def rounded(x, dtype):
  """x [..., K] rounded as in a cache of `dtype`, in float64."""
  if dtype != "int8":
    return x.astype(jnp.dtype(dtype)).astype(float)
  step = np.abs(x).max(-1, keepdims=True) / 127
  return np.round(x / step) * step.astype(float)


def oracle(q, k, v):
  """Attention of a query [H, K] to keys and values [S, G, K], head by head, in float64."""
  out = np.zeros(q.shape)
  for head in range(len(q)):
    scores = k[:, head // RATIO] @ q[head] / np.sqrt(q.shape[1])
    weights = np.exp(scores - scores.max())
    out[head] = weights @ v[:, head // RATIO] / weights.sum()
  return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 80])
def test_decoding_reads_the_written_tokens(platform, dim, dtype):
  """40 tokens written one by one to caches that grow from 0 to 33 and to 64 positions."""
  prompt = random(2, P, 37, GROUPS, dim)
  responses = random(2, P * N, 40, GROUPS, dim)
  q = random(P, N, GROUPS * RATIO, dim)
  mask = np.arange(37) >= np.array([[0], [5], [36]])

  @jax.jit
  def run():
    shared = kv_cache.store(*jnp.asarray(prompt), jnp.dtype(dtype))
    cache = kv_cache.store(*jnp.asarray(responses)[:, :, :0], jnp.dtype(dtype))
    for size, start, end in ((33, 0, 33), (64, 33, 40)):
      cache = jax.lax.fori_loop(
        start,
        end,
        lambda t, cache: kv_cache.write(cache, *jnp.asarray(responses)[:, :, t], t),
        kv_cache.grow(cache, size),
      )
    assert shared.positions >= 37 and cache.positions == 64
    attend = functools.partial(decode_attention, jnp.asarray(q), shared, jnp.asarray(mask), cache)
    return attend(jnp.arange(cache.positions) < 40), attend(jnp.arange(33) < 33)

  for length, context in zip((40, 33), run(), strict=True):
    for p in range(P):
      for i in range(N):
        k, v = (
          rounded(np.concatenate([prompt[j, p][mask[p]], responses[j, p * N + i, :length]]), dtype)
          for j in range(2)
        )
        np.testing.assert_allclose(context[p, i], oracle(q[p, i], k, v), atol=2e-5)


@pytest.mark.parametrize("dtype,size", [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_token_bytes_is_the_size_of_a_token(platform, dtype, size):
  config = models.ModelConfig("qwen3", 60, 48, 64, 2, 4, 2, 16, qk_norm=True, rope_theta=1e4)
  vectors = jnp.ones((3, 5, 2, 16))
  cache = kv_cache.grow(kv_cache.store(vectors, vectors, jnp.dtype(dtype)), 64)
  layer = sum(x.nbytes for x in jax.tree.leaves(cache))
  assert layer * config.num_hidden_layers == 3 * 64 * kv_cache.token_bytes(config, dtype)
  scales = 4 if dtype == "int8" else 0
  assert layer == 3 * 64 * 2 * 2 * (16 * size + scales)
  # Sizes are rounded up to whole blocks.
  assert kv_cache.grow(cache, 65).positions == (96 if platform == "cpu" else 65)


def test_int8_rounds_to_the_nearest_step(platform):
  x = random(2, 5, 3, 64) * 10.0 ** np.arange(-3, 2)[:, None, None]
  cache = jax.device_get(jax.jit(lambda k, v: kv_cache.store(k, v, jnp.int8))(x, 2 * x))
  blocks = (2, 3, 1, 32, 64) if platform == "cpu" else (2, 3, 1, 5, 64)
  k = cache.keys.swapaxes(3, 4).reshape(2, 3, -1, 64)[:, :, :5]
  v = cache.values.swapaxes(2, 3).reshape(2, 3, -1, 64)[:, :, :5]
  assert cache.keys.swapaxes(3, 4).shape == blocks
  for expected, integers, scales in (
    (x.swapaxes(1, 2), k, cache.key_scales),
    (2 * x.swapaxes(1, 2), v, cache.value_scales),
  ):
    step = np.abs(expected).max(-1, keepdims=True) / 127
    assert (np.abs(integers * scales[:, :, :5, None] - expected) <= 0.5001 * step).all()
  zeros = jnp.zeros((2, 5, 3, 64))
  assert not kv_cache.store(zeros, zeros, jnp.int8).keys.any()
