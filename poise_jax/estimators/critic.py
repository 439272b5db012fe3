"""A critic: a second language model that predicts rewards, for PPO and SPPO.

It starts as a copy of the policy with a value head of zeros, and is sharded and trained like the
policy: the same mesh layout, mini-batches, micro-batches and precision.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from poise_jax.errors import UserError, check_finite
from poise_jax.learner import update as learner
from poise_jax.learner.batching import map_microbatches
from poise_jax.learner.update import UpdateConfig
from poise_jax.models import ModelConfig, Rows, hidden_states
from poise_jax.models.products import matmul
from poise_jax.types import Prompts, TrainState


@dataclasses.dataclass(frozen=True)
class CriticConfig:
  """Options of the critics; raises UserError for values that cannot work."""

  learning_rate: float = 1e-5  # AdamW's learning rate; its other options are the policy's
  warmup_steps: int = 0  # optimizer steps of linear warm-up
  pretrain_steps: int = 0  # first steps, which train the critic alone (VC-PPO)
  gamma: float = 1.0  # discount a token
  lam: float = 0.95  # GAE's lambda for the policy's advantages
  length_alpha: float = 0.0  # VAPO's alpha: lam is 1 - 1 / (alpha length) instead; 0: unused
  value_lam: float = 0.95  # GAE's lambda for the critic's targets; 1: the reward to go
  value_clip: float = 0.5  # clip range of a value around its old value; 0: no clipping
  whiten: bool = True  # scaling of advantages to mean 0 and deviation 1 over the batch's tokens

  def __post_init__(self):
    check_finite("critic", self)
    for name in ("gamma", "lam", "value_lam"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f"critic.{name} must be in [0, 1], got {getattr(self, name)}")
    for name in ("learning_rate", "warmup_steps", "pretrain_steps", "length_alpha", "value_clip"):
      if getattr(self, name) < 0:
        raise UserError(f"critic.{name} must not be negative, got {getattr(self, name)}")

  def update(self, policy: UpdateConfig) -> UpdateConfig:
    """The policy's update with the critic's learning rate and warm-up."""
    return dataclasses.replace(
      policy, learning_rate=self.learning_rate, warmup_steps=self.warmup_steps
    )


def init(model: ModelConfig, params: PyTree[Array], config: UpdateConfig) -> TrainState:
  """The state of a critic that starts from a copy of the policy's parameters and predicts 0."""

  @jax.jit
  def start(params):
    decoder = {name: x for name, x in params.items() if name != "lm_head"}
    head = {"kernel": jnp.zeros(model.hidden_size), "bias": jnp.zeros(())}
    return {"decoder": jax.tree.map(jnp.copy, decoder), "value_head": head}

  return learner.init(start(params), config)


def values(
  model: ModelConfig, params: PyTree[Array], rows: Rows, config: UpdateConfig
) -> Float[Array, "B L"]:
  """The critic's value at each position of B sequences, which reads the tokens up to it."""
  decoder = dataclasses.replace(model, tie_word_embeddings=True)  # a critic has no lm_head
  dtype = jnp.dtype(config.dtype)
  hidden, _ = hidden_states(
    decoder, params["decoder"], rows, dtype, config.remat, attention=config.attention
  )
  head = params["value_head"]
  with jax.named_scope("value_head"):
    return matmul(hidden.astype(jnp.float32), head["kernel"]) + head["bias"]


def prompt_values(
  model: ModelConfig, params: PyTree[Array], prompts: Prompts, config: UpdateConfig
) -> Float[Array, " P"]:
  """The critic's output at the last token of each prompt: its value before a response begins."""
  return values(model, params, Rows(prompts.tokens, prompts.mask), config)[:, -1]


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def predict(
  model: ModelConfig, params: PyTree[Array], prompts: Prompts, config: UpdateConfig, n: int
) -> Float[Array, " P"]:
  """`prompt_values` of a whole batch, a micro-batch of groups of n at a time."""
  size = math.gcd(len(prompts.tokens), max(config.microbatch_size // n, 1))
  return map_microbatches(lambda x: prompt_values(model, params, x, config), prompts, size)
