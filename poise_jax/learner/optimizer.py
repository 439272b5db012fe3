"""From a config to optax's optimizer: clipping, the choice of the rule, and the learning rate."""

import functools

import optax

from poise_jax.learner.config import UpdateConfig


def learning_rate(config: UpdateConfig) -> float | optax.Schedule:
  """The learning rate: a number, or a function of the optimizer steps taken before.

  It rises linearly to its peak over the warm-up. Then it is constant or falls to 0 at the run's
  last optimizer step, on a line or on half a period of the cosine.
  """
  peak, warmup = config.learning_rate, config.warmup_steps
  rising = optax.linear_schedule(peak / max(1, warmup), peak, warmup - 1) if warmup else None
  if config.schedule == "constant":
    return rising or peak
  steps = config.optimizer_steps - warmup
  if config.schedule == "linear":
    falling = optax.linear_schedule(peak, 0.0, steps)
  else:
    falling = optax.cosine_decay_schedule(peak, steps)
  return optax.join_schedules([rising, falling], [warmup]) if rising else falling


@functools.cache
def optimizer(config: UpdateConfig) -> optax.GradientTransformation:
  """Clipping by the global norm, then the rule that config.optimizer names.

  Weight decay is decoupled for each rule: a parameter shrinks by rate x decay in a step.
  """
  rate, decay = learning_rate(config), config.weight_decay
  if config.optimizer == "adafactor":
    # optax's own options scale updates by the parameters' size and decay without the learning rate.
    direction = optax.adafactor(None, multiply_by_parameter_scale=False)
    rule = optax.chain(
      direction,
      optax.add_decayed_weights(-decay),
      optax.scale_by_learning_rate(rate, flip_sign=False),
    )
  else:
    mu_dtype = "bfloat16" if config.optimizer == "adamw_bfloat16" else None
    rule = optax.adamw(rate, config.adam_b1, config.adam_b2, mu_dtype=mu_dtype, weight_decay=decay)
  if not config.max_grad_norm:
    return rule
  return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), rule)
