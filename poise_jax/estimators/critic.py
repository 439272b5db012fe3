"""A critic: a second language model that predicts rewards, for PPO and SPPO.

It starts as a copy of the policy with a value head of zeros, is laid out over the mesh as the
policy is, and is trained with the policy's mini-batches, micro-batches and precision.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from poise_jax.errors import UserError
from poise_jax.learner import update as learner
from poise_jax.learner.update import UpdateConfig
from poise_jax.models import ModelConfig, Rows, hidden_states
from poise_jax.types import TrainState


@dataclasses.dataclass(frozen=True)
class CriticConfig:
  """Options of the critics; raises UserError on construction for values without a meaning."""

  learning_rate: float = 1e-5  # AdamW's, with the policy's other options
  warmup_steps: int = 0  # optimizer steps of linear warm-up
  pretrain_steps: int = 0  # first steps that train the critic alone (VC-PPO's value pre-training)
  gamma: float = 1.0  # discount a token
  lam: float = 0.95  # of the policy's advantages
  length_alpha: float = 0.0  # VAPO: lam is 1 - 1 / (alpha length) instead; 0 is off
  value_lam: float = 0.95  # of the critic's targets; 1 is the reward that is still to come
  value_clip: float = 0.5  # how far a value may move from the old one before it stops counting
  whiten: bool = True  # advantages get mean 0 and deviation 1 over the batch's tokens

  def __post_init__(self):
    for name in ("gamma", "lam", "value_lam"):
      if not 0 <= getattr(self, name) <= 1:
        raise UserError(f"critic.{name}={getattr(self, name)} must be in [0, 1]")
    for name in ("learning_rate", "warmup_steps", "pretrain_steps", "length_alpha", "value_clip"):
      if getattr(self, name) < 0:
        raise UserError(f"critic.{name}={getattr(self, name)} must not be negative")

  def update(self, policy: UpdateConfig) -> UpdateConfig:
    """The policy's update with the critic's learning rate and warm-up."""
    return dataclasses.replace(
      policy, learning_rate=self.learning_rate, warmup_steps=self.warmup_steps
    )


def init(model: ModelConfig, params: PyTree[Array], config: UpdateConfig) -> TrainState:
  """A critic that starts from the policy's parameters, which are copied, and predicts 0."""

  @jax.jit
  def start(params):
    decoder = {name: x for name, x in params.items() if name != "lm_head"}
    head = {"kernel": jnp.zeros(model.hidden_size), "bias": jnp.zeros(())}
    return {"decoder": jax.tree.map(jnp.copy, decoder), "value_head": head}

  return learner.init(start(params), config)


def values(
  model: ModelConfig, params: PyTree[Array], rows: Rows, config: UpdateConfig
) -> Float[Array, "B L"]:
  """The critic's value at every position of B sequences, from the states up to and including it."""
  decoder = dataclasses.replace(model, tie_word_embeddings=True)  # a critic has no unembedding
  dtype = jnp.dtype(config.dtype)
  hidden, _ = hidden_states(
    decoder, params["decoder"], rows, dtype, config.remat, attention=config.attention
  )
  head = params["value_head"]
  with jax.named_scope("value_head"):
    return hidden.astype(jnp.float32) @ head["kernel"] + head["bias"]
