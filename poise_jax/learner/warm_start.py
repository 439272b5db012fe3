"""Supervised warm start on worked answers, so that some responses earn a reward."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from poise_jax.data.prompts import PromptEncoder
from poise_jax.data.tasks import Example
from poise_jax.errors import UserError, check_finite
from poise_jax.learner.batching import Batch, accumulate, minibatches
from poise_jax.learner.config import UpdateConfig
from poise_jax.learner.losses import token_weights
from poise_jax.learner.update import response_logprobs
from poise_jax.models import ModelConfig, Tokenizer

REPORT_EVERY = 20  # steps


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
  """Options of `warm_start`; raises UserError for values that cannot work."""

  steps: int = 0  # optimizer steps; 0: no warm start
  batch_size: int = 128  # worked answers an optimizer step
  learning_rate: float = 3e-3  # peak of a cosine decay to a tenth, after a tenth of warm-up

  def __post_init__(self):
    check_finite("warm_start", self)
    if self.steps < 0:
      raise UserError(f"warm_start.steps must not be negative, got {self.steps}")
    if self.batch_size < 1:
      raise UserError(f"warm_start.batch_size must be at least 1, got {self.batch_size}")


def warm_start(
  model: ModelConfig,
  params: PyTree[Array],
  encoder: PromptEncoder,
  examples: Sequence[Example],
  response_length: int,
  config: WarmStartConfig,
  seed: int,
  report: Callable[[int, float], None],
) -> PyTree[Array]:
  """Trains on worked answers by maximum likelihood (token mean, Adam without weight decay).

  Args:
    model: the decoder's shape.
    params: parameters in the training layout; donated.
    encoder: encoder of prompts.
    examples: training examples, drawn at random with replacement.
    response_length: T in tokens.
    config: optimizer steps, batch size, learning rate.
    seed: seed of the draws.
    report: called with (step, loss) every REPORT_EVERY steps and after the last one.

  Returns:
    The trained parameters.

  Raises:
    UserError: a worked answer is too long, see `worked_ids`.
  """
  warm_up = config.steps // 10
  rate = config.learning_rate
  schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm_up, config.steps, rate / 10)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.0)
  )
  opt_state = optimizer.init(params)  # not under jit, see update.init
  rng = np.random.default_rng(seed)

  @functools.partial(jax.jit, donate_argnums=0)
  def gradient(total, params, batch, micro):
    def loss_fn(params):
      logprobs, _ = response_logprobs(model, params, batch, micro, UpdateConfig())
      mask = batch.mask & micro.inside
      loss = -jnp.where(mask, token_weights(batch.mask, "token-mean") * logprobs, 0.0).sum()
      return loss, loss

    new, loss = jax.grad(loss_fn, has_aux=True)(params)
    return jax.tree.map(jnp.add, total, new), loss

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def optimizer_step(params, opt_state, grads):
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  for i in range(config.steps):
    drawn = [examples[j] for j in rng.integers(len(examples), size=config.batch_size)]
    batch = jax.device_put(_batch(encoder, drawn, response_length))
    (part,) = minibatches(batch, config.batch_size, config.batch_size)
    grads, loss = accumulate(gradient, params, part)
    params, opt_state = optimizer_step(params, opt_state, grads)
    if (i + 1) % REPORT_EVERY == 0 or i + 1 == config.steps:
      report(i + 1, float(loss))
  return params


def worked_ids(tokenizer: Tokenizer, example: Example, length: int) -> list[int]:
  """Token ids of a worked answer, with the EOS.

  Raises:
    UserError: the ids are more than `length`.
  """
  ids = [*tokenizer.encode(example.worked), tokenizer.eos_ids[0]]
  if len(ids) > length:
    raise UserError(
      f"the worked answer {example.worked!r} has {len(ids)} tokens with its EOS, "
      f"more than rollout.max_new_tokens={length}"
    )
  return ids


def _batch(encoder, examples, length):
  """Prompts and worked answers."""
  prompts, tokenizer = encoder(examples), encoder.tokenizer
  tokens = np.full((len(examples), length), tokenizer.pad_id, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, example in enumerate(examples):
    ids = worked_ids(tokenizer, example, length)
    tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
  return Batch(prompts, np.arange(len(examples)), tokens, mask, {})
