"""Log-probs and entropies against log_softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax.learner.logprobs import chunk_of, token_logprobs

B, T, D, V = 3, 5, 7, 11


def naive(hidden, unembed, targets, temperature):
  log_p = jax.nn.log_softmax(hidden @ unembed / temperature)
  logprobs = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
  return logprobs, -(jnp.exp(log_p) * log_p).sum(-1)


def inputs(shape=(B, T, D, V), scale=1.0):
  b, t, d, v = shape
  keys = jax.random.split(jax.random.key(0), 5)
  hidden = scale * jax.random.normal(keys[0], (b, t, d))
  unembed = jax.random.normal(keys[1], (d, v))
  targets = jax.random.randint(keys[2], (b, t), 0, v)
  cotangents = tuple(jax.random.normal(key, (b, t)) for key in keys[3:])
  return hidden, unembed, targets, cotangents


def test_chunks_are_about_as_large_as_each_other():
  """Of 1,368 tokens in chunks of 1,365, the second chunk would be nearly all padding."""
  shapes = ((8, 171, 4), jnp.float32), ((4, 8), jnp.float32), ((8, 171), jnp.int32)
  arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
  program = str(jax.make_jaxpr(lambda *x: token_logprobs(*x, chunk=1365))(*arrays))
  assert "f32[2,684,4]" in program


# Chunks of 15 tokens: ragged, exact, larger than the batch, and the default.
@pytest.mark.parametrize("chunk", [4, 15, 512, 0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_and_their_gradients_equal_log_softmax(chunk, temperature):
  hidden, unembed, targets, cotangents = inputs()
  ours, ours_vjp = jax.vjp(
    lambda h, u: token_logprobs(h, u, targets, temperature, chunk), hidden, unembed
  )
  theirs, theirs_vjp = jax.vjp(lambda h, u: naive(h, u, targets, temperature), hidden, unembed)
  for a, b in zip(ours, theirs, strict=True):
    assert a.shape == (B, T)
    np.testing.assert_allclose(a, b, atol=1e-5)
  # Each output alone, so that one's error cannot cancel the other's; then both.
  zeros = jnp.zeros((B, T))
  for ct in ((cotangents[0], zeros), (zeros, cotangents[1]), cotangents):
    for a, b in zip(ours_vjp(ct), theirs_vjp(ct), strict=True):
      assert np.abs(b).max() > 0.1
      np.testing.assert_allclose(a, b, atol=1e-5)


def test_token_logprobs_of_extreme_logits_are_finite():
  hidden, unembed, targets, cotangents = inputs(scale=1e3)
  outputs, vjp = jax.vjp(lambda h, u: token_logprobs(h, u, targets, 1.0, 4), hidden, unembed)
  for x in jax.tree.leaves((outputs, vjp(cotangents))):
    assert np.isfinite(x).all()
  for a, b in zip(outputs, naive(hidden, unembed, targets, 1.0), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-3)  # logits up to 8,000 have 5e-4 of noise


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_bfloat16_operands_give_float32_outputs(temperature):
  """The temperature divides logits, not states: their quotients have no place in bfloat16."""
  hidden, unembed, targets, _ = inputs()
  half = [x.astype(jnp.bfloat16) for x in (hidden, unembed)]
  ours = token_logprobs(*half, targets, temperature)
  theirs = naive(*[x.astype(jnp.float32) for x in half], targets, temperature)
  for a, b in zip(ours, theirs, strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=1e-5)  # products of bfloat16 are exact in float32


def test_the_gradient_of_a_float32_unembedding_is_float32():
  """Summed over chunks and rounded to nothing, beside states in bfloat16."""
  hidden, unembed, targets, cotangents = inputs()
  half = hidden.astype(jnp.bfloat16)
  unembed = unembed.astype(jnp.bfloat16).astype(jnp.float32)  # no rounding of its own
  _, vjp = jax.vjp(lambda u: token_logprobs(half, u, targets, 0.7, 4), unembed)
  _, exact = jax.vjp(lambda u: naive(half.astype(jnp.float32), u, targets, 0.7), unembed)
  (ours,), (theirs,) = vjp(cotangents), exact(cotangents)
  assert ours.dtype == jnp.float32
  assert (ours.astype(jnp.bfloat16) != ours).mean() > 0.9
  np.testing.assert_allclose(ours, theirs, atol=0.01 * np.abs(theirs).max())


def test_no_buffer_of_all_logits(optimized):
  b, t, d, v = 4, 24, 8, 37  # distinct: only logits have the shape [B, T, V] or [B T, V]
  hidden, unembed, targets, _ = inputs((b, t, d, v))

  def compiled(f):
    def loss(hidden, unembed):
      logprobs, entropies = f(hidden, unembed)
      return (logprobs * 0.3 + entropies * entropies).sum()

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return grad.lower(hidden, unembed).compile().as_text()

  forbidden = (f"[{b},{t},{v}]", f"[{b * t},{v}]", f"[{v},{b * t}]", f"[{t},{b},{v}]")
  ours = compiled(lambda h, u: token_logprobs(h, u, targets, 0.7, chunk=16))
  assert not [shape for shape in forbidden if shape in ours]
  assert f"[16,{v}]" in ours
  theirs = compiled(lambda h, u: naive(h, u, targets, 0.7))
  assert [shape for shape in forbidden if shape in theirs]  # the test detects such buffers


@pytest.mark.parametrize("vocab,tokens", [(151_936, 441), (151_936 // 8, 3533), (10**6, 128)])
def test_the_logits_of_a_chunk_take_256_mib(vocab, tokens):
  assert chunk_of(vocab) == tokens
  assert tokens == 128 or tokens * vocab * 4 <= 2**28 < (tokens + 1) * vocab * 4
