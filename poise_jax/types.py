"""The values that flow through a training step. Letters: P prompts, n samples a prompt, T response
positions, Tp prompt positions, D model width, F features, V vocabulary, L layers."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class Prompts:
  """Tokenised prompts, padded on the left so that every response starts at the same position."""

  tokens: jax.Array  # [P, Tp] int32
  mask: jax.Array  # [P, Tp] bool, False on padding


@flax.struct.dataclass
class Rollouts:
  """What the policy said, and what it knew while it said it."""

  prompts: Prompts
  tokens: jax.Array  # [P, n, T] int32, pad_id after the end
  mask: jax.Array  # [P, n, T] bool, by position: the EOS token counts, what follows it does not
  logprobs: jax.Array  # [P, n, T] float32, nats, of the distribution that was sampled from
  entropies: jax.Array  # [P, n, T] float32, nats, full softmax at the sampling temperature
  truncated: jax.Array  # [P, n] bool, no EOS within the limit
  features: jax.Array  # [P, n, F] float32, see rollout/features.py


@flax.struct.dataclass
class TrainState:
  """Everything an optimizer step reads and writes."""

  step: jax.Array  # [] int32, optimizer steps taken
  params: Any  # float32 master weights in the training layout: stacked by layer
  opt_state: Any
