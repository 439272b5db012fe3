"""Caches in all dtypes, and every implementation of a decode step's attention over them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import models
from poise_jax.models import decode_attention as lib
from poise_jax.models import kv_cache
from poise_jax.models.cpu_cache import CpuCache
from poise_jax.models.kv_cache import KVCache

GROUPS, RATIO, ROWS = 2, 2, 5
LENGTHS = (140, 0, 1, 37, 77)  # tokens of the rows, of which the second is free
DTYPES = ("float32", "bfloat16", "int8")


def config(dim):
  return models.ModelConfig("qwen3", 60, 48, 64, 2, GROUPS * RATIO, GROUPS, dim)


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


def written(cache, prompts, tokens, dtype):
  """A cache with prompts of 30 positions inserted in the rows, of which each keeps as many as it
  has tokens, and the rest written one by one."""
  lengths, start = jnp.array(LENGTHS), jnp.minimum(jnp.array(LENGTHS), 30)
  source = jnp.array([2, 0, 1, 0, 2])  # prompts of the rows
  cache = cache.insert(kv_cache.store(*prompts, jnp.dtype(dtype)), source, lengths > 0)

  def put(i, cache):
    at = jnp.where(start + i < lengths, start + i, 10**6)  # ended rows write to the last position
    rows = jnp.minimum(at, tokens.shape[2] - 1)
    k, v = (jnp.take_along_axis(x, rows[:, None, None, None], 1)[:, 0] for x in tokens)
    return cache.append(k, v, jnp.minimum(at, cache.positions - 1))

  return jax.lax.fori_loop(0, 110, put, cache)


def expected(q, prompts, tokens, dtype):
  """The oracle's results of the rows with tokens."""
  source, out = [2, 0, 1, 0, 2], []
  for r, length in enumerate(LENGTHS):
    start = min(length, 30)
    k, v = (
      rounded(np.concatenate([prompts[i, source[r], :start], tokens[i, r, start:length]]), dtype)
      for i in range(2)
    )
    out.append(oracle(q[r].astype(float), k, v) if length else np.zeros(q[r].shape))
  return np.array(out)


def run(cache_type, attend, dim, dtype, q_dtype=np.float32):
  """Results of an implementation, and those of the oracle."""
  prompts, tokens = random(2, 3, 30, GROUPS, dim), random(2, ROWS, 140, GROUPS, dim)
  q = random(ROWS, GROUPS * RATIO, dim).astype(q_dtype)

  @jax.jit
  def compute():
    cache = cache_type.empty(config(dim), ROWS, 150, jnp.dtype(dtype))
    cache = written(cache, jnp.asarray(prompts), jnp.asarray(tokens), dtype)
    return attend(jnp.asarray(q), cache, jnp.array(LENGTHS, jnp.int32))

  actual = np.asarray(compute(), np.float32)
  assert np.isfinite(actual).all()
  alive = np.array(LENGTHS) > 0
  return actual[alive], expected(q.astype(np.float32), prompts, tokens, dtype)[alive]


@pytest.mark.parametrize("window", [2, 33, 200])
@pytest.mark.parametrize("cache_type,name", [(KVCache, "xla"), (CpuCache, "cpu")])
def test_a_ring_keeps_the_last_tokens(cache_type, name, window):
  """Prompts shorter and longer than the window, to which 40 tokens are added, one by one."""
  lengths, prompt, steps = np.array([30, 1, 17, 2, 29]), 30, 40
  q, (k, v) = random(steps, ROWS, GROUPS * RATIO, 8), random(2, ROWS, prompt + steps, GROUPS, 8)
  layer = models.LayerSpec(window, 0)

  @jax.jit
  def compute(q, k, v):
    cache = cache_type.empty(config(8), ROWS, kv_cache.room(layer, prompt + steps), jnp.float32)
    stored = (kv_cache.ring(x[:, :prompt], lengths, window) for x in (k, v))
    everyone = jnp.arange(ROWS)
    cache = cache.insert(kv_cache.store(*stored, jnp.float32), everyone, everyone >= 0)

    def step(cache, x):
      at, q = x
      new = (x[everyone, lengths + at] for x in (k, v))
      alive = everyone >= 0
      context, cache = lib.append_and_attend(q, *new, cache, lengths + at, alive, name, window)
      return cache, context

    return jax.lax.scan(step, cache, (jnp.arange(steps), q))[1]

  actual = compute(q, k, v)
  for i, r in np.ndindex(steps, ROWS):
    end = lengths[r] + i + 1
    tokens = slice(max(end - window, 0), end)
    expected = oracle(q[i, r].astype(float), k[r, tokens], v[r, tokens])
    np.testing.assert_allclose(actual[i, r], expected, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 80])
@pytest.mark.parametrize("cache_type,name", [(KVCache, "xla"), (CpuCache, "cpu")])
def test_rows_attend_to_their_own_tokens(monkeypatch, cache_type, name, dim, dtype):
  """Rows of 140 tokens to none, in blocks of 128 positions, or in segments of 64."""
  monkeypatch.setattr(lib, "KEY_BLOCK", 128)
  actual, expected = run(cache_type, lib.IMPLEMENTATIONS[name], dim, dtype)
  # A number halfway between two steps of int8 may be rounded either way.
  np.testing.assert_allclose(actual, expected, atol=2e-4 if dtype == "int8" else 2e-5)


@pytest.mark.parametrize("dtype,q_dtype", [("bfloat16", jnp.bfloat16), ("int8", jnp.bfloat16)])
def test_the_gpus_kernel_gives_the_same(dtype, q_dtype):
  """Interpreted; queries and results are bfloat16."""
  attend = functools.partial(lib.paged_gpu, interpret=True)
  actual, expected = run(KVCache, attend, 16, dtype, q_dtype)
  np.testing.assert_allclose(actual, expected, atol=0.03)


def test_the_tpus_kernel_gives_the_same(monkeypatch):
  """Interpreted as a TPU runs it, with its copies between memories."""
  from jax.experimental import pallas
  from jax.experimental.pallas import tpu as pltpu

  real = pallas.pallas_call
  monkeypatch.setattr(
    pallas, "pallas_call", functools.partial(real, interpret=pltpu.InterpretParams())
  )
  actual, expected = run(KVCache, lib.paged_tpu, 128, "bfloat16", jnp.bfloat16)
  np.testing.assert_allclose(actual, expected, atol=0.03)


@pytest.mark.parametrize(
  "name,dtype,cache_dtype,dim,expected",
  [
    ("splash", "bfloat16", "bfloat16", 128, "paged_tpu"),
    ("splash", "bfloat16", "bfloat16", 64, "xla"),
    ("splash", "bfloat16", "int8", 128, "xla"),
    ("splash", "float32", "float32", 128, "xla"),
    ("splash", "float32", "bfloat16", 128, "xla"),
    ("cudnn", "bfloat16", "bfloat16", 64, "paged_gpu"),
    ("cudnn", "bfloat16", "int8", 128, "paged_gpu"),
    ("cudnn", "bfloat16", "bfloat16", 80, "xla"),
    ("cudnn", "float32", "float32", 64, "xla"),
    ("cudnn", "float32", "int8", 64, "xla"),
    ("xla", "float32", "float32", 64, "cpu"),
    ("auto", "bfloat16", "bfloat16", 64, "cpu"),
  ],
)
def test_a_kernel_is_chosen_where_it_can_run(name, dtype, cache_dtype, dim, expected):
  assert lib.resolve(name, config(dim), jnp.dtype(dtype), jnp.dtype(cache_dtype)) == expected
  assert lib.cache_type(expected) is (CpuCache if expected == "cpu" else KVCache)


@pytest.mark.parametrize("dtype,size", [("float32", 4), ("bfloat16", 2), ("int8", 1)])
@pytest.mark.parametrize("cache_type,unit", [(KVCache, 128), (CpuCache, 32)])
def test_row_bytes_is_the_size_of_a_row(cache_type, unit, dtype, size):
  cache = cache_type.empty(config(16), 3, 256, jnp.dtype(dtype))
  layer = sum(x.nbytes for x in jax.tree.leaves(cache))
  assert layer * 2 == 3 * kv_cache.row_bytes(config(16), 256, dtype)
  scales = 4 if dtype == "int8" else 0
  assert layer == 3 * 256 * 2 * GROUPS * (16 * size + scales)
  # Sizes are rounded up to whole pages or blocks.
  assert cache_type.empty(config(16), 3, 257, jnp.dtype(dtype)).positions == 256 + unit


@pytest.mark.parametrize("positions, size", [(4096, 4096), (4097, 4608), (8192 + 128, 8704)])
def test_long_caches_are_read_in_blocks_of_512(positions, size):
  """Where the number of pages is odd, kernels and `xla` would read 128 positions at once."""
  cache = jax.eval_shape(lambda: KVCache.empty(config(16), 1, positions, jnp.bfloat16))
  assert cache.positions == size


def test_a_window_bounds_the_size_of_a_row():
  shape = dict(layer_types=("full_attention", "sliding_attention"), sliding_window=9)
  mixed = dataclasses.replace(config(16), **shape)
  assert kv_cache.row_bytes(mixed, 100, "bfloat16") == (100 + 9) * 2 * GROUPS * 16 * 2
  assert kv_cache.row_bytes(mixed, 7, "bfloat16") == kv_cache.row_bytes(config(16), 7, "bfloat16")


def test_int8_rounds_to_the_nearest_step():
  x = random(2, 5, 3, 64) * 10.0 ** np.arange(-3, 2)[:, None, None]
  cache = jax.device_get(jax.jit(lambda k, v: kv_cache.store(k, v, jnp.int8))(x, 2 * x))
  for expected, integers, scales in (
    (x.transpose(2, 0, 1, 3), cache.keys, cache.key_scales),
    (2 * x.transpose(2, 0, 1, 3), cache.values, cache.value_scales),
  ):
    step = np.abs(expected).max(-1, keepdims=True) / 127
    assert (np.abs(integers * scales[..., None] - expected) <= 0.5001 * step).all()
  zeros = jnp.zeros((2, 5, 3, 64))
  assert not kv_cache.store(zeros, zeros, jnp.int8).keys.any()


@pytest.mark.parametrize("cache_type", [KVCache, CpuCache])
def test_rows_are_taken(cache_type):
  """Another order of rows, of which one is left out: the same contexts in that order."""
  rows = jnp.array([4, 0, 3])

  def attend(q, cache, lengths):
    name = "xla" if cache_type is KVCache else "cpu"
    out = lib.IMPLEMENTATIONS[name](q[rows], cache.take(rows), lengths[rows])
    return jnp.zeros_like(q).at[rows].set(out)

  actual, expected = run(cache_type, attend, 8, "float32")
  np.testing.assert_allclose(actual[[3, 0, 2]], expected[[3, 0, 2]], atol=2e-5)


def test_a_full_row_writes_nothing_beyond_its_end():
  for cache_type in (KVCache, CpuCache):
    cache = cache_type.empty(config(8), 2, 128, jnp.float32)
    ones = jnp.ones((2, GROUPS, 8))
    after = cache.append(ones, ones, jnp.array([128, 3]))
    total = sum(float(x.sum()) for x in jax.tree.leaves(after))
    assert total in (2 * GROUPS * 8, 4 * GROUPS * 8)  # a KVCache replaces the row's last token
