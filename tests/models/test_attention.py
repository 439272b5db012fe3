"""`xla` against a loop over rows; `splash` (interpreted) and cuDNN's masks against `xla`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import models
from poise_jax.distributed import sharding
from poise_jax.models import attention as lib


def make(length, heads, groups, dim, dtype=np.float32):
  """q, k, v, a cotangent and the validity mask [4, length] of ragged rows."""
  rng = np.random.default_rng(0)
  shapes = [(4, length, n, dim) for n in (heads, groups, groups, heads)]
  q, k, v, ct = (rng.normal(size=shape).astype(dtype) for shape in shapes)
  # Rows: full, padded on the left, only padding, padded on both sides.
  first, end = [0, 5, 0, length // 3], [length, length, 0, length - 7]
  positions = np.arange(length)
  valid = (positions >= np.array(first)[:, None]) & (positions < np.array(end)[:, None])
  return q, k, v, (ct * valid[:, :, None, None]).astype(dtype), valid


def packed(*args, **kwargs):
  """The same with several sequences a row: runs of 1 to 5 numbers, 0 on padding between them."""
  q, k, v, ct, valid = make(*args, **kwargs)
  length = valid.shape[1]
  cuts = [[length], [length // 5, length // 3], [1, 2, length // 2], [length // 4, length - 3]]
  segments = np.stack([np.searchsorted(c, np.arange(length), side="right") + 1 for c in cuts])
  segments[1, length // 3 : length // 2] = 0
  segments[3, :2] = 0
  return (
    q,
    k,
    v,
    (ct * (segments > 0)[:, :, None, None]).astype(ct.dtype),
    segments.astype(np.int32),
  )


def values_and_gradients(function, q, k, v, ct, valid):
  """Results (0 at padding), their gradients, and whether all results are finite."""
  valid = jnp.asarray(valid)
  out, pull = jax.vjp(lambda *qkv: function(*qkv, valid), q, k, v)
  return jnp.where((valid > 0)[:, :, None, None], out, 0), pull(ct), jnp.isfinite(out).all()


def run(function, operands):
  return jax.jit(functools.partial(values_and_gradients, function))(*operands)


def assert_same(function, operands, *tolerance):
  """Checks values and gradients against xla's, with absolute and relative tolerance."""
  out, gradients, finite = run(function, operands)
  xla = functools.partial(lib.xla, window=function.keywords.get("window", 0))
  expected, expected_gradients, expected_finite = run(xla, operands)
  assert finite and expected_finite
  for a, b in zip((out, *gradients), (expected, *expected_gradients), strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert np.isfinite(a).all() and np.abs(b).max() > 0.1
    np.testing.assert_allclose(a, b, *tolerance[::-1])


def oracle(q, k, v, valid, window=0):
  """Attention row by row and head by head, in float64; 0 at padding."""
  out = np.zeros(q.shape)
  ratio = q.shape[2] // k.shape[2]
  for b, h in np.ndindex(q.shape[0], q.shape[2]):
    (tokens,) = np.nonzero(valid[b])
    scores = q[b, tokens, h].astype(float) @ k[b, tokens, h // ratio].T / np.sqrt(q.shape[3])
    scores[np.triu_indices(len(tokens), 1)] = -np.inf
    if window:
      scores[np.tril_indices(len(tokens), -window)] = -np.inf
    if len(tokens):
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      out[b, tokens, h] = weights @ v[b, tokens, h // ratio] / weights.sum(-1, keepdims=True)
  return out


@pytest.mark.parametrize("whole", [1024, 30])
def test_xla_keeps_the_sequences_of_a_row_apart(monkeypatch, whole):
  """Each run of a number is as a row of its own."""
  monkeypatch.setattr(lib, "WHOLE", whole)
  monkeypatch.setattr(lib, "QUERY_BLOCK", 16)
  q, k, v, ct, segments = packed(70, heads=4, groups=2, dim=8)
  out, gradients, _ = run(lib.xla, (q, k, v, ct, segments))
  expected, expected_gradients = 0, (0, 0, 0)
  for number in range(1, segments.max() + 1):
    mine = segments == number
    alone, pulled, _ = run(lib.xla, (q, k, v, ct * mine[:, :, None, None], mine))
    expected += alone
    expected_gradients = [a + b for a, b in zip(expected_gradients, pulled, strict=True)]
  np.testing.assert_allclose(out, expected, atol=2e-6)
  for a, b in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("whole,window", [(1024, 0), (30, 0), (1024, 7), (30, 1), (30, 40)])
def test_xla_is_causal_softmax_attention_to_valid_keys(monkeypatch, whole, window):
  """All queries at once, and in blocks of which the last is not full."""
  monkeypatch.setattr(lib, "WHOLE", whole)
  monkeypatch.setattr(lib, "QUERY_BLOCK", 16)
  q, k, v, ct, valid = make(70, heads=4, groups=2, dim=8)
  out, _, finite = run(functools.partial(lib.xla, window=window), (q, k, v, ct, valid))
  assert finite
  np.testing.assert_allclose(out, oracle(q, k, v, valid, window), atol=2e-6)


def test_blocks_of_queries_do_not_change_gradients(monkeypatch):
  operands = make(70, heads=4, groups=2, dim=8)
  expected = run(lib.xla, operands)
  monkeypatch.setattr(lib, "WHOLE", 30)
  monkeypatch.setattr(lib, "QUERY_BLOCK", 16)
  for a, b in zip(*map(jax.tree.leaves, (run(lib.xla, operands), expected)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_blocks_of_queries_are_equal(monkeypatch):
  """33 positions, at most 16 at a time: 3 blocks of 11, not 2 of 16 and a third for the last."""
  monkeypatch.setattr(lib, "WHOLE", 30)
  monkeypatch.setattr(lib, "QUERY_BLOCK", 16)
  q, k, v, _, valid = make(33, 2, 1, 8)
  text = str(jax.make_jaxpr(lib.xla)(q, k, v, valid))
  assert "f32[4,1,2,11,33]" in text and "16" not in text.replace("float16", "")


def test_no_buffer_holds_all_scores(optimized):
  """Forward and backward over 2,048 positions need less memory than one array of scores."""
  length, heads = 2 * lib.WHOLE, 4
  shapes = [(1, length, n, 8) for n in (heads, 2, 2, heads)]
  operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  gradient = jax.jit(functools.partial(values_and_gradients, lib.xla))
  program = gradient.lower(*operands, jax.ShapeDtypeStruct((1, length), bool)).compile()
  scores = heads * length * length * 4
  assert program.memory_analysis().temp_size_in_bytes < scores
  assert f"f32[1,{heads // 2},2,{length},{length}]" not in program.as_text()


@pytest.mark.parametrize(
  "length,heads,groups,dim,dtype",
  [
    (200, 4, 2, 64, np.float32),  # padded to 256; SmolLM2's head_dim
    pytest.param(128, 2, 1, 128, np.float32, marks=pytest.mark.slow),  # Qwen3's
    (130, 2, 2, 64, jnp.bfloat16),
  ],
)
@pytest.mark.parametrize("rows", [pytest.param(make, marks=pytest.mark.slow), packed])
def test_splash_equals_xla(rows, length, heads, groups, dim, dtype):
  splash = functools.partial(lib.splash, interpret=True)
  tolerance = (2e-5, 0) if dtype == np.float32 else (0.03, 0.03)
  assert_same(splash, rows(length, heads, groups, dim, dtype), *tolerance)


@pytest.mark.parametrize("rows", [make, packed])
def test_windows_of_kernels_mean_the_same_as_xlas(rows):
  """By splash beyond one block of 128 keys, and by cuDNN's options."""
  splash = functools.partial(lib.splash, interpret=True, window=50)
  assert_same(splash, rows(200, 2, 1, 64), 2e-5, 0)
  cudnn = functools.partial(lib.cudnn, backend="xla", window=9)
  assert_same(cudnn, rows(41, 4, 2, 16, jnp.bfloat16), 0.03, 0.03)


@pytest.mark.parametrize("rows,length", [(make, 40), (make, 41), (packed, 40), (packed, 41)])
def test_cudnns_lengths_and_masks_mean_the_same_as_xlas(rows, length):
  """In bfloat16, as cuDNN requires; the kernel itself needs a GPU."""
  cudnn = functools.partial(lib.cudnn, backend="xla")
  assert_same(cudnn, rows(length, 4, 2, 16, jnp.bfloat16), 0.03, 0.03)


def test_cudnn_computes_float32_as_xla_does():
  assert_same(functools.partial(lib.cudnn, window=9), make(40, 4, 2, 16), 1e-6, 0)


def test_the_decoder_uses_the_chosen_implementation(monkeypatch):
  """Forward and backward of a decoder, under its scan, rematerialisation and a mesh."""
  monkeypatch.setitem(lib.IMPLEMENTATIONS, "splash", functools.partial(lib.splash, interpret=True))
  config = models.ModelConfig("qwen3", 40, 32, 48, 2, 2, 1, 16, qk_norm=True)
  params = jax.jit(models.init, static_argnums=0)(config, jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (2, 20), 0, 40)
  mask = jnp.arange(20) >= jnp.array([[0], [6]])

  @functools.partial(jax.jit, static_argnums=1)
  def gradient(params, attention):
    def loss(params):
      hidden, _ = models.hidden_states(
        config, params, models.Rows(tokens, mask), remat="full", attention=attention
      )
      return (jnp.sin(hidden) * mask[..., None]).sum()

    return jax.grad(loss)(params)

  expected = gradient(params, "xla")
  with jax.set_mesh(sharding.make_mesh(fsdp=1)):
    traced = gradient.trace(params, "splash")
    actual = traced.lower().compile()(params)
  assert "splash_mha_fwd" in str(traced.jaxpr)
  for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
  "name,platform,expected",
  [
    ("auto", "cpu", "xla"),
    ("auto", "tpu", "splash"),
    ("auto", "gpu", "cudnn"),
    ("xla", "tpu", "xla"),
    ("splash", "tpu", "splash"),
  ],
)
def test_resolve(name, platform, expected):
  assert lib.resolve(name, platform) == expected


@pytest.mark.parametrize(
  "name,platform,message",
  [
    ("splash", "cpu", "'splash' does not run on cpu devices; use 'auto' or 'xla'"),
    ("cudnn", "tpu", "'cudnn' does not run on tpu"),
    ("flash", "gpu", "did you mean 'splash'"),
  ],
)
def test_implementations_that_cannot_run_are_refused(name, platform, message):
  with pytest.raises(ValueError, match=f"train.attention.*{message}"):
    lib.resolve(name, platform)
