"""What the sampler has produced so far, response by response. Letters: see queue.py."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from poise_jax.models import ModelConfig
from poise_jax.rollout.config import RolloutConfig
from poise_jax.rollout.draw import Drawn, is_eos
from poise_jax.rollout.features import (
  assemble,
  marker_ends,
  mean_entropies,
  until_first,
  until_last,
)
from poise_jax.rollout.queue import Queue, Staged
from poise_jax.rollout.slots import Slots


@flax.struct.dataclass
class Results:
  """Buffers for all N responses of a device."""

  tokens: Int[Array, "N T"]  # int32, pad_id after the end
  counts: Int[Array, " N"]  # tokens drawn
  logprobs: Float[Array, "N T"]  # float32, nats
  entropies: Float[Array, "N T"]  # float32, nats
  prompts: Float[Array, "layers P D"]  # pooled prompt states
  reasoning: Float[Array, "layers N D"]  # sum of the last k states of the reasoning, float32
  starts: Int[Array, " N"]  # decode steps before a response got its slot
  steps: Int[Array, ""]  # decode steps so far
  rows: Int[Array, ""]  # their rows, useful or not


def empty(config: ModelConfig, queue: Queue, rollout: RolloutConfig) -> Results:
  """Buffers without a token."""
  p, n = queue.keys.shape
  layers = len(rollout.feature_layers)
  zeros = jnp.zeros((p * n, rollout.max_new_tokens))
  return Results(
    tokens=jnp.full(zeros.shape, rollout.pad_id, jnp.int32),
    counts=jnp.zeros(p * n, jnp.int32),
    logprobs=zeros,
    entropies=zeros,
    prompts=jnp.zeros((layers, p, config.hidden_size)),
    reasoning=jnp.zeros((layers, p * n, config.hidden_size)),
    starts=jnp.zeros(p * n, jnp.int32),
    steps=jnp.int32(0),
    rows=jnp.int32(0),
  )


def write(
  results: Results,
  response: Int[Array, " R"],
  t: Int[Array, " R"],
  more: Bool[Array, " R"],
  drawn: Drawn,
) -> Results:
  """Enters what was drawn as token t of a response, in the rows where `more` is set."""
  place = jnp.where(more, response, len(results.counts))  # beyond the end: not written

  def put(buffer, x):
    return buffer.at[place, t].set(x.astype(buffer.dtype), mode="drop")

  tokens, logprobs, entropies = drawn
  return results.replace(
    tokens=put(results.tokens, tokens),
    counts=results.counts.at[place].set(t + 1, mode="drop"),
    logprobs=put(results.logprobs, logprobs),
    entropies=put(results.entropies, entropies),
  )


def begin(results: Results, response: Int[Array, " R"], chosen: Bool[Array, " R"]) -> Results:
  """Enters that the responses in the chosen slots begin with the next decode step."""
  place = jnp.where(chosen, response, len(results.counts))  # beyond the end: not written
  return results.replace(starts=results.starts.at[place].set(results.steps, mode="drop"))


@jax.named_scope("features")
def keep_prompts(results: Results, staged: Staged) -> Results:
  """Enters the pooled states of the prompts that were prefilled."""
  put = jax.lax.dynamic_update_slice_in_dim
  return results.replace(prompts=put(results.prompts, staged.features, staged.first, axis=1))


@jax.named_scope("features")
def keep_windows(results: Results, slots: Slots) -> Results:
  """Enters the pooled states of all responses in slots, before others move in."""
  window = slots.window
  total = window.states.astype(jnp.float32).sum(2)
  total = jnp.where(window.has_marker[:, None], window.at_marker, total)
  reasoning = results.reasoning.at[:, slots.response].set(total, mode="drop")
  return results.replace(reasoning=reasoning)


def fields(results: Results, n: int, rollout: RolloutConfig) -> dict[str, Array]:
  """The fields of types.Rollouts [P, n, ...], without the prompts."""
  by_prompt = {
    name: getattr(results, name).reshape(-1, n, *getattr(results, name).shape[1:])
    for name in ("tokens", "counts", "logprobs", "entropies")
  }
  tokens, counts = by_prompt["tokens"], by_prompt.pop("counts")
  mask = jnp.arange(tokens.shape[2]) < counts[..., None]
  last = jnp.take_along_axis(tokens, counts[..., None] - 1, axis=2)[..., 0]
  features = jnp.zeros((*counts.shape, 0))
  if rollout.feature_layers:
    with jax.named_scope("features"):
      ends = marker_ends(tokens, mask, rollout.think_end)
      pooled = jnp.clip(until_last(ends, mask).sum(-1), 1, rollout.feature_window)
      reasoning = results.reasoning.reshape(-1, *counts.shape, results.reasoning.shape[-1])
      entropies = mean_entropies(by_prompt["entropies"], mask, until_first(ends, mask))
      features = assemble(results.prompts, reasoning / pooled[..., None], entropies)
  return by_prompt | {
    "mask": mask,
    "truncated": ~is_eos(last, rollout),
    "features": features,
    "decode_rows": jnp.full(counts.shape, results.rows / counts.size),
    "decode_starts": results.starts.reshape(counts.shape),
  }
