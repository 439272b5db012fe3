"""Gradients in bfloat16 against float32, for every parameter and for frequent tokens one by one.

A sum of many bfloat16 numbers in bfloat16 loses most of them: at 256 times the size of its terms it
stops growing. The tokens follow Zipf's law, so that some gradients are sums over thousands of
positions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import models
from poise_jax.estimators import critic
from poise_jax.learner import update
from poise_jax.learner.batching import accumulate, form, minibatches
from poise_jax.types import Prompts, Rollouts

P, N, TP, T = 4, 4, 16, 1008  # 16 sequences of 1,024 tokens
VOCAB, FREQUENT = 128, 8
UNTIED = models.ModelConfig(
  "llama", VOCAB, 32, 48, 1, 1, 1, 16, qkv_bias=True, out_bias=True, mlp_bias=True
)
TIED = models.ModelConfig(
  "qwen3", VOCAB, 32, 48, 1, 1, 1, 16, qk_norm=True, out_bias=True, tie_word_embeddings=True
)


@pytest.fixture(scope="module")
def batch():
  """Random tokens, of which token k has a probability proportional to 1 / (k + 1)."""
  rng = np.random.default_rng(0)
  odds = 1 / np.arange(1, VOCAB + 1)

  def draw(*shape):
    return rng.choice(VOCAB, shape, p=odds / odds.sum()).astype(np.int32)

  mask = np.ones((P, N, T), bool)
  zeros = np.zeros(mask.shape, np.float32)
  prompts = Prompts(draw(P, TP), np.ones((P, TP), bool))
  nothing = np.zeros((P, N, 0), np.float32)
  rollouts = Rollouts(prompts, draw(P, N, T), mask, zeros, zeros, mask[..., -1], nothing)
  assert np.bincount(rollouts.tokens.reshape(-1))[0] > 2400
  fields = {"advantages": rng.normal(size=(P, N, 1)).astype(np.float32)}
  (part,) = minibatches(form(rollouts, fields), P * N, P * N // 2)  # two micro-batches
  return part


def decoder(model):
  """Parameters of the usual scale: a network of large random ones would amplify the rounding of its
  activations. Biases and norms are random, or they would be constant."""

  def fill(x, key):
    vector = x.ndim == 1 or x.shape[0] == model.num_hidden_layers and x.ndim == 2
    return x + 0.1 * jax.random.normal(key, x.shape) if vector else 2 * x

  @jax.jit
  def start(key):
    params = models.init(model, key)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [fill(x, k) for x, k in zip(leaves, keys, strict=True)])

  return start(jax.random.key(0))


def policy_gradient(model):
  """The parameters, and the loss whose gradient is that of REINFORCE."""

  def loss(config, params, batch, micro):
    logprobs, _ = update.response_logprobs(model, params, batch, micro, config)
    return (batch.fields["advantages"] * logprobs).mean()

  return decoder(model), loss


def value_regression(model):
  """The parameters of a critic, and its squared error."""
  params = critic.init(model, decoder(model), update.UpdateConfig()).params
  params["value_head"]["kernel"] += 0.1 * jnp.arange(model.hidden_size)

  def loss(config, params, batch, micro):
    values = critic.token_values(model, params, batch, micro, config)
    return jnp.where(micro.inside, (values - batch.fields["advantages"]) ** 2, 0.0).mean()

  return params, loss


def relative(a, b):
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
  "make,model",
  [
    pytest.param(policy_gradient, UNTIED, id="untied policy"),
    # They share the decoder with the untied policy.
    pytest.param(policy_gradient, TIED, id="tied policy", marks=pytest.mark.slow),
    pytest.param(value_regression, TIED, id="critic", marks=pytest.mark.slow),
  ],
)
def test_every_gradient_is_within_two_per_cent_of_float32(batch, make, model, optimized):
  params, loss = make(model)

  @functools.partial(jax.jit, static_argnums=0)
  def gradient(dtype, total, params, batch, micro):
    config = update.UpdateConfig(dtype=dtype, attention="xla")
    new = jax.grad(lambda params: loss(config, params, batch, micro))(params)
    return jax.tree.map(jnp.add, total, new), ()

  assert len(batch.plan.micro_batches) == 2
  rough, exact = (
    accumulate(functools.partial(gradient, dtype), params, batch)[0]
    for dtype in ("bfloat16", "float32")
  )
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(rough), jax.tree.leaves(exact), strict=True
  ):
    assert a.dtype == jnp.float32
    assert relative(a, b) < 0.02, jax.tree_util.keystr(path)
  tables = [(g.get("decoder", g)["embed_tokens"]["embedding"]) for g in (rough, exact)]
  for token in range(FREQUENT):
    assert relative(*(x[token] for x in tables)) < 0.02, token
