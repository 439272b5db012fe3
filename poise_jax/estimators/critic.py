"""A critic: a second language model that predicts rewards, for PPO and SPPO.

It starts as a copy of the policy with a value head of zeros, and is sharded and trained like the
policy: the same mesh layout, mini-batches, micro-batches and precision.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from poise_jax.errors import UserError, check_finite
from poise_jax.learner import update as learner
from poise_jax.learner.batching import Batch, map_microbatches, minibatches
from poise_jax.learner.config import UpdateConfig
from poise_jax.learner.micro_batch import MicroBatch
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


def token_values(
  model: ModelConfig,
  params: PyTree[Array],
  batch: Batch,
  micro: MicroBatch,
  config: UpdateConfig,
) -> Float[Array, "B T"]:
  """V_t, the critic's prediction before token t of each response; 0 for the sequences of other
  micro-batches."""
  predicted = values(model, params, batch.rows(micro), config)
  return micro.read(micro.before_tokens(predicted), batch.tokens.shape[1])


@functools.partial(jax.jit, static_argnums=(0, 1))
def microbatch_values(
  model: ModelConfig,
  config: UpdateConfig,
  params: PyTree[Array],
  batch: Batch,
  micro: MicroBatch,
) -> Float[Array, "B T"]:
  """`token_values` as a program."""
  return token_values(model, params, batch, micro, config)


@jax.jit
def prompt_batch(prompts: Prompts, fields: dict[str, Float[Array, "P 1"]]) -> Batch:
  """Prompts as sequences with one more token, before which the critic's value is that of the
  prompt."""
  token = jnp.zeros((len(prompts.tokens), 1), jnp.int32)
  return Batch(prompts, jnp.arange(len(token)), token, token == 0, fields)


def predict(
  model: ModelConfig, params: PyTree[Array], prompts: Prompts, config: UpdateConfig
) -> Float[Array, " P"]:
  """The critic's output at the last token of each prompt, a micro-batch at a time."""
  batch = prompt_batch(prompts, {})
  parts = minibatches(batch, config.minibatch_size, config.microbatch_size)
  return _joined(
    map_microbatches(functools.partial(microbatch_values, model, config, params), parts)
  )


@jax.jit
def _joined(parts):
  return jnp.concatenate(parts)[:, 0]
