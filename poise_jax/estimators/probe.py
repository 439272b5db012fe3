"""POISE: the baseline is a ridge probe on what the policy computed while it sampled.

Source: arXiv 2605.07579 (v2) sections 2-3, Algorithm 1, Tables 4 and 5; "v3" is the released code
(github.com/holi-lab/POISE, commit 511641e9). One step is `estimate` with the old state, then
`update`: predict, then learn. Letters: P prompts, n samples a prompt, F features, K domains,
N = G * n buffer rows, G groups (a group is the n rollouts of one prompt).

A feature row is [prompt block, (F-S)/2 | response block, (F-S)/2 | S scalars (mean entropies)].
"""

import dataclasses
import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from poise_jax.errors import UserError, unknown_name
from poise_jax.estimators.regressors import logistic, mlp
from poise_jax.estimators.ridge import matmul, principal_components, ridge

PARTS = ("prompt", "response", "entropy")  # of a feature row
MODELS = ("ridge", "logistic", "mlp")


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
  """Options of the probe that a user may set; raises UserError for values out of range."""

  model: str = "ridge"  # "ridge", or as an ablation "logistic" or "mlp"
  # penalty on squared coefficients beside the sum (not the mean) of squared errors, as in
  # scikit-learn; logistic: half of it beside the sum of cross-entropies; mlp: not used
  alpha: float = 0.01
  mlp_widths: tuple[int, ...] = (64,)  # hidden layers; the paper ablates 1 to 9 of width 512
  mlp_steps: int = 1000  # Adam steps on the buffer, from the same first weights at every refit
  pca_prompt: int = 0  # principal components of the prompt block; 0: the raw block
  pca_response: int = 0  # principal components of the response block; 0: the raw block
  buffer_rows: int = 4096  # rollouts remembered per domain, rounded down to whole groups
  bootstrap_steps: int = 16  # first steps that use RLOO while the buffer fills
  reads: tuple[str, ...] = PARTS  # ablation: which parts of a rollout's features the probe sees
  own_rollout: bool = False  # ablation: y_i's baseline from its own states, which is biased

  def __post_init__(self):
    if not (math.isfinite(self.alpha) and self.alpha > 0):
      raise UserError(f"probe.alpha={self.alpha} must be positive and finite")
    for name, least in (
      ("pca_prompt", 0),
      ("pca_response", 0),
      ("buffer_rows", 2),
      ("bootstrap_steps", 0),
      ("mlp_steps", 1),
    ):
      value = getattr(self, name)
      if not isinstance(value, int) or value < least:
        raise UserError(f"probe.{name}={value!r} must be an integer of at least {least}")
    if self.model not in MODELS:
      raise unknown_name("probe.model", self.model, MODELS)
    if not self.mlp_widths or min(self.mlp_widths) < 1:
      raise UserError(f"probe.mlp_widths={self.mlp_widths} must be positive widths, at least one")
    if not self.reads or set(self.reads) - set(PARTS):
      raise UserError(
        f"probe.reads={tuple(self.reads)} must name some of {', '.join(PARTS)}, and nothing else"
      )


@dataclasses.dataclass(frozen=True)
class ProbeConfig(ProbeOptions):
  """ProbeOptions and what a run derives. Hashable: a static argument under jit."""

  scalars: int = 3  # S, trailing features that PCA leaves alone


# v2: Table 4. The paper does not say what its first probe was fitted on; here RLOO fills the buffer
# for the 4 steps that 4096 rows take at its 512 prompts x 2. v3: Qwen3-4B in the released code.
PRESETS = {
  "v2": ProbeOptions(alpha=0.01, buffer_rows=4096, bootstrap_steps=4),
  "v3": ProbeOptions(
    alpha=100.0, pca_prompt=32, pca_response=64, buffer_rows=4096, bootstrap_steps=16
  ),
}


@flax.struct.dataclass
class ProbeState:
  """A fitted probe. PCA and scaler are affine: they are part of the first affine map."""

  mean: jax.Array  # [F] float32, subtracted first: features may sit far from zero
  hidden: tuple  # of the mlp's layers: (kernel [F or H, H'], bias [H']), each followed by a ReLU
  coef: jax.Array  # [F or H] float32, reward per unit of raw feature, or of the last hidden layer
  intercept: jax.Array  # [] float32, reward; logistic: both are of its log-odds
  logistic: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class Buffer:
  """The last G groups of every domain, a ring: the j-th group ever seen sits in slot j mod G."""

  features: jax.Array  # [K, G, n, F] float32
  targets: jax.Array  # [K, G, n] float32, leave-one-out rewards
  count: jax.Array  # [K] int32, groups ever inserted


@flax.struct.dataclass
class State:
  """All that POISE carries from step to step."""

  buffer: Buffer
  probes: ProbeState  # leaves stacked over domains: [K, ...]
  fitted: jax.Array  # [K] bool, False until the domain's first fit on data
  step: jax.Array  # [] int32, updates done


def _check_shapes(config: ProbeConfig, rows: int, num_features: int) -> int:
  """Returns the width of the prompt block; raises UserError when config and shapes disagree."""
  width, odd = divmod(num_features - config.scalars, 2)
  if odd or width < 0 or num_features < 1:
    raise UserError(
      f"a row of {num_features} features is not two equal blocks and {config.scalars} scalars"
    )
  for name in ("pca_prompt", "pca_response"):
    components = getattr(config, name)
    if components > min(rows, width):
      raise UserError(
        f"probe.{name}={components} exceeds min(rows, block width) = min({rows}, {width})"
      )
  return width


@functools.partial(jax.jit, static_argnames="config")
def fit(
  features: Float[Array, "N F"],
  targets: Float[Array, " N"],
  config: ProbeConfig,
  weights: Float[Array, " N"] | None = None,
) -> ProbeState:
  """Fits PCA (optional), StandardScaler and ridge with an unpenalised intercept, in that order.

  config.model puts one of the released code's other regressors in the place of ridge.

  PCA runs per block on centred raw features and is refitted every time; the scaler then covers
  [prompt components | response components | scalars]. The order is our reading of the released
  code, which stores the projections beside a scaler-and-ridge pipeline. Deviations from the paper:
  none without PCA; with it, exact PCA where the code uses scikit-learn's randomised solver.

  Args:
    features: [N, F] rows phi, see the module docstring.
    targets: [N] rewards of the siblings, see `leave_one_out_targets`.
    config: static.
    weights: [N] 0 or 1; a row with 0 (an empty buffer slot) has no influence. None: all 1.

  Raises:
    UserError: F does not fit config.scalars, or more components than min(N, block width).
  """
  width = _check_shapes(config, *features.shape)
  features = jnp.asarray(features, jnp.float32)
  keep = jnp.ones(features.shape[0], bool) if weights is None else weights > 0
  total = jnp.maximum(keep.sum(), 1)
  rows = keep[:, None]

  # Two-pass mean. Only the first is stored: the intercept absorbs the second, a rounding error.
  mean = jnp.where(rows, features, 0.0).sum(0) / total
  z = jnp.where(rows, features - mean, 0.0)
  shift = z.sum(0) / total
  # By exact comparison, for a variance of rounding errors tells nothing. It is scikit-learn's rule
  # as well, whose float64 threshold no float32 column passes unless all its values are equal.
  varies = features.max(0, initial=-jnp.inf, where=rows) > features.min(
    0, initial=jnp.inf, where=rows
  )
  z = jnp.where(rows & varies, z - shift, 0.0)

  blocks = jnp.split(z, [width, 2 * width], axis=1)
  bases = {}
  for index, components in enumerate((config.pca_prompt, config.pca_response)):
    if components:
      bases[index] = principal_components(blocks[index], components)
      blocks[index] = matmul(blocks[index], bases[index])
  design = jnp.concatenate(blocks, axis=1)
  scale = jnp.sqrt((design**2).sum(0) / total)
  scale = jnp.where(scale > 0, scale, 1.0)

  targets = jnp.asarray(targets, jnp.float32)
  design, hidden = design / scale, ()
  if config.model == "ridge":
    intercept = jnp.where(keep, targets, 0.0).sum() / total
    coef = ridge(design, jnp.where(keep, targets - intercept, 0.0), config.alpha)
  elif config.model == "logistic":
    coef, intercept = logistic(design, targets, keep, config.alpha)
  else:
    hidden, coef, intercept = mlp(design, targets, keep, config.mlp_widths, config.mlp_steps)

  # The map on standardised components becomes one on raw features.
  first, bias = hidden[0] if hidden else (coef[:, None], intercept)
  sizes = [block.shape[1] for block in blocks]
  parts = jnp.split(first / scale[:, None], [sizes[0], sizes[0] + sizes[1]])
  for index, basis in bases.items():
    parts[index] = matmul(basis, parts[index])
  first = jnp.concatenate(parts)
  bias = bias - matmul(shift, first)
  if hidden:
    hidden = ((first, bias), *hidden[1:])
  else:
    coef, intercept = first[:, 0], bias[0]
  return ProbeState(mean, hidden, coef, intercept, logistic=config.model == "logistic")


@jax.jit
def predict(state: ProbeState, features: Float[Array, "*rows F"]) -> Float[Array, "*rows"]:
  """Predicted reward of a fresh rollout of the same prompt, clipped to [0, 1] (Table 4)."""
  x = features - state.mean
  for kernel, bias in state.hidden:
    x = jax.nn.relu(matmul(x, kernel) + bias)
  out = matmul(x, state.coef) + state.intercept
  return jax.nn.sigmoid(out) if state.logistic else jnp.clip(out, 0.0, 1.0)


def _check_samples(n: int) -> None:
  """Raises UserError when a rollout has no siblings."""
  if n < 2:
    raise UserError(f"POISE needs siblings, at least n=2 samples a prompt, got n={n}")


def leave_one_out_targets(rewards: Float[Array, "P n"]) -> Float[Array, "P n"]:
  """Mean of the other samples' values, V_{-i} = 1/(n-1) sum_{j != i} r_j (section 3.1).

  Sums the others rather than subtracting r_i from the total, so that not even rounding lets r_i in.

  Raises:
    UserError: n < 2.
  """
  n = rewards.shape[1]
  _check_samples(n)
  return jnp.where(jnp.eye(n, dtype=bool), 0.0, rewards[:, None, :]).sum(-1) / (n - 1)


def cross_rollout_advantages(
  rewards: Float[Array, "P n"], predictions: Float[Array, "P n"]
) -> Float[Array, "P n"]:
  """A_i = r_i - mean_{j != i} g(phi_j) (equations 11-13; for n > 2 as in the released code).

  The baseline of y_i depends on its siblings alone, so the policy gradient stays unbiased. Never
  normalised: dividing by a statistic of the batch would make it depend on y_i after all.

  Raises:
    UserError: n < 2.
  """
  return rewards - leave_one_out_targets(predictions)


def init(config: ProbeConfig, n: int, num_features: int, num_domains: int = 1) -> State:
  """An empty buffer and an unfitted probe per domain.

  Args:
    config: static.
    n: samples a prompt, at least 2.
    num_features: F.
    num_domains: K; domains are the integers 0 .. K-1.

  Raises:
    UserError: n < 2, a buffer smaller than one group, or shapes that `fit` would refuse.
  """
  _check_samples(n)
  groups = config.buffer_rows // n
  if groups < 1:
    raise UserError(f"probe.buffer_rows={config.buffer_rows} holds no group of n={n} rollouts")
  _check_shapes(config, groups * n, num_features)
  return State(
    buffer=Buffer(
      features=jnp.zeros((num_domains, groups, n, num_features), jnp.float32),
      targets=jnp.zeros((num_domains, groups, n), jnp.float32),
      count=jnp.zeros(num_domains, jnp.int32),
    ),
    probes=_unfitted(config, num_domains, num_features),
    fitted=jnp.zeros(num_domains, bool),
    step=jnp.zeros((), jnp.int32),
  )


def _unfitted(config, num_domains, num_features):
  """Zeros in the shape of a fitted probe per domain."""
  row = jax.ShapeDtypeStruct((max(config.pca_prompt, config.pca_response, 1), num_features), "f4")
  target = jax.ShapeDtypeStruct(row.shape[:1], "f4")
  one = jax.eval_shape(functools.partial(fit, config=config), row, target)
  return jax.tree.map(lambda leaf: jnp.zeros((num_domains, *leaf.shape), leaf.dtype), one)


@jax.jit
def insert(
  buffer: Buffer,
  features: Float[Array, "P n F"],
  targets: Float[Array, "P n"],
  domains: Int[Array, " P"],
) -> Buffer:
  """Appends P groups in order, each to its domain, evicting that domain's oldest groups.

  domains: [P] in 0 .. K-1; a group of any other domain is dropped.
  """
  num_domains, groups = buffer.targets.shape[:2]
  member = domains[:, None] == jnp.arange(num_domains)
  arrivals = member.sum(0)
  order = jnp.where(member, jnp.cumsum(member, axis=0) - 1, 0).sum(1)  # rank within its domain
  kept = member.any(1) & (order >= arrivals[domains] - groups)  # the last G, when more arrive
  slot = jnp.where(kept, (buffer.count[domains] + order) % groups, groups)
  return Buffer(
    features=buffer.features.at[domains, slot].set(features, mode="drop"),
    targets=buffer.targets.at[domains, slot].set(targets, mode="drop"),
    count=buffer.count + arrivals,
  )


def _pearson(x: Array, y: Array, where: Array) -> Array:
  """Correlation over selected entries: 0 if a side is constant, NaN if nothing is selected."""
  dx = jnp.where(where, x - jnp.mean(x, where=where), 0.0)
  dy = jnp.where(where, y - jnp.mean(y, where=where), 0.0)
  spread = [
    v.max(initial=-jnp.inf, where=where) - v.min(initial=jnp.inf, where=where) for v in (x, y)
  ]
  constant = (spread[0] == 0) | (spread[1] == 0)  # exactly: deviations carry rounding errors
  norms = jnp.linalg.norm(dx) * jnp.linalg.norm(dy)
  return jnp.where(constant, 0.0, (dx * dy).sum() / norms)


@functools.partial(jax.jit, static_argnames="config")
def estimate(
  state: State,
  rewards: Float[Array, "P n"],
  features: Float[Array, "P n F"],
  domains: Int[Array, " P"],
  config: ProbeConfig,
) -> tuple[Float[Array, "P n"], Float[Array, "P n"], Float[Array, "P n"], dict[str, Array]]:
  """Advantages of this step's rollouts from the probes of earlier steps.

  A prompt's baseline is the cross-rollout prediction (with config.own_rollout that of the rollout
  itself) once the bootstrap is over and its domain has a fitted probe, and the mean of the
  siblings' rewards (RLOO) until then.

  Returns:
    advantages, baselines and predictions, [P, n] each in units of reward (predictions are 0 where
    no probe spoke), and metrics: probe/active, the fraction of prompts with a probe baseline;
    over those, NaN without any, probe/mae and probe/pearson of predictions against leave-one-out
    rewards (one noisy sample of the value, so far below the paper's Avg@8 figures), the same [K]
    as probe/mae_of_domain and probe/pearson_of_domain, and
    probe/value, the mean prediction; probe/variance_reduction, 1 - Var(A) / Var(R) of the
    advantages really used (0 if all rewards are equal).

  Raises:
    UserError: n < 2.
  """
  active = (state.step >= config.bootstrap_steps) & state.fitted[domains]
  rows = jnp.broadcast_to(active[:, None], rewards.shape)
  of_domains = jax.vmap(predict, (0, None))(state.probes, features)  # [K, P, n]
  predictions = of_domains[domains, jnp.arange(len(domains))]
  predictions = jnp.where(rows, predictions, 0.0)
  targets = leave_one_out_targets(rewards)
  error = jnp.abs(predictions - targets)
  of_domain = rows & (domains == jnp.arange(len(state.fitted))[:, None])[..., None]  # [K, P, n]
  crossed = predictions if config.own_rollout else leave_one_out_targets(predictions)
  baselines = jnp.where(rows, crossed, targets)
  advantages = rewards - baselines

  varied = rewards.max() > rewards.min()
  variance = jnp.where(varied, rewards.var(), 1.0)
  metrics = {
    "probe/active": active.mean(),
    "probe/mae": jnp.mean(error, where=rows),
    "probe/pearson": _pearson(predictions, targets, rows),
    "probe/mae_of_domain": jax.vmap(lambda where: jnp.mean(error, where=where))(of_domain),
    "probe/pearson_of_domain": jax.vmap(lambda where: _pearson(predictions, targets, where))(
      of_domain
    ),
    "probe/value": jnp.mean(predictions, where=rows),
    "probe/variance_reduction": jnp.where(varied, 1.0 - advantages.var() / variance, 0.0),
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

  During the bootstrap nothing would read a probe, so the first fit is at its last step. A domain
  whose fit is not finite (broken features, or an alpha below what float32 can tell from zero)
  counts as unfitted: it runs on RLOO, and probe/active says so.

  Raises:
    UserError: n < 2.
  """
  buffer = insert(state.buffer, features, leave_one_out_targets(rewards), domains)
  step = state.step + 1
  num_domains, groups, n, num_features = buffer.features.shape

  def fit_domain(domain: Buffer) -> ProbeState:
    filled = jnp.repeat(jnp.arange(groups) < domain.count, n)
    rows = domain.features.reshape(groups * n, num_features)
    return fit(rows, domain.targets.reshape(-1), config, filled.astype(jnp.float32))

  # Domains one after another: the working memory of a fit is several times its buffer.
  probes = jax.lax.cond(
    step >= config.bootstrap_steps,
    lambda: jax.lax.map(fit_domain, buffer),
    lambda: state.probes,
  )
  finite = jnp.isfinite(probes.intercept)
  for leaf in jax.tree.leaves(probes):
    finite &= jnp.isfinite(leaf.reshape(num_domains, -1)).all(1)
  fitted = (step >= config.bootstrap_steps) & (buffer.count > 0) & finite
  return State(buffer=buffer, probes=probes, fitted=fitted, step=step)
