"""A decode step called alone: a loop over it in Python gives the sampler's rollouts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import models, rollout
from poise_jax.rollout import RolloutConfig, decode, queue, results, slots
from poise_jax.types import Prompts

CONFIG = models.ModelConfig("qwen3", 40, 32, 48, 1, 4, 2, 8, qk_norm=True, rope_theta=1e4)
OPTIONS = RolloutConfig(
  n=2, max_new_tokens=6, top_k=8, eos_ids=(1, 2, 3), feature_layers=(0,), feature_window=3
)
PROMPTS = Prompts(
  tokens=jnp.arange(15).reshape(3, 5) + 4, mask=jnp.arange(5) >= jnp.array([[0], [2], [4]])
)
KEY = jax.random.key(3)
ROWS = 4  # slots for 6 responses


@pytest.fixture(scope="module")
def params():
  """Parameters in the sampling layout; kernels are large enough for tokens to differ."""
  init = jax.tree.map(lambda x: 4 * x, models.init(CONFIG, jax.random.key(0)))
  return models.sampling_params(CONFIG, init)


@jax.jit
def start(params):
  """What the steps read, all prompts staged, and free slots."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(6)).reshape(3, 2)
  responses = queue.make(PROMPTS, keys, OPTIONS)
  staged = queue.stage(CONFIG, params, responses, jnp.int32(0), 3, OPTIONS)
  state = decode.DecodeState(
    slots=slots.empty(CONFIG, responses, ROWS, jnp.float32, OPTIONS),
    results=results.empty(CONFIG, responses, OPTIONS),
  )
  return decode.inputs(CONFIG, params, responses, OPTIONS), staged, state


step = jax.jit(functools.partial(decode.step, config=CONFIG, rollout=OPTIONS))
refill = jax.jit(functools.partial(slots.refill, rollout=OPTIONS))


def transposed(text, kernel):
  """The instructions of a compiled program's text that make the transposed matrix of a kernel."""
  out, features = kernel.reshape(-1, kernel.shape[-1]).shape
  return re.findall(rf"= f32\[{features},{out}\]\S* (copy|transpose|fusion)\(", text)


def test_a_step_makes_no_transposed_copy_of_a_kernel(params):
  """As XLA for CPUs does of a kernel that a product takes with more than two axes: a third of the
  time of a step with 64 rows."""
  inputs, _, state = start(params)
  text = step.lower(state, inputs).compile().as_text()
  kernels = [x for x in jax.tree.leaves(params["layers"]) if x.ndim > 1]
  assert len(kernels) == 5
  for kernel in kernels:
    assert not transposed(text, kernel), kernel.shape
  wide = max(kernels, key=lambda x: x.ndim)
  assert wide.ndim == 4
  product = jax.jit(lambda x, kernel: jnp.tensordot(x, kernel, (-1, -1)))
  text = product.lower(jnp.zeros((ROWS, 32)), wide).compile().as_text()
  assert transposed(text, wide) == ["fusion"]


def test_steps_in_a_python_loop_give_the_samplers_rollouts(params):
  """Slots are refilled as soon as one is free, by hand."""
  inputs, staged, state = start(params)
  following, first = 0, np.asarray(staged.drawn[0])
  tokens = [[int(token)] for token in first]
  while following < 6 or state.slots.alive.any():
    filled, chosen = refill(state.slots, inputs.queue, staged, jnp.int32(following))
    taken = np.asarray(filled.response)[np.asarray(chosen)].tolist()
    assert taken == list(range(following, following + len(taken)))
    following += len(taken)
    before = state.replace(slots=filled)
    state = step(before, inputs)
    for r in np.nonzero(state.slots.drawn > before.slots.drawn)[0]:
      tokens[int(filled.response[r])].append(int(state.slots.token[r]))
  expected = rollout.sample(CONFIG, params, PROMPTS, KEY, OPTIONS)
  assert 0.2 < expected.mask.mean() < 1  # some responses end early
  rows = zip(np.concatenate(expected.tokens), np.concatenate(expected.mask), strict=True)
  assert tokens == [row[mask].tolist() for row, mask in rows]


def test_a_free_slot_changes_nothing(params):
  inputs, staged, state = start(params)
  filled, chosen = refill(state.slots, inputs.queue, staged, jnp.int32(4))
  assert chosen.tolist() == [True, True, False, False]  # responses 4 and 5 are the last ones
  assert filled.response.tolist() == [4, 5, 6, 6]
  after = step(state.replace(slots=filled), inputs)
  assert after.slots.alive[2:].tolist() == [False, False]
  assert after.slots.length.tolist() == [2, 2, 0, 0]  # a prompt of one token, and the first drawn
  assert not after.slots.window.states[:, 2:].any() and after.slots.window.states[:, :2, 0].all()
  assert not after.results.counts[:4].any()


def test_a_response_in_a_slot_is_not_moved_by_a_refill(params):
  inputs, staged, state = start(params)
  filled, _ = refill(state.slots, inputs.queue, staged, jnp.int32(0))
  one_free = filled.replace(alive=filled.alive.at[1].set(False))
  again, chosen = refill(one_free, inputs.queue, staged, jnp.int32(4))
  assert chosen.tolist() == [False, True, False, False]
  assert again.response.tolist() == [0, 4, 2, 3]
  for name in ("token", "length", "drawn"):
    before, after = getattr(filled, name), getattr(again, name)
    np.testing.assert_array_equal(after[jnp.array([0, 2, 3])], before[jnp.array([0, 2, 3])])
