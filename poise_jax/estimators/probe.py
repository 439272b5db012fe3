"""The probe: predicts a prompt's reward from what the policy computed while it sampled a response.

Source: arXiv 2605.07579 (v2) sections 2-3, Algorithm 1, Tables 4 and 5; "v3" is the released code
(github.com/holi-lab/POISE, commit 511641e9). Letters: P prompts, n samples a prompt, N rows (one a
rollout), F features, S scalars, L components after PCA, H hidden units.

A feature row is [prompt block, (F-S)/2 | response block, (F-S)/2 | S scalars (mean entropies)].
"""

import dataclasses
import functools
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from poise_jax.errors import UserError, check_finite, unknown_name
from poise_jax.estimators.regressors import logistic, mlp
from poise_jax.estimators.ridge import principal_components, ridge
from poise_jax.models.products import matmul

PARTS = ("prompt", "response", "entropy")  # parts of a feature row
MODELS = ("ridge", "logistic", "mlp")


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
  """Options of the probe that a user may set; raises UserError for values that cannot work."""

  model: str = "ridge"  # regressor: "ridge", or as an ablation "logistic" or "mlp"
  # penalty on squared coefficients beside the sum (not the mean) of squared errors, as in
  # scikit-learn; logistic: half of it beside the sum of cross-entropies; mlp: all kernels
  alpha: float = 0.01
  mlp_widths: tuple[int, ...] = (64,)  # widths of hidden layers; the paper ablates 1 to 9 of 512
  mlp_steps: int = 1000  # Adam steps on the buffer, from the same initial weights at every refit
  pca_prompt: int = 0  # principal components of the prompt block; 0: the raw block
  pca_response: int = 0  # principal components of the response block; 0: the raw block
  buffer_rows: int = 4096  # rollouts in a domain's buffer, rounded down to whole groups
  # {domain: probe}, for domains that share a probe; all others have one of their own name
  domain_probes: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
  # {probe: rollouts} in its buffer, where they differ from buffer_rows
  domain_buffer_rows: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
  # rollouts in a domain's buffer, or all that it holds, from which its probe replaces RLOO
  min_rows: int = 256
  bootstrap_steps: int = 16  # first steps, which use RLOO while the buffer fills
  reads: tuple[str, ...] = PARTS  # parts of a rollout's features that the probe reads (ablation)
  # ablation: y_i's baseline comes from its own states, and is biased
  own_rollout: bool = False

  def __post_init__(self):
    check_finite("probe", self)
    if not self.alpha > 0:
      raise UserError(f"probe.alpha must be positive, got {self.alpha}")
    for name, least in (
      ("pca_prompt", 0),
      ("pca_response", 0),
      ("buffer_rows", 2),
      ("min_rows", 1),
      ("bootstrap_steps", 0),
      ("mlp_steps", 1),
    ):
      value = getattr(self, name)
      if not isinstance(value, int) or value < least:
        raise UserError(f"probe.{name} must be an integer of at least {least}, got {value!r}")
    for domain, rows in self.domain_buffer_rows.items():
      if not isinstance(rows, int) or rows < 1:
        raise UserError(
          f"probe.domain_buffer_rows of {domain} must be an integer of at least 1, got {rows!r}"
        )
    if self.model not in MODELS:
      raise unknown_name("probe.model", self.model, MODELS)
    if not self.mlp_widths or min(self.mlp_widths) < 1:
      raise UserError(
        f"probe.mlp_widths must be one or more positive widths, got {self.mlp_widths}"
      )
    if not self.reads:
      raise UserError(f"probe.reads must not be empty; choose from {', '.join(PARTS)}")
    for part in self.reads:
      if part not in PARTS:
        raise unknown_name("probe.reads", part, PARTS)

  @property
  def single_rollout(self) -> bool:
    """Whether a baseline needs no sibling: the probe reads the rollout's own states, or the prompt
    alone."""
    return self.own_rollout or set(self.reads) == {"prompt"}

  def probes_of(self, domains: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The names of all probes, and for each domain the index of its probe.

    Raises:
      UserError: domain_probes has a domain that is not among them.
    """
    for name in self.domain_probes:
      if name not in domains:
        raise unknown_name("probe.domain_probes", name, domains)
    probes = [self.domain_probes.get(domain, domain) for domain in domains]
    names = tuple(dict.fromkeys(probes))
    return names, tuple(map(names.index, probes))

  def rows_of(self, probes: tuple[str, ...]) -> tuple[int, ...]:
    """Rollouts in the buffer of each probe.

    Raises:
      UserError: domain_buffer_rows has a probe that is not among them.
    """
    for name in self.domain_buffer_rows:
      if name not in probes:
        raise unknown_name("probe.domain_buffer_rows", name, probes)
    return tuple(self.domain_buffer_rows.get(probe, self.buffer_rows) for probe in probes)


@dataclasses.dataclass(frozen=True)
class ProbeConfig(ProbeOptions):
  """ProbeOptions and what a run derives. Hashable: a static argument under jit."""

  scalars: int = 3  # number S of trailing features that PCA leaves alone


@flax.struct.dataclass
class ProbeState:
  """A fitted probe. PCA and scaler are affine: they are folded into the first affine map.

  A state of K domains has one more axis, K, in front.
  """

  mean: Float[Array, "*K F"]  # subtracted first: features may be far from zero
  # layers of the mlp: (kernel [F or H, H'], bias [H']), each followed by a ReLU; others: ()
  hidden: tuple[tuple[Float[Array, "*K _ _"], Float[Array, "*K _"]], ...]
  coef: Float[Array, "*K _"]  # [F or H], reward per unit of a raw feature or last hidden unit
  intercept: Float[Array, "*K"]  # reward; logistic: coef and intercept give log-odds
  logistic: bool = flax.struct.field(pytree_node=False, default=False)


@functools.partial(jax.jit, static_argnames="config")
def fit(
  features: Float[Array, "N F"],
  targets: Float[Array, " N"],
  config: ProbeConfig,
  weights: Float[Array, " N"] | None = None,
) -> ProbeState:
  """Fits PCA (optional), StandardScaler and ridge with an unpenalised intercept, in that order.

  config.model replaces ridge by another regressor of the released code.

  PCA runs per block on centred raw features and is refitted every time; the scaler then covers
  [prompt components | response components | scalars]. This order is our reading of the released
  code, which stores the projections beside a scaler-and-ridge pipeline. Deviations from the paper:
  none without PCA; with it, exact PCA where the code uses scikit-learn's randomised solver.

  Args:
    features: feature rows φ, see the module docstring.
    targets: rewards of the siblings, see `leave_one_out_targets`.
    config: static.
    weights: 0 or 1; a row of weight 0 (an empty buffer slot) has no influence. None: all 1.

  Raises:
    UserError: more components than min(N, block width).
    ValueError: F does not fit config.scalars.
  """
  width = check_shapes(config, *features.shape)
  features = jnp.asarray(features, jnp.float32)
  valid = jnp.ones(features.shape[0], bool) if weights is None else weights > 0
  total = jnp.maximum(valid.sum(), 1)
  mean, shift, z = _centred(features, valid, total)
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
  hidden, coef, intercept = _regress(design / scale, targets, valid, total, config)

  # The map on standardised components becomes one on raw features.
  kernel, bias = hidden[0] if hidden else (coef[:, None], intercept)
  sizes = [block.shape[1] for block in blocks]
  parts = jnp.split(kernel / scale[:, None], [sizes[0], sizes[0] + sizes[1]])
  for index, basis in bases.items():
    parts[index] = matmul(basis, parts[index])
  kernel = jnp.concatenate(parts)
  bias = bias - matmul(shift, kernel)
  if hidden:
    hidden = ((kernel, bias), *hidden[1:])
  else:
    coef, intercept = kernel[:, 0], bias[0]
  return ProbeState(mean, hidden, coef, intercept, logistic=config.model == "logistic")


def _centred(features, valid, total):
  """Mean [F], the mean of the residuals [F] (rounding errors), and centred features [N, F].

  Invalid rows and constant columns are 0. The mean takes two passes: the probe stores only the
  first, and its intercept absorbs the second.
  """
  rows = valid[:, None]
  # Rounded to three bits less than float32 has: a fused multiply-add of this division and the
  # subtraction below would otherwise subtract another mean than the one that the probe stores.
  mean = jax.lax.reduce_precision(jnp.where(rows, features, 0.0).sum(0) / total, 8, 20)
  z = jnp.where(rows, features - mean, 0.0)
  shift = z.sum(0) / total
  # Exact comparison: a variance of rounding errors would not tell constants. scikit-learn's rule is
  # the same in effect: no float32 column passes its float64 threshold unless all values are equal.
  varies = features.max(0, initial=-jnp.inf, where=rows) > features.min(
    0, initial=jnp.inf, where=rows
  )
  return mean, shift, jnp.where(rows & varies, z - shift, 0.0)


def _regress(design, targets, valid, total, config):
  """Hidden layers, coefficients [L or H] and intercept for standardised rows [N, L]."""
  if config.model == "logistic":
    return (), *logistic(design, targets, valid, config.alpha)
  if config.model == "mlp":
    return mlp(design, targets, valid, config.mlp_widths, config.mlp_steps, config.alpha)
  intercept = jnp.where(valid, targets, 0.0).sum() / total
  return (), ridge(design, jnp.where(valid, targets - intercept, 0.0), config.alpha), intercept


@jax.jit
def predict(state: ProbeState, features: Float[Array, "*rows F"]) -> Float[Array, "*rows"]:
  """Predicted reward of a new rollout of the same prompt, clipped to [0, 1] (Table 4)."""
  x = features - state.mean
  for kernel, bias in state.hidden:
    x = jax.nn.relu(matmul(x, kernel) + bias)
  out = matmul(x, state.coef) + state.intercept
  return jax.nn.sigmoid(out) if state.logistic else jnp.clip(out, 0.0, 1.0)


def unfitted(config: ProbeConfig, num_features: int, num_domains: int) -> ProbeState:
  """Zeros in the shape of a fitted probe for each domain."""
  row = jax.ShapeDtypeStruct((max(config.pca_prompt, config.pca_response, 1), num_features), "f4")
  target = jax.ShapeDtypeStruct(row.shape[:1], "f4")
  one = jax.eval_shape(functools.partial(fit, config=config), row, target)
  return jax.tree.map(lambda leaf: jnp.zeros((num_domains, *leaf.shape), leaf.dtype), one)


def check_shapes(config: ProbeConfig, rows: int, num_features: int) -> int:
  """The width of a block, where the shapes fit the config.

  Raises:
    UserError: more components than min(rows, block width).
    ValueError: num_features does not fit config.scalars.
  """
  width, odd = divmod(num_features - config.scalars, 2)
  if odd or width < 0 or num_features < 1:
    raise ValueError(
      f"a row of {num_features} features is not two equal blocks and {config.scalars} scalars"
    )
  for name in ("pca_prompt", "pca_response"):
    components = getattr(config, name)
    if components > min(rows, width):
      raise UserError(
        f"probe.{name} must be at most min(rows, block width) = min({rows}, {width}), "
        f"got {components}"
      )
  return width


def leave_one_out_targets(rewards: Float[Array, "P n"]) -> Float[Array, "P n"]:
  """Mean of the other samples' values, V_{-i} = 1/(n-1) sum_{j != i} r_j (section 3.1).

  Sums the others rather than subtracting r_i from the total, so that r_i does not enter, not even
  by its rounding.

  Raises:
    UserError: n < 2.
  """
  n = rewards.shape[1]
  check_samples(n)
  return jnp.where(jnp.eye(n, dtype=bool), 0.0, rewards[:, None, :]).sum(-1) / (n - 1)


def check_samples(n: int):
  """Raises UserError where a rollout has no siblings."""
  if n < 2:
    raise UserError(f"POISE needs sibling rollouts: rollout.n must be at least 2, got {n}")
