"""Options that cannot work together, found before an hour of compute is spent."""

from poise_jax import estimators
from poise_jax.distributed import sharding
from poise_jax.errors import UserError
from poise_jax.estimators import Estimator
from poise_jax.training.collect import CollectConfig

MESH = "the mesh's data x fsdp"  # devices that split a batch


def sizes(config, mesh):
  """Raises UserError for all sizes that cannot work, before an hour of compute is spent."""
  problems = []
  for name in ("steps", "eval_every", "max_skipped_updates", "reference_n"):
    if config[name] < 1:
      problems.append(f"{name} must be at least 1, got {config[name]}")
  n, shards, train = config.rollout.n, sharding.batch_shards(mesh), config.train
  for name, size, divisor_name, divisor in (
    ("rollouts", config.rollouts, "rollout.n", n),
    ("rollouts", config.rollouts, "train.minibatch_size", train.minibatch_size),
    ("train.minibatch_size", train.minibatch_size, "train.microbatch_size", train.microbatch_size),
    ("prompts per step (rollouts / rollout.n)", config.rollouts / n if n else 0, MESH, shards),
    ("train.microbatch_size", train.microbatch_size, MESH, shards),
    ("eval_batch", config.eval_batch, MESH, shards),
  ):
    whole = size == int(size)  # prompts are not whole if rollouts are no multiple of n: said above
    if size < 1 or divisor < 1 or (whole and size % divisor):
      problems.append(
        f"{name} must be a positive multiple of {divisor_name}={divisor}, got {int(size)}"
      )
  if problems:
    raise UserError("; ".join(problems))
  if config.rollout.temperature == 0:
    raise UserError(
      "rollout.temperature must be greater than 0 for training: at 0 all responses to a prompt are "
      "the same"
    )
  if config.rollout.top_p < 1 or config.rollout.top_k:
    reason = "needs rollout.top_p=1 and rollout.top_k=0: the sampler's log-probs serve as old ones"
    if train.old_logprobs == "sampler":
      raise UserError(
        f"train.old_logprobs='sampler' {reason}, and the loss's ratio is between full "
        "distributions; use 'recompute'"
      )
    if config.collect.dynamic_sampling:
      raise UserError(
        f"collect.dynamic_sampling {reason} for groups carried over from earlier steps, and the "
        "loss's ratio is between full distributions; eval.top_p is free"
      )


def options(config, estimator, reward, collect):
  """Raises UserError for options that would do something else than they promise."""
  for option in ("dynamic_sampling", "greso_target"):
    if getattr(collect, option) and not estimator.needs_spread:
      raise UserError(
        f"collect.{option} discards groups of equal rewards, from which estimator "
        f"{config.estimator!r} learns too; it works with {', '.join(estimators.group.GROUP)}"
      )
  if estimator.needs_probabilities and (reward.kl_coef or reward.overlong_buffer):
    raise UserError(
      f"estimator {config.estimator!r} takes rewards for probabilities, so they must be in [0, 1]: "
      "set reward.kl_coef and reward.overlong_buffer to 0"
    )


def why_bounded(name: str, estimator: Estimator, collect: CollectConfig) -> str:
  """Why a run's rewards must be in [0, 1], as the end of a sentence; empty if they need not be."""
  way_out = "rescale them, or train with one that takes any reward, such as rloo, grpo or ppo"
  if estimator.needs_probabilities or estimator.predicts_in_unit:
    return (
      f"estimator {name!r} predicts rewards between 0 and 1, as all of poise, spo and sppo do: "
      f"{way_out}"
    )
  if collect.greso_target:
    return f"collect.greso_target tells easy from hard prompts by rewards from 0 to 1: {way_out}"
  return ""
