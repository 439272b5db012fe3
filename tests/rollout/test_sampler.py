"""The sampler against a teacher-forced pass; ends of responses, masks, draws and named scopes."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import models, rollout
from poise_jax.rollout import RolloutConfig
from poise_jax.rollout.features import marker_ends, until_first, until_last
from poise_jax.types import Prompts

CONFIG = models.ModelConfig(
  "qwen3", 300, 64, 96, 4, 4, 2, 16, qk_norm=True, tie_word_embeddings=True, rope_theta=1e5
)
EOS = tuple(range(12))
BASE = RolloutConfig(
  n=2,
  max_new_tokens=12,
  temperature=0.7,
  top_p=0.9,
  eos_ids=EOS,
  pad_id=5,  # also an EOS, because masks must come from positions
  feature_layers=(1, 3),
  feature_window=4,
  think_end=(40, 41),
)


@pytest.fixture(scope="module")
def params():
  # Three times the usual scale, for peaked distributions: truncation and ends matter.
  return jax.tree.map(lambda x: 3 * x, models.init(CONFIG, jax.random.key(0)))


@pytest.fixture(scope="module")
def prompts():
  tokens = jax.random.randint(jax.random.key(1), (4, 7), 0, CONFIG.vocab_size)
  mask = jnp.arange(7) >= jnp.array([2, 0, 5, 1])[:, None]
  return Prompts(tokens=tokens, mask=mask)


@pytest.fixture(scope="module")
def rollouts(params, prompts):
  return rollout.sample(CONFIG, params, prompts, jax.random.key(2), BASE)


def teacher_logits(params, rollouts):
  """Logits [P, n, T, V] of every response position, from a full forward pass."""
  p, n, t = rollouts.tokens.shape
  prompts = jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), rollouts.prompts)
  tokens = jnp.concatenate([prompts.tokens, rollouts.tokens.reshape(p * n, t)], axis=1)
  mask = jnp.concatenate([prompts.mask, rollouts.mask.reshape(p * n, t)], axis=1)
  logits = models.forward(CONFIG, params, tokens, mask).logits
  return np.asarray(logits[:, -t - 1 : -1].reshape(p, n, t, -1), np.float64)


def nucleus_logprob(logits, token, top_k, top_p):
  """Log-prob of a token by sorting, truncating and renormalising, in float64."""
  order = np.argsort(-logits, kind="stable")
  p = np.exp(logits - logits.max())
  top = order[: top_k or len(order)]
  mass = np.cumsum(p[top]) / p[top].sum()
  top = top[: np.searchsorted(mass, top_p - 1e-9) + 1] if top_p < 1 else top
  assert token in top
  return np.log(p[token] / p[top].sum())


@pytest.mark.parametrize(
  "top_k,top_p",
  [
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((0, 0.9), (7, 1.0))),
    (0, 1.0),
    (20, 0.8),  # both
  ],
)
def test_logprobs_and_entropies_equal_a_teacher_forced_pass(params, prompts, top_k, top_p):
  config = dataclasses.replace(BASE, top_k=top_k, top_p=top_p)
  out = rollout.sample(CONFIG, params, prompts, jax.random.key(3), config)
  logits = teacher_logits(params, out) / BASE.temperature
  mask = np.asarray(out.mask)
  assert 0.1 < mask.mean() < 1  # some responses end early, so that masks are tested
  for index in zip(*np.nonzero(mask), strict=True):
    expected = nucleus_logprob(logits[index], int(out.tokens[index]), top_k, top_p)
    assert abs(float(out.logprobs[index]) - expected) < 1e-4
    log_p = logits[index] - np.logaddexp.reduce(logits[index])
    assert abs(float(out.entropies[index]) + (np.exp(log_p) * log_p).sum()) < 1e-4


def test_caches_in_segments_lose_nothing(params, prompts):
  """66 tokens after 7 of the prompt: on a CPU the caches have two segments."""
  config = dataclasses.replace(BASE, max_new_tokens=66, top_p=1.0, eos_ids=(0,))
  params = jax.tree.map(lambda x: x / 2, params)  # logits of 60 have rounding errors of 1e-4
  out = rollout.sample(CONFIG, params, prompts, jax.random.key(3), config)
  assert out.mask.sum(-1).max() > 40
  logits = teacher_logits(params, out) / BASE.temperature
  log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
  expected = np.take_along_axis(log_p, np.asarray(out.tokens)[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(
    np.where(out.mask, out.logprobs, 0), np.where(out.mask, expected, 0), atol=1e-4
  )
  np.testing.assert_allclose(
    out.features, rollout.features_of(CONFIG, params, out, config), atol=1e-4
  )


def test_features_equal_a_teacher_forced_pass(params, rollouts):
  expected = rollout.features_of(CONFIG, params, rollouts, BASE)
  assert rollouts.features.shape == (4, 2, rollout.feature_size(CONFIG, BASE)) == (4, 2, 259)
  np.testing.assert_allclose(rollouts.features, expected, atol=1e-4)


def test_features_are_means_over_the_right_states(params, prompts):
  """Means of a loop over rows, with markers in the middle and, repeated, in a response."""
  options = dataclasses.replace(BASE, think_end=(), top_k=4, max_new_tokens=14)
  plain = rollout.sample(CONFIG, params, prompts, jax.random.key(2), options)
  lengths = np.asarray(plain.mask.sum(-1))
  tokens = np.asarray(plain.tokens)
  row = np.unravel_index(lengths.argmax(), lengths.shape)
  counts = collections.Counter(tokens[row][: lengths[row] - 1].tolist())
  marker = (counts.most_common(1)[0][0],)  # occurs several times in this response
  config = dataclasses.replace(options, think_end=marker)
  out = rollout.sample(CONFIG, params, prompts, jax.random.key(2), config)
  np.testing.assert_array_equal(out.tokens, plain.tokens)
  k, forward = BASE.feature_window, jax.jit(functools.partial(models.forward, CONFIG))
  several, size = 0, prompts.tokens.shape[1] + options.max_new_tokens
  for row in np.ndindex(lengths.shape):
    tokens = [int(x) for x in out.tokens[row][out.mask[row]]]
    ends = [t for t, token in enumerate(tokens) if token == marker[0]]
    several += len(ends) > 1
    first, last = (ends[i] + 1 if ends else len(tokens) for i in (0, -1))
    prompt = [int(x) for x in prompts.tokens[row[0]][prompts.mask[row[0]]]]
    start, length = len(prompt), len(prompt) + len(tokens)
    text = jnp.array([prompt + tokens + [0] * (size - length)])  # one shape, compiled once
    layers = forward(params, text, jnp.arange(size)[None] < length).layers[:, 0]
    states = np.asarray(layers)[list(BASE.feature_layers)]
    entropies = np.asarray(out.entropies[row])[: len(tokens)]
    answer = entropies[first:]
    expected = np.concatenate(
      [
        states[:, max(start - k, 0) : start].mean(1).reshape(-1),
        states[:, max(start, start + last - k) : start + last].mean(1).reshape(-1),
        [entropies.mean(), entropies[:first].mean(), answer.mean() if len(answer) else 0.0],
      ]
    )
    np.testing.assert_allclose(out.features[row], expected, atol=1e-4)
  assert several
  forced = rollout.features_of(CONFIG, params, out, config)
  np.testing.assert_allclose(out.features, forced, atol=1e-4)


def test_reasoning_ends_with_the_first_or_the_last_marker():
  """Two markers; one, after a part of one; none; one at the very end; one cut off by the mask."""
  tokens = jnp.array(
    [
      [7, 1, 2, 3, 1, 2, 9],
      [1, 3, 2, 1, 1, 2, 4],
      [2, 5, 5, 5, 5, 5, 1],
      [5, 5, 5, 5, 5, 1, 2],
      [5, 1, 2, 5, 5, 1, 2],
    ]
  )
  mask = jnp.ones_like(tokens, bool).at[0, 6].set(False).at[4, 6].set(False)
  ends = marker_ends(tokens, mask, (1, 2))
  assert until_first(ends, mask).sum(-1).tolist() == [3, 6, 7, 7, 3]
  assert until_last(ends, mask).sum(-1).tolist() == [6, 6, 7, 7, 3]
  assert (until_last(marker_ends(tokens, mask, ()), mask) == mask).all()


def test_masks_include_the_eos_and_nothing_after_it(rollouts):
  tokens, mask = np.asarray(rollouts.tokens), np.asarray(rollouts.mask)
  for row in np.ndindex(tokens.shape[:2]):
    ends = [t for t, token in enumerate(tokens[row]) if token in EOS]
    length = ends[0] + 1 if ends else tokens.shape[2]
    assert mask[row].tolist() == [t < length for t in range(tokens.shape[2])]
    assert bool(rollouts.truncated[row]) == (not ends)
    assert (tokens[row][length:] == BASE.pad_id).all()
    assert not np.asarray(rollouts.logprobs)[row][length:].any()
    assert not np.asarray(rollouts.entropies)[row][length:].any()


def test_frequencies_follow_the_truncated_distribution(params, prompts):
  """Chi-square test of 2,000 single tokens per prompt against the nucleus distribution."""
  config = dataclasses.replace(
    BASE, n=2000, max_new_tokens=1, temperature=1.0, top_p=0.95, feature_layers=(), think_end=()
  )
  out = rollout.sample(CONFIG, params, prompts, jax.random.key(5), config)
  one = jax.tree.map(lambda x: x[:, :1] if x.ndim > 2 else x, out)
  logits = teacher_logits(params, one)[:, 0, 0]
  for p in range(len(logits)):
    order = np.argsort(-logits[p])
    mass = np.exp(logits[p] - np.logaddexp.reduce(logits[p]))
    nucleus = order[: np.searchsorted(np.cumsum(mass[order]), 0.95) + 1]
    expected = mass[nucleus] / mass[nucleus].sum() * config.n
    counts = np.bincount(np.asarray(out.tokens[p, :, 0]), minlength=CONFIG.vocab_size)
    assert counts[nucleus].sum() == config.n  # nothing outside of the nucleus
    common = expected > 5
    statistic = ((counts[nucleus] - expected) ** 2 / expected)[common].sum()
    freedom = common.sum()
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def test_greedy_is_the_argmax(params, prompts):
  config = dataclasses.replace(BASE, temperature=0.0, top_p=1.0)
  out = rollout.sample(CONFIG, params, prompts, jax.random.key(0), config)
  best = teacher_logits(params, out).argmax(-1)
  assert (best == out.tokens)[np.asarray(out.mask)].all()
  np.testing.assert_array_equal(out.tokens[:, 0], out.tokens[:, 1])


def test_draws_depend_on_key_and_row_only(params, prompts, rollouts):
  again = rollout.sample(CONFIG, params, prompts, jax.random.key(2), BASE)
  np.testing.assert_array_equal(rollouts.tokens, again.tokens)
  other = rollout.sample(CONFIG, params, prompts, jax.random.key(9), BASE)
  assert (other.tokens != rollouts.tokens).any()
  assert (rollouts.tokens[:, 0] != rollouts.tokens[:, 1]).any()


def test_padding_does_not_change_a_prompt(params, prompts):
  config = dataclasses.replace(BASE, temperature=0.0, top_p=1.0, n=1)
  out = rollout.sample(CONFIG, params, prompts, jax.random.key(0), config)
  for p in (0, 2):
    alone = prompts.tokens[p][prompts.mask[p]][None]
    single = rollout.sample(
      CONFIG,
      params,
      Prompts(tokens=alone, mask=jnp.ones_like(alone, bool)),
      jax.random.key(0),
      config,
    )
    np.testing.assert_array_equal(single.tokens[0], out.tokens[p])
    np.testing.assert_allclose(single.features[0], out.features[p], atol=1e-4)


def test_no_array_holds_every_state(params, prompts, optimized):
  """The compiled program has no array [P, n, T, D], only the window of k states."""
  p, n, t, d = 4, 2, 12, CONFIG.hidden_size
  sample = jax.jit(lambda params, key: rollout.sample(CONFIG, params, prompts, key, BASE).features)
  text = sample.lower(params, jax.random.key(0)).compile().as_text()
  for shape in (f"[{p},{n},{t},{d}]", f"[{p * n},{t},{d}]", f"[{t},{p},{n},{d}]"):
    assert shape not in text
  assert f"[2,{p * n},{BASE.feature_window},{d}]" in text  # the window, as this test would find it


def test_a_profile_reads_like_the_code(params, prompts):
  """Operations have the scopes of the code that they come from."""
  sample = jax.jit(rollout.sample, static_argnums=(0, 4))
  lowered = sample.lower(CONFIG, params, prompts, jax.random.key(0), BASE)
  names = re.findall(r'loc\("([^"]+)/[^/"]+"', lowered.as_text(debug_info=True))
  layer = ("input_layernorm", "self_attn.qkv", "attention", "self_attn.out", "mlp")
  expected = {"sampling_params", "features"}
  for phase in ("prefill", "while/body/decode_step"):
    expected |= {f"{phase}/{scope}" for scope in ("embed", "features")}
    expected |= {f"{phase}/layers/{scope}" for scope in layer}
  for phase in ("", "while/body/decode_step/"):  # the first tokens are drawn after the prefill
    expected |= {f"{phase}{scope}" for scope in ("head", "head/norm", "draw")}
  assert expected - set(names) == set()


@pytest.mark.parametrize(
  "change,message",
  [
    (dict(n=0), "rollout.n must be at least 1, got 0"),
    (dict(temperature=-1.0), "temperature must be 0 .* or at least 0.001, got -1.0"),
    (dict(top_p=0.0), r"rollout.top_p must be in \(0, 1\], got 0.0"),
    (dict(top_k=-1), "rollout.top_k must not be negative, got -1"),
    (dict(feature_layers=(3, 1)), "must be whole numbers in increasing order"),
  ],
)
def test_bad_options_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(BASE, **change)


def test_missing_feature_layers_are_refused(params, prompts):
  config = dataclasses.replace(BASE, feature_layers=(4,))
  with pytest.raises(ValueError, match="0 to 3"):
    rollout.sample(CONFIG, params, prompts, jax.random.key(0), config)
