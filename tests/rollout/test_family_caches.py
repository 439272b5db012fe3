"""Sampling with decoders whose layers differ, far beyond their windows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tiny_models import load_tiny

from poise_jax import models
from poise_jax.rollout import RolloutConfig, sample
from poise_jax.rollout.features import features_of
from poise_jax.types import Prompts

LENGTHS = (11, 1, 6)
NEW = 14  # tokens, so that rings of 4 and 5 positions turn several times


def prompts():
  """Three prompts of unequal lengths, padded on the left."""
  mask = np.arange(max(LENGTHS)) >= max(LENGTHS) - np.array(LENGTHS)[:, None]
  tokens = np.random.default_rng(3).integers(1, 97, mask.shape)
  return Prompts(tokens=jnp.asarray(np.where(mask, tokens, 0)), mask=jnp.asarray(mask))


def options(**changes):
  return RolloutConfig(
    n=2, max_new_tokens=NEW, feature_layers=(0, 2), feature_window=3, attention="xla", **changes
  )


def expected_logprobs(reference, out):
  """transformers' log-probs [P, n, T] of the sampled tokens, from a pass over each sequence."""
  logprobs = np.zeros(out.tokens.shape)
  for index in np.ndindex(*out.tokens.shape[:2]):
    row = index[0]
    prompt = np.asarray(out.prompts.tokens[row])[np.asarray(out.prompts.mask[row])]
    sequence = np.concatenate([prompt, np.asarray(out.tokens[index])])
    with torch.no_grad():
      logits = reference(torch.tensor(sequence[None])).logits[0]
    steps = torch.log_softmax(logits[len(prompt) - 1 : -1].double(), dim=-1)
    logprobs[index] = steps.gather(1, torch.tensor(sequence[len(prompt) :])[:, None])[:, 0]
  return logprobs


@pytest.mark.parametrize(
  "case,chunk,slots", [("qwen2-window", 0, 0), ("olmo3", 4, 4), ("gemma3", 0, 4), ("smollm3", 4, 0)]
)
def test_decoding_past_the_window_equals_transformers(case, chunk, slots):
  """Prompts are shorter and longer than the window; with 4 slots, responses move into used ones."""
  reference, config, params = load_tiny(case)
  rollout = options(prefill_chunk=chunk, slots=slots)
  out = sample(config, params, prompts(), jax.random.key(0), rollout)
  assert out.mask.all()
  np.testing.assert_allclose(out.logprobs, expected_logprobs(reference, out), atol=1e-4)
  np.testing.assert_allclose(out.features, features_of(config, params, out, rollout), atol=1e-4)


@pytest.mark.parametrize("case", ["olmo3", "gemma3"])
def test_the_window_and_each_rotary_embedding_matter(case):
  """The tests above cannot find a fault in what changes nothing."""
  _, config, params = load_tiny(case)
  tokens = jnp.arange(1, 13)[None]
  mask = tokens > 0

  @functools.partial(jax.jit, static_argnums=0)
  def logits(config):
    return models.forward(config, params, tokens, mask).logits

  base = logits(config)
  for changes in (
    dict(sliding_window=config.sliding_window + 1),
    dict(sliding_rope_theta=1.5 * config.sliding_rope_theta),
    dict(rope_theta=1.5 * config.rope_theta),
    dict(rope_scaling=None),
  ):
    changed = logits(dataclasses.replace(config, **changes))
    assert float(jnp.abs(changed - base).max()) > 1e-3, changes
