"""POISE (arXiv 2605.07579): the baseline is predicted from what the policy computed as it sampled.

A step is `estimate` with the old state, then `update`: predict, then learn. Letters: P prompts, n
samples a prompt, F features, K domains, G groups of a domain in the buffer. Domains that share a
probe (config.domain_probes) are one domain here.

poise_sibling goes a step beyond the paper: its probe also reads the reward of the rollout whose
states it reads. The baseline of y_i comes from its siblings' states and rewards, which are as
independent of y_i as the states alone, so it stays unbiased, and RLOO is a special case.
"""

import dataclasses
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from poise_jax.errors import UserError
from poise_jax.estimators import buffer, probe
from poise_jax.estimators.base import Estimator, EstimatorContext
from poise_jax.estimators.buffer import Buffer
from poise_jax.estimators.probe import ProbeConfig, ProbeState, leave_one_out_targets
from poise_jax.estimators.statistics import explained_variance, noise_ceiling, pearson
from poise_jax.rollout.features import ENTROPIES, feature_size
from poise_jax.types import Estimate, Experience


@flax.struct.dataclass
class State:
  """Everything that POISE carries from step to step."""

  buffer: Buffer
  probes: ProbeState  # one a domain
  fitted: Bool[Array, " K"]  # False until the domain's first fit on enough rows
  step: Int[Array, ""]  # updates done


def make(context: EstimatorContext, reads_reward: bool = False) -> Estimator:
  """The estimator poise or, with `reads_reward`, poise_sibling.

  Raises:
    UserError: rollout.n is 1 and the probe reads a sibling; no hidden states are sampled; or the
      probe or the size of a buffer is given for a domain that does not exist.
  """
  name = "poise_sibling" if reads_reward else "poise"
  config = context.probe
  if context.rollout.n < 2 and (reads_reward or not config.single_rollout):
    raise UserError(
      f"{name} needs sibling rollouts: rollout.n must be at least 2, got {context.rollout.n}; 1 is "
      "for poise with probe.own_rollout or probe.reads=('prompt',)"
    )
  features = feature_size(context.model, context.rollout)
  if not features:
    raise UserError(f"{name} reads hidden states: rollout.feature_layers must not be empty")
  domains, index = config.probes_of(context.domains)
  rows = config.rows_of(domains)
  config = dataclasses.replace(config, scalars=config.scalars + reads_reward)
  width = features + reads_reward
  inputs = functools.partial(_inputs, config.reads, reads_reward, index)
  return Estimator(
    init=lambda params: init(config, context.rollout.n, width, len(domains), rows),
    estimate=functools.partial(_estimate, config, domains, inputs),
    update=functools.partial(_update, config, inputs),
    predict=functools.partial(_predict, config, inputs),
    needs_probabilities=config.model == "logistic",
    predicts_in_unit=True,
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _inputs(reads, reads_reward, index, experience: Experience):
  """What the probe reads: rewards [P, n], features [P, n, F], 0 in parts that are not in `reads`,
  and the index [P] of each prompt's probe, which `index` has for each domain; -1 for padding and
  for a prompt of no known domain."""
  rewards, features = experience.rewards, experience.rollouts.features
  width = (features.shape[-1] - ENTROPIES) // 2
  sizes = (width, width, ENTROPIES)
  features = features * np.repeat([part in reads for part in probe.PARTS], sizes).astype(np.float32)
  if reads_reward:
    features = jnp.concatenate([features, rewards[..., None]], -1)
  known = experience.real_groups & (experience.domains >= 0)
  probes = jnp.array(index)[experience.domains]
  return rewards, features, jnp.where(known, probes, -1)


def _estimate(config, domains, inputs, state, experience) -> Estimate:
  advantages, baselines, _, metrics = estimate(state, *inputs(experience), config)
  return Estimate(advantages, baselines, _named_by_domain(metrics, domains))


@functools.partial(jax.jit, static_argnums=1)
def _named_by_domain(metrics, domains):
  """Metrics of each domain [K] become one metric a domain, if there are several domains."""
  metrics = dict(metrics)
  for name in ("probe/mae", "probe/pearson", "probe/ceiling"):
    values = metrics.pop(f"{name}_by_domain")
    if len(domains) > 1:
      metrics |= {f"{name}/{domain}": values[k] for k, domain in enumerate(domains)}
  return metrics


def _predict(config, inputs, state, experience):
  return predict(state, *inputs(experience)[1:], config)


def _update(config, inputs, state, experience, params, aux):
  del params, aux
  return update(state, *inputs(experience), config)


def cross_rollout_advantages(
  rewards: Float[Array, "P n"], predictions: Float[Array, "P n"]
) -> Float[Array, "P n"]:
  """A_i = r_i - mean_{j != i} g(phi_j) (equations 11-13; for n > 2 as in the released code).

  The baseline of y_i depends on its siblings alone, so the policy gradient stays unbiased. Never
  normalised: a statistic of the batch depends on y_i, and dividing by it would bias the gradient.

  Raises:
    UserError: n < 2.
  """
  return rewards - leave_one_out_targets(predictions)


def init(
  config: ProbeConfig,
  n: int,
  num_features: int,
  num_domains: int = 1,
  rows: Sequence[int] | None = None,
) -> State:
  """An empty buffer and an unfitted probe for each domain.

  Args:
    config: static.
    n: samples a prompt, at least 2 unless config.single_rollout.
    num_features: F.
    num_domains: K; domains are the integers 0 .. K-1.
    rows: rollouts in each domain's buffer. None: config.buffer_rows.

  Raises:
    UserError: n is too small, a buffer is smaller than one group, or `probe.fit` would refuse the
      shapes.
  """
  if not config.single_rollout:
    probe.check_samples(n)
  groups = buffer.empty(rows or config.buffer_rows, n, num_features, num_domains)
  probe.check_shapes(config, groups.targets[0].size, num_features)
  return State(
    buffer=groups,
    probes=probe.unfitted(config, num_features, num_domains),
    fitted=jnp.zeros(num_domains, bool),
    step=jnp.zeros((), jnp.int32),
  )


def targets_of(rewards: Float[Array, "P n"]) -> Float[Array, "P n"]:
  """What a rollout's features are to predict: the mean of its siblings' rewards or, without a
  sibling, its own."""
  return rewards if rewards.shape[1] == 1 else leave_one_out_targets(rewards)


def _without_probe(rewards, real):
  """Baselines [P, n]: RLOO's or, without a sibling, the mean of the batch's other rewards."""
  if rewards.shape[1] > 1:
    return leave_one_out_targets(rewards)
  counted = jnp.where(real[:, None], rewards, 0.0)
  return (counted.sum() - counted) / jnp.maximum(real.sum() - 1, 1)


def _active(state, domains, config):
  """Which prompts [P] have a fitted probe, once the bootstrap is over."""
  return (domains >= 0) & (state.step >= config.bootstrap_steps) & state.fitted[domains]


@functools.partial(jax.jit, static_argnames="config")
def predict(
  state: State, features: Float[Array, "P n F"], domains: Int[Array, " P"], config: ProbeConfig
) -> Float[Array, "P n"]:
  """Reward of a new response to the same prompt, as predicted from each response's features.

  Args: see `estimate`.

  Returns:
    Predictions in units of reward; NaN during the bootstrap, and for prompts without a fitted
    probe.
  """
  active = _active(state, domains, config)
  by_domain = jax.vmap(probe.predict, (0, None))(state.probes, features)  # [K, P, n]
  predictions = by_domain[domains, jnp.arange(len(domains))]
  return jnp.where(active[:, None], predictions, jnp.nan)


@functools.partial(jax.jit, static_argnames="config")
def estimate(
  state: State,
  rewards: Float[Array, "P n"],
  features: Float[Array, "P n F"],
  domains: Int[Array, " P"],
  config: ProbeConfig,
) -> tuple[
  Float[Array, "P n"], Float[Array, "P n"], Float[Array, "P n"], dict[str, Float[Array, "..."]]
]:
  """Advantages of this step's rollouts from the probes of earlier steps.

  A prompt's baseline is the cross-rollout prediction (with config.own_rollout or n = 1 the
  rollout's own) once the bootstrap is over and its domain has a fitted probe, and until then the
  mean of the siblings' rewards (RLOO; with n = 1 of all other rewards of the batch).

  Args:
    state: of the step before.
    rewards: reward of each rollout.
    features: feature rows.
    domains: of the prompts; -1 for padding, which has no influence on other groups and metrics.
    config: static.

  Returns:
    Advantages, baselines and predictions, [P, n] each in units of reward (predictions are 0 where
    no probe is fitted), and metrics: probe/active, the fraction of prompts with a probe's baseline;
    over those prompts, NaN without any, probe/mae and probe/pearson of predictions against
    leave-one-out rewards (one noisy sample of the value, so far below the paper's Avg@8 figures),
    probe/ceiling, the r that a perfect predictor of the value would reach (NaN for n = 1), the same
    for each domain [K] as probe/mae_by_domain, probe/pearson_by_domain and probe/ceiling_by_domain,
    and probe/value, the mean prediction; probe/variance_reduction, 1 - Var(A) / Var(R) of the
    advantages in use (0 if all rewards are equal).
  """
  real = domains >= 0
  active = _active(state, domains, config)
  valid = jnp.broadcast_to(active[:, None], rewards.shape)
  predictions = jnp.where(valid, predict(state, features, domains, config), 0.0)
  targets = targets_of(rewards)
  error = jnp.abs(predictions - targets)
  in_domain = valid & (domains == jnp.arange(len(state.fitted))[:, None])[..., None]  # [K, P, n]
  own = config.own_rollout or rewards.shape[1] == 1
  crossed = predictions if own else leave_one_out_targets(predictions)
  baselines = jnp.where(valid, crossed, _without_probe(rewards, real))
  advantages = rewards - baselines

  counted = jnp.broadcast_to(real[:, None], rewards.shape)
  siblings = max(rewards.shape[1] - 1, 1)  # rewards in a target
  metrics = {
    "probe/active": active.mean(where=real),
    "probe/mae": jnp.mean(error, where=valid),
    "probe/pearson": pearson(predictions, targets, valid),
    "probe/mae_by_domain": jax.vmap(lambda where: jnp.mean(error, where=where))(in_domain),
    "probe/pearson_by_domain": jax.vmap(lambda where: pearson(predictions, targets, where))(
      in_domain
    ),
    "probe/ceiling": noise_ceiling(rewards, active, siblings),
    "probe/ceiling_by_domain": jax.vmap(lambda where: noise_ceiling(rewards, where, siblings))(
      in_domain[..., 0]
    ),
    "probe/value": jnp.mean(predictions, where=valid),
    "probe/variance_reduction": explained_variance(baselines, rewards, counted),
  }
  return advantages, baselines, predictions, metrics


@functools.partial(jax.jit, static_argnames="config")
def update(
  state: State,
  rewards: Float[Array, "P n"],
  features: Float[Array, "P n F"],
  domains: Int[Array, " P"],
  config: ProbeConfig,
) -> State:
  """Appends the step's rollouts to the buffer and refits every domain's probe on its buffer.

  No probe is read during the bootstrap, so the first fit is at its last step. A domain counts as
  unfitted, so that its baseline is RLOO's and probe/active shows it, while its buffer has fewer
  than config.min_rows rows and is not full, and where its fit is not finite (broken features, or an
  alpha below the resolution of float32). Groups of domain -1 are padding.
  """
  data = buffer.insert(state.buffer, features, targets_of(rewards), domains)
  step = state.step + 1
  num_domains, groups, n, num_features = data.features.shape

  def fit_domain(domain):
    filled = jnp.repeat(jnp.arange(groups) < domain.filled, n)
    rows = domain.features.reshape(groups * n, num_features)
    return probe.fit(rows, domain.targets.reshape(-1), config, filled.astype(jnp.float32))

  # Domains one after another: the working memory of a fit is several times its buffer.
  probes = jax.lax.cond(
    step >= config.bootstrap_steps,
    lambda: jax.lax.map(fit_domain, data),
    lambda: state.probes,
  )
  finite = jnp.isfinite(probes.intercept)
  for leaf in jax.tree.leaves(probes):
    finite &= jnp.isfinite(leaf.reshape(num_domains, -1)).all(1)
  enough = data.filled * n >= jnp.minimum(config.min_rows, data.capacity * n)
  fitted = (step >= config.bootstrap_steps) & enough & finite
  return State(buffer=data, probes=probes, fitted=fitted, step=step)
