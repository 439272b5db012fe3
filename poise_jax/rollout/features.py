"""The probe's features, pooled by the sampler and by a teacher-forced pass in the same way.

A feature row φ is [prompt part | reasoning part | three entropies] (POISE, arXiv 2605.07579,
section 3.1). A part is the mean of the last k states of its span, for each feature layer; a state
is the residual stream after the layer, before the final norm. The entropies are means over the
whole response, its reasoning and its answer (0 for an empty span).

Reasoning includes its end-of-thinking marker. As in the released code, the span of the states ends
with the last marker and that of the entropies with the first one; a marker counts whether or not
the response opens the thought, which a prompt may have done. Without a marker both are the whole
response: the entropy of the reasoning is then that of the response, and that of the answer is 0
(the released code has 0 for both).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from poise_jax.errors import UserError
from poise_jax.models import ModelConfig, Rows, hidden_states
from poise_jax.models.products import einsum
from poise_jax.rollout.config import RolloutConfig
from poise_jax.types import Rollouts

ENTROPIES = 3  # number of entropies in a feature row


def feature_size(config: ModelConfig, rollout: RolloutConfig) -> int:
  """Length F of a feature row; 0 without feature layers."""
  layers = len(rollout.feature_layers)
  return 2 * layers * config.hidden_size + ENTROPIES if layers else 0


def at_depth(config: ModelConfig, rollout: RolloutConfig) -> RolloutConfig:
  """The options with the layer that rollout.feature_depth names, if they name no layer."""
  if rollout.feature_layers or not rollout.feature_depth:
    return rollout
  layer = int(rollout.feature_depth * config.num_hidden_layers)
  return dataclasses.replace(rollout, feature_layers=(layer,))


def check_layers(config: ModelConfig, rollout: RolloutConfig) -> None:
  """Raises UserError if a feature layer does not exist."""
  for layer in rollout.feature_layers:
    if not 0 <= layer < config.num_hidden_layers:
      raise UserError(
        f"rollout.feature_layers has {layer}, but the model has layers 0 to "
        f"{config.num_hidden_layers - 1}; set --config.rollout.feature_layers"
      )


def marker_ends(
  tokens: Int[Array, "*rows T"], mask: Bool[Array, "*rows T"], think_end: tuple[int, ...]
) -> Bool[Array, "*rows T"]:
  """At which response positions an end-of-thinking marker ends."""
  ends = mask if think_end else jnp.zeros_like(mask)
  for back, token in enumerate(reversed(think_end)):
    shifted = jnp.pad(tokens, [(0, 0)] * (tokens.ndim - 1) + [(back, 0)], constant_values=-1)
    ends &= shifted[..., : tokens.shape[-1]] == token
  return ends


def until_first(
  ends: Bool[Array, "*rows T"], mask: Bool[Array, "*rows T"]
) -> Bool[Array, "*rows T"]:
  """The response's positions up to its first marker; all of them without one."""
  ended_before = jnp.cumsum(ends, axis=-1) - ends > 0
  return mask & ~ended_before


def until_last(
  ends: Bool[Array, "*rows T"], mask: Bool[Array, "*rows T"]
) -> Bool[Array, "*rows T"]:
  """The response's positions up to its last marker; all of them without one."""
  ends_later = jnp.cumsum(ends[..., ::-1], axis=-1)[..., ::-1] > 0
  return mask & (ends_later | ~ends.any(-1, keepdims=True))


def last_k(mask: Bool[Array, "*rows T"], k: int) -> Float[Array, "*rows T"]:
  """Weights of a mean over the last k True positions of each row, float32; 0 if there are none."""
  from_end = jnp.cumsum(mask[..., ::-1], axis=-1)[..., ::-1]
  last = mask & (from_end <= k)
  return last / jnp.maximum(last.sum(-1, keepdims=True), 1).astype(jnp.float32)


def mean_entropies(
  entropies: Float[Array, "*rows T"],
  mask: Bool[Array, "*rows T"],
  reasoning: Bool[Array, "*rows T"],
) -> Float[Array, "*rows 3"]:
  """Mean token entropies of response, reasoning and answer; 0 for an empty span."""
  spans = jnp.stack([mask, reasoning, mask & ~reasoning], axis=-2)
  total = jnp.where(spans, entropies[..., None, :], 0.0).sum(-1)
  return total / jnp.maximum(spans.sum(-1), 1)


def assemble(
  prompt: Float[Array, "layers P D"],
  reasoning: Float[Array, "layers P n D"],
  entropies: Float[Array, "P n 3"],
) -> Float[Array, "P n F"]:
  """Feature rows, float32.

  Args:
    prompt: pooled prompt states, shared by the samples of a prompt.
    reasoning: pooled reasoning states.
    entropies: means over response, reasoning and answer.
  """
  layers, p, n, d = reasoning.shape
  prompt = jnp.broadcast_to(prompt[:, :, None], (layers, p, n, d))
  blocks = [jnp.moveaxis(x, 0, 2).reshape(p, n, layers * d) for x in (prompt, reasoning)]
  return jnp.concatenate([*blocks, entropies], axis=-1).astype(jnp.float32)


def features_of(
  config: ModelConfig, params: PyTree[Array], rollouts: Rollouts, rollout: RolloutConfig
) -> Float[Array, "P n F"]:
  """Features from a teacher-forced pass over prompts and responses; equal to the sampler's.

  Pools inside the scan over layers: no states [B, T, D] outlive their layer.

  Args:
    config: the decoder's shape.
    params: parameters in the training layout.
    rollouts: prompts and responses; their entropies are used as they are.
    rollout: sampling options.

  Raises:
    UserError: a feature layer does not exist, or none is configured.
  """
  if not rollout.feature_layers:
    raise UserError("rollout.feature_layers is empty; name the layers to pool features from")
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
  ends = marker_ends(rollouts.tokens, rollouts.mask, rollout.think_end)
  reasoning = until_last(ends, rollouts.mask)
  spans = [  # [P n, Tp + T] each
    rows.split(row(prompts.mask, jnp.zeros_like(reasoning))),
    rows.split(row(jnp.zeros_like(prompts.mask), reasoning)),
  ]
  weights = last_k(jnp.stack(spans), rollout.feature_window)

  @jax.named_scope("features")
  def pool(x):
    return einsum("sbt,btd->sbd", weights, x)

  _, pooled = hidden_states(config, params, rows, collect=pool)
  pooled = pooled[jnp.array(rollout.feature_layers)]  # [layers, 2, P * n, D]
  pooled = pooled.reshape(len(rollout.feature_layers), 2, p, n, -1)
  thought = until_first(ends, rollouts.mask)
  entropies = mean_entropies(rollouts.entropies, rollouts.mask, thought)
  return assemble(pooled[:, 0, :, 0], pooled[:, 1], entropies)
