"""The probe's features: what is pooled, by the sampler and by a teacher-forced pass alike.

A row of features φ is [prompt block | reasoning block | three entropies] (POISE, arXiv 2605.07579,
section 3.1). A block is the mean of the last k states of its span, for each configured layer; a
state is the residual stream after that block, before the final norm. The entropies are the mean
over the whole response, over its reasoning and over its answer (0 where a span is empty).
Reasoning ends with the first end-of-thinking marker, which belongs to it; without one, with the
response.
"""

import jax
import jax.numpy as jnp

from poise_jax.errors import UserError
from poise_jax.models import ModelConfig, Rows, hidden_states
from poise_jax.rollout.config import RolloutConfig
from poise_jax.types import Rollouts

ENTROPIES = 3


def feature_size(config: ModelConfig, rollout: RolloutConfig) -> int:
  """F, the length of a feature row; 0 without feature layers."""
  layers = len(rollout.feature_layers)
  return 2 * layers * config.hidden_size + ENTROPIES if layers else 0


def check_layers(config: ModelConfig, rollout: RolloutConfig):
  """Raises UserError if a feature layer does not exist."""
  for layer in rollout.feature_layers:
    if not 0 <= layer < config.num_hidden_layers:
      raise UserError(
        f"rollout.feature_layers has {layer}, but the model's blocks are 0 to "
        f"{config.num_hidden_layers - 1}"
      )


def reasoning_mask(tokens: jax.Array, mask: jax.Array, think_end: tuple[int, ...]) -> jax.Array:
  """Which response positions [..., T] bool are reasoning, of tokens and mask [..., T]."""
  if not think_end:
    return mask
  ends_here = jnp.ones_like(mask)
  for back, token in enumerate(reversed(think_end)):
    shifted = jnp.pad(tokens, [(0, 0)] * (tokens.ndim - 1) + [(back, 0)], constant_values=-1)
    ends_here &= shifted[..., : tokens.shape[-1]] == token
  ended_before = jnp.cumsum(ends_here & mask, axis=-1) - (ends_here & mask) > 0
  return mask & ~ended_before


def last_k(mask: jax.Array, k: int) -> jax.Array:
  """Mean weights [..., T] float32 over the last k True positions of mask [..., T]; 0 if none."""
  from_end = jnp.cumsum(mask[..., ::-1], axis=-1)[..., ::-1]
  keep = mask & (from_end <= k)
  return keep / jnp.maximum(keep.sum(-1, keepdims=True), 1).astype(jnp.float32)


def mean_entropies(entropies: jax.Array, mask: jax.Array, reasoning: jax.Array) -> jax.Array:
  """Mean token entropies [..., 3] of response, reasoning and answer, from [..., T] each."""
  spans = jnp.stack([mask, reasoning, mask & ~reasoning], axis=-2)
  total = jnp.where(spans, entropies[..., None, :], 0.0).sum(-1)
  return total / jnp.maximum(spans.sum(-1), 1)


def assemble(prompt: jax.Array, reasoning: jax.Array, entropies: jax.Array) -> jax.Array:
  """Feature rows [P, n, F] float32.

  Args:
    prompt: [layers, P, D] pooled prompt states, shared by the samples of a prompt.
    reasoning: [layers, P, n, D] pooled reasoning states.
    entropies: [P, n, 3].
  """
  layers, p, n, d = reasoning.shape
  prompt = jnp.broadcast_to(prompt[:, :, None], (layers, p, n, d))
  blocks = [jnp.moveaxis(x, 0, 2).reshape(p, n, layers * d) for x in (prompt, reasoning)]
  return jnp.concatenate([*blocks, entropies], axis=-1).astype(jnp.float32)


def features_of(config: ModelConfig, params, rollouts: Rollouts, rollout: RolloutConfig):
  """Features [P, n, F] from a teacher-forced pass over prompt and response; equal to the sampler's.

  Uses the rollouts' entropies as they are. Pools inside the scan over layers: no [B, T, D] state
  outlives its layer. `params` in the training layout.

  Raises:
    UserError: a feature layer does not exist, or none is configured.
  """
  if not rollout.feature_layers:
    raise UserError("rollout.feature_layers is empty: there are no features to compute")
  check_layers(config, rollout)
  p, n, t = rollouts.tokens.shape
  prompts = rollouts.prompts

  def row(prompt, responses):  # [P, Tp], [P, n, T] -> [P, Tp + n T]
    return jnp.concatenate([prompt, responses.reshape(p, n * t)], axis=1)

  rows = Rows(
    row(prompts.tokens, rollouts.tokens),
    row(prompts.mask, rollouts.mask),
    prompt=prompts.tokens.shape[1],
    responses=n,
  )
  reasoning = reasoning_mask(rollouts.tokens, rollouts.mask, rollout.think_end)
  spans = [  # [P n, Tp + T] each
    rows.split(row(prompts.mask, jnp.zeros_like(reasoning))),
    rows.split(row(jnp.zeros_like(prompts.mask), reasoning)),
  ]
  weights = last_k(jnp.stack(spans), rollout.feature_window)
  _, pooled = hidden_states(
    config, params, rows, collect=lambda x: jnp.einsum("sbt,btd->sbd", weights, x)
  )
  pooled = pooled[jnp.array(rollout.feature_layers)]  # [layers, 2, P * n, D]
  pooled = pooled.reshape(len(rollout.feature_layers), 2, p, n, -1)
  entropies = mean_entropies(rollouts.entropies, rollouts.mask, reasoning)
  return assemble(pooled[:, 0, :, 0], pooled[:, 1], entropies)
