"""The probe's other regressors: logistic regression and a multi-layer perceptron.

Both are fitted on standardised components, see `probe.fit`. Letters: N rows, L components, H hidden
units. Sources: github.com/holi-lab/POISE, commit 511641e9; arXiv 2605.07579 (v2) Table 12.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from poise_jax.models.products import matmul

LEARNING_RATE = 1e-3  # Adam's learning rate for the mlp
SEED = 42  # seed of the mlp's initial weights
MAX_ITERATIONS = 500  # limit for L-BFGS


def logistic(
  x: Float[Array, "N L"], y: Float[Array, " N"], valid: Bool[Array, " N"], alpha: float
) -> tuple[Float[Array, " L"], Float[Array, ""]]:
  """Coefficients and intercept that minimise cross-entropy / N + alpha / (2 N) |coefficients|^2.

  Runs L-BFGS until the largest gradient is below 1e-6.

  Args:
    x: standardised components.
    y: targets; fractions in [0, 1] are allowed.
    valid: rows that count; N in the formula is their number.
    alpha: penalty.
  """
  total = jnp.maximum(valid.sum(), 1)

  def loss_fn(w):
    odds = matmul(x, w[:-1]) + w[-1]
    loss = jnp.where(valid, jax.nn.softplus(odds) - y * odds, 0.0).sum()
    return (loss + alpha / 2 * (w[:-1] ** 2).sum()) / total

  optimizer = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss_fn)

  def step(carry):
    w, state, _, count = carry
    value, grad = value_and_grad(w, state=state)
    updates, state = optimizer.update(grad, state, w, value=value, grad=grad, value_fn=loss_fn)
    return optax.apply_updates(w, updates), state, jnp.abs(grad).max(), count + 1

  w = jnp.zeros(x.shape[1] + 1, x.dtype)
  start = (w, optimizer.init(w), jnp.float32(jnp.inf), 0)
  w = jax.lax.while_loop(lambda c: (c[2] > 1e-6) & (c[3] < MAX_ITERATIONS), step, start)[0]
  return w[:-1], w[-1]


def mlp(
  x: Float[Array, "N L"],
  y: Float[Array, " N"],
  valid: Bool[Array, " N"],
  widths: tuple[int, ...],
  steps: int,
  alpha: float,
) -> tuple[
  tuple[tuple[Float[Array, "_ _"], Float[Array, " _"]], ...], Float[Array, " H"], Float[Array, ""]
]:
  """Fits a ReLU network by Adam on |prediction - y|^2 / (2 N) + alpha / (2 N) |kernels|^2.

  The loss is that of scikit-learn's MLPRegressor, which the source uses. Every step uses all rows,
  as in the source, whose batches of 8192 rows are larger than its buffer. Initial weights are
  Glorot's with a fixed seed, and biases are zero. All steps are taken, where scikit-learn stops
  once ten of them have improved the loss by less than 1e-4.

  Args:
    x: standardised components.
    y: targets.
    valid: rows that count; N in the formula is their number.
    widths: widths of the hidden layers.
    steps: Adam steps.
    alpha: penalty.

  Returns:
    Hidden layers ((kernel, bias), ...), coefficients and intercept.
  """
  total = jnp.maximum(valid.sum(), 1)
  sizes = (x.shape[1], *widths, 1)
  keys = jax.random.split(jax.random.key(SEED), len(sizes) - 1)
  make = jax.nn.initializers.glorot_normal()
  layers = [
    (make(key, shape, x.dtype), jnp.zeros(shape[1], x.dtype))
    for key, shape in zip(keys, zip(sizes[:-1], sizes[1:], strict=True), strict=True)
  ]

  def loss_fn(layers):
    h = x
    for kernel, bias in layers[:-1]:
      h = jax.nn.relu(matmul(h, kernel) + bias)
    out = (matmul(h, layers[-1][0]) + layers[-1][1])[:, 0]
    squares = jnp.where(valid, (out - y) ** 2, 0.0).sum()
    return (squares + alpha * sum((kernel**2).sum() for kernel, _ in layers)) / (2 * total)

  optimizer = optax.adam(LEARNING_RATE)

  def step(_, carry):
    layers, state = carry
    updates, state = optimizer.update(jax.grad(loss_fn)(layers), state)
    return optax.apply_updates(layers, updates), state

  layers = jax.lax.fori_loop(0, steps, step, (layers, optimizer.init(layers)))[0]
  *hidden, (coef, intercept) = layers
  return tuple(hidden), coef[:, 0], intercept[0]
