"""The decoder against transformers' on tiny random models with unusual settings."""

import copy
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CASES, LENGTHS, batch, load_tiny, run_transformers

from poise_jax import models
from poise_jax.models.linear import SamplingDense

forward = jax.jit(models.forward, static_argnums=0)


@pytest.mark.parametrize("case", CASES)
def test_forward_equals_transformers(case):
  reference, config, params = load_tiny(case)
  tokens, mask = batch()
  logits, hidden, blocks = run_transformers(reference, tokens, mask)
  output = forward(config, params, tokens, mask)
  assert np.std(logits[mask]) > 0.3
  np.testing.assert_allclose(output.logits[mask], logits[mask], atol=1e-4, rtol=0)
  np.testing.assert_allclose(output.hidden[mask], hidden[mask], atol=1e-4, rtol=0)
  np.testing.assert_allclose(output.layers[:, mask], blocks[:, mask], atol=1e-4, rtol=0)


def test_every_parameter_matters():
  """The parity test above cannot find a bug in a parameter that changes nothing."""
  _, config, params = load_tiny("llama-odd")
  tokens, mask = batch()

  def loss(params, tokens, mask):
    logits = models.forward(config, params, tokens, mask).logits
    return jnp.sum(jnp.where(mask, logits[..., 3], 0))

  gradients = jax.jit(jax.grad(loss))(params, tokens, mask)
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert float(jnp.abs(gradient).max()) > 1e-3, path


def test_llama3_scaling_matters():
  _, config, params = load_tiny("llama-odd")
  tokens, mask = batch()
  unscaled = dataclasses.replace(config, rope_scaling=None)
  one, other = (forward(c, params, tokens, mask).logits for c in (config, unscaled))
  assert float(jnp.abs(one - other)[mask].max()) > 1e-2


def test_padding_side_and_content_do_not_matter():
  _, config, params = load_tiny("qwen3")
  tokens, mask = batch()

  def to_the_right(x):
    return np.stack([np.roll(row, n) for row, n in zip(x, LENGTHS, strict=True)])

  left = forward(config, params, tokens, mask).logits
  right_mask = to_the_right(mask)
  right_tokens = np.where(right_mask, to_the_right(tokens), 55)
  right = forward(config, params, right_tokens, right_mask).logits
  np.testing.assert_allclose(right[right_mask], left[mask], atol=1e-5, rtol=0)


def test_bfloat16_hidden_states_stay_close():
  _, config, params = load_tiny("qwen2")
  tokens, mask = batch()
  exact = forward(config, params, tokens, mask).hidden
  rough, _ = jax.jit(models.hidden_states, static_argnums=(0, 3))(
    config, params, models.Rows(tokens, mask), jnp.bfloat16
  )
  assert rough.dtype == jnp.bfloat16
  assert float(jnp.abs(exact - rough)[mask].max()) < 0.2 * float(jnp.abs(exact).max())


@pytest.mark.parametrize("case", ["olmo3", "gemma3", "smollm3"])
def test_bfloat16_is_as_close_to_float32_as_that_of_transformers(case):
  reference, config, params = load_tiny(case)
  tokens, mask = batch()
  exact, *_ = run_transformers(reference, tokens, mask)
  theirs, *_ = run_transformers(copy.deepcopy(reference).bfloat16(), tokens, mask)
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  hidden, _ = jax.jit(models.hidden_states, static_argnums=(0, 3))(
    config, rounded, models.Rows(tokens, mask), jnp.bfloat16
  )
  ours = hidden @ models.unembedding(config, rounded)
  errors = [np.abs(np.asarray(x, np.float32) - exact)[mask] for x in (ours, theirs)]
  assert 0 < errors[0].mean() < 1.2 * errors[1].mean(), [e.mean() for e in errors]


def test_remat_changes_nothing():
  _, config, params = load_tiny("llama-smollm2")
  tokens, mask = batch()
  states, _ = jax.jit(models.hidden_states, static_argnums=(0, 3, 4))(
    config, params, models.Rows(tokens, mask), jnp.float32, "full"
  )
  expected = forward(config, params, tokens, mask).hidden
  np.testing.assert_allclose(states[mask], expected[mask], atol=1e-5)


def test_remat_saves_memory(optimized):
  """Compares the temporary memory of compiled gradients of 24 layers; nothing is run."""
  config = models.ModelConfig("qwen3", 40, 32, 64, 24, 2, 1, 16)
  params = models.abstract_params(config)
  tokens, mask = (jax.ShapeDtypeStruct((4, 32), dtype) for dtype in (jnp.int32, bool))

  def temporary(remat):
    def loss(params, tokens, mask):
      return models.hidden_states(config, params, models.Rows(tokens, mask), remat=remat)[0].sum()

    program = jax.jit(jax.grad(loss)).lower(params, tokens, mask).compile()
    return program.memory_analysis().temp_size_in_bytes

  none, dots, full = (temporary(remat) for remat in ("none", "dots", "full"))
  rows = 24 * 4 * 32 * 4  # a float32 per layer and token
  # "dots" saves queries, keys, values, gate, up and two states of full width; "full" the inputs.
  assert none - dots > 64 * rows and dots - full > (32 + 2 * 16 + 2 * 64) * rows


def test_a_profile_reads_like_the_code():
  """Operations have the scopes of the code that they come from, the backward pass included."""
  config = models.ModelConfig("qwen3", 40, 32, 64, 2, 2, 1, 16, qk_norm=True)
  params = models.abstract_params(config)
  tokens, mask = (jax.ShapeDtypeStruct((4, 32), dtype) for dtype in (jnp.int32, bool))

  def loss(params, tokens, mask):
    return models.hidden_states(config, params, models.Rows(tokens, mask), remat="full")[0].sum()

  text = jax.jit(jax.grad(loss)).lower(params, tokens, mask).as_text(debug_info=True)
  names = re.findall(r'loc\("([^"]+)/[^/"]+"', text)
  layer = ("input_layernorm", "self_attn.qkv", "attention", "self_attn.out", "mlp")
  for scope in ("rope", "embed", "norm", *(f"layers/{part}" for part in layer)):
    assert any(name.endswith(f"/{scope}") for name in names), scope
  for scope in ("embed", "norm"):
    assert any("transpose" in name and name.endswith(f"/{scope}") for name in names), scope


@pytest.mark.parametrize("case", CASES)
def test_init_has_the_abstract_tree(case):
  config = load_tiny(case)[1]
  shapes = models.abstract_params(config)
  params = jax.eval_shape(lambda key: models.init(config, key), jax.random.key(0))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  names = models.logical_axes(config)
  rank = jax.tree.map(lambda s, axes: len(s.shape) == len(axes), shapes, names)
  assert all(jax.tree.leaves(rank))


@pytest.mark.parametrize("positions", [1, 4])  # a step of decoding, a pass over prompts
def test_a_fused_kernel_equals_its_maps(positions):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(7, positions, 5)), jnp.float32)
  kernel = rng.normal(size=(2, 3, 5)).astype(np.float32)
  bias = rng.normal(size=(2, 3)).astype(np.float32)
  expected = np.einsum("btd,ued->btue", x, kernel) + bias
  params = {"params": {"kernel": kernel, "bias": bias}}
  y = SamplingDense((2, 3), True, jnp.float32).apply(params, x)
  np.testing.assert_allclose(y, expected, atol=1e-5)
