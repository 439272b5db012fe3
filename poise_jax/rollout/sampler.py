"""The sampler: prefill, decode and pooled features in one jitted program.

A prompt is prefilled once and its cache is shared by its n samples. The decode loop carries, beside
the caches, only the last k states of each row: O(P·n·k·D), never [P, n, T, D]. It runs
in stages over growing caches, because each token reads all of them, filled or not.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from poise_jax.errors import UserError
from poise_jax.models import ModelConfig, sampling_params
from poise_jax.rollout import decode
from poise_jax.rollout.config import RolloutConfig
from poise_jax.rollout.features import (
  assemble,
  check_layers,
  marker_ends,
  mean_entropies,
  until_first,
  until_last,
)
from poise_jax.rollout.prefill import prefill
from poise_jax.types import Prompts, Rollouts


def sample(
  config: ModelConfig,
  params: PyTree[Array],
  prompts: Prompts,
  key: Key[Array, "..."],
  rollout: RolloutConfig,
) -> Rollouts:
  """Samples n responses per prompt, with their log-probs, entropies and features, in one pass.

  Args:
    config: the decoder's shape.
    params: parameters in the training layout or, converted once for several calls, in the sampling
      layout of `models.sampling_params`. The computation runs in their dtype.
    prompts: P prompts, padded on the left.
    key: one key: row r = p * n + i draws its token t with fold_in(fold_in(key, r), t). Or a key per
      prompt, [P]: sample i of prompt p draws with fold_in(fold_in(key[p], i), t), so that its
      tokens do not depend on the rest of the batch.
    rollout: sampling options.

  Raises:
    UserError: a feature layer does not exist, or there are no prompts.
  """
  check_layers(config, rollout)
  if not prompts.tokens.size:
    raise UserError(f"no prompts to sample from: tokens have shape {prompts.tokens.shape}")
  return _sample(config, params, prompts, key, rollout)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _sample(config, params, prompts, key, rollout):
  if not isinstance(params["layers"], list):
    params = sampling_params(config, params, params["norm"]["scale"].dtype)
  row_keys = _row_keys(key, len(prompts.tokens), rollout.n)
  prompt = prefill(config, params, prompts, rollout)
  inputs = decode.inputs(config, params, prompts, prompt, row_keys, rollout)
  step = functools.partial(decode.step, inputs=inputs, config=config, rollout=rollout)
  state = decode.start(prompt.hidden, inputs, config, rollout)
  # The last token is drawn at t = T - 1; feeding it too only serves its state, for the features.
  steps = rollout.max_new_tokens - (0 if rollout.feature_layers else 1)
  for size in stages(rollout.max_new_tokens):
    end = min(size, steps)
    state = jax.lax.while_loop(
      lambda s, end=end: (s.t < end) & decode.any_alive(s),
      step,
      decode.grow(state, size),
    )
  return _rollouts(prompts, prompt.features, state, rollout)


def stages(length: int) -> tuple[int, ...]:
  """How many response positions the caches hold, stage by stage, up to `length`.

  Each stage is compiled on its own, all layers of it, so they are few: doubling up to the length,
  because a batch of short responses should read little, with a stage between half and all of it,
  where a full batch reads most. Decoding 8,192 tokens then reads 1.21 times the positions written
  so far; without that stage 1.33 times. The first stage has 512 positions, below which reading the
  weights dominates; a quarter of the length if that is less; all of it below 64 tokens, which are
  not worth a second stage.
  """
  if length < 64:
    return (length,)
  sizes = [length, 3 * length // 4, length // 2, length // 4]
  while sizes[-1] >= 1024:
    sizes.append(sizes[-1] // 2)
  return tuple(sorted(sizes))


def _row_keys(key, prompts, n) -> Key[Array, " R"]:
  """A key per row, from one key or a key per prompt; see `sample`."""
  if key.ndim:
    key, number = jnp.repeat(key, n), jnp.tile(jnp.arange(n), prompts)
  else:
    key, number = jnp.broadcast_to(key, (prompts * n,)), jnp.arange(prompts * n)
  return jax.vmap(jax.random.fold_in)(key, number)


def _rollouts(prompts, prompt_features, state, rollout) -> Rollouts:
  """The result of a finished decode loop."""
  tokens, mask, logprobs, entropies = (
    a[:, :, : rollout.max_new_tokens]
    for a in (state.tokens, state.mask, state.logprobs, state.entropies)
  )
  features = jnp.zeros((*tokens.shape[:2], 0), jnp.float32)
  if rollout.feature_layers:
    with jax.named_scope("features"):
      ends, total = marker_ends(tokens, mask, rollout.think_end), decode.total(state.window)
      if rollout.think_end:
        total = jnp.where(ends.any(-1, keepdims=True), state.at_marker, total)
      count = jnp.clip(until_last(ends, mask).sum(-1), 1, rollout.feature_window)
      pooled_entropies = mean_entropies(entropies, mask, until_first(ends, mask))
      features = assemble(prompt_features, total / count[..., None], pooled_entropies)
  return Rollouts(
    prompts=prompts,
    tokens=tokens,
    mask=mask,
    logprobs=logprobs,
    entropies=entropies,
    truncated=mask[:, :, -1] & ~decode.is_eos(tokens[:, :, -1], rollout),
    features=features,
  )
