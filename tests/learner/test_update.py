"""One update: results that must not depend on how it is computed, and effects that it must have.

Adam's first step is about the learning rate times the sign of each gradient, so rounding noise in a
gradient near zero moves its parameter by up to twice the learning rate, and no tolerance on
parameters distinguishes that from an error. Updates are therefore compared by all gradients, which
are the optimizer's first moments (mu = (1 - b1) gradient after one step), within 1e-5 of the
gradient's norm; and by those parameters whose gradient is well above that noise.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from poise_jax import models, rollout
from poise_jax.learner import batching, plan, update
from poise_jax.learner.losses import PolicyLossConfig
from poise_jax.learner.update import UpdateConfig
from poise_jax.rollout import RolloutConfig
from poise_jax.types import Experience, Prompts

MODEL = models.ModelConfig(
  "qwen3", 67, 32, 48, 2, 4, 2, 8, qk_norm=True, tie_word_embeddings=True, rope_theta=1e5
)
P, N, TP, T = 4, 2, 5, 6
SAMPLING = RolloutConfig(n=N, max_new_tokens=T, temperature=0.7, eos_ids=tuple(range(12)), pad_id=5)
BASE = UpdateConfig(
  loss=PolicyLossConfig(0.2, 0.28, 10.0),
  minibatch_size=8,
  microbatch_size=8,
  temperature=0.7,
  learning_rate=1e-4,
  max_grad_norm=0.0,
  logprob_chunk=16,
)


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(lambda x: 3 * x, models.init(MODEL, jax.random.key(0)))


@pytest.fixture(scope="module")
def rollouts(params):
  tokens = jax.random.randint(jax.random.key(1), (P, TP), 12, MODEL.vocab_size)
  mask = jnp.arange(TP) >= jnp.array([2, 0, 3, 1])[:, None]
  out = rollout.sample(
    MODEL, params, Prompts(tokens=tokens, mask=mask), jax.random.key(2), SAMPLING
  )
  lengths = np.asarray(out.mask.sum(-1))
  assert lengths.min() < 3 and lengths.max() == T  # ragged, or the denominators are not tested
  return out


@pytest.fixture(scope="module")
def advantages():
  return jax.random.normal(jax.random.key(3), (P, N))


def experience(rollouts, age=()):
  """The update reads rollouts and age alone."""
  p, n, t = rollouts.tokens.shape
  ids = jnp.zeros(p, jnp.int32)
  return Experience(rollouts, jnp.zeros((p, n)), jnp.zeros((p, n, t)), ids, ids, age)


def initial(params, config):
  """The state before an update, which donates it: the parameters are copied."""
  return update.init(jax.tree.map(jnp.copy, params), config)


def run(params, rollouts, advantages, age=(), groups=None, **changes):
  """One update from initial optimizer moments."""
  config = dataclasses.replace(BASE, **changes)
  state, metrics = update.step(
    MODEL, config, initial(params, config), experience(rollouts, age), advantages, groups=groups
  )
  return state, {k: float(v) for k, v in metrics.items()}


def adam(state):
  return optax.tree_utils.tree_get(state.opt_state, "ScaleByAdamState")


def gradients(state):
  assert int(state.step) == 1
  return jax.tree.map(lambda mu: np.asarray(mu) / (1 - BASE.adam_b1), adam(state).mu)


def assert_same_update(a, b):
  """(state, metrics) of two single optimizer steps."""
  compared, total = 0, 0
  noise = 1e-5 * b[1]["policy/grad_norm"]
  for g, h, x, y in zip(
    *map(jax.tree.leaves, (gradients(a[0]), gradients(b[0]), a[0].params, b[0].params)), strict=True
  ):
    np.testing.assert_allclose(g, h, atol=noise)
    large = np.abs(h) > 10 * noise
    compared, total = compared + large.sum(), total + large.size
    np.testing.assert_allclose(np.asarray(x)[large], np.asarray(y)[large], atol=1e-5)
  assert compared > 0.3 * total
  assert set(a[1]) == set(b[1])
  for name in set(a[1]) - {"update/useful_positions"}:  # what passes differ in
    assert abs(a[1][name] - b[1][name]) < 1e-5 * max(1, abs(b[1][name])), name


def sequence_logprobs(params, rollouts, config=BASE):
  """Log-probs [P n, T] under `params` by log_softmax of all logits, an independent oracle."""
  out = models.forward(
    MODEL,
    params,
    jnp.concatenate(
      [jnp.repeat(rollouts.prompts.tokens, N, 0), rollouts.tokens.reshape(-1, T)], axis=1
    ),
    jnp.concatenate(
      [jnp.repeat(rollouts.prompts.mask, N, 0), rollouts.mask.reshape(-1, T)], axis=1
    ),
  )
  log_p = jax.nn.log_softmax(out.logits[:, -T - 1 : -1] / config.temperature)
  return jnp.take_along_axis(log_p, rollouts.tokens.reshape(-1, T, 1), axis=-1)[..., 0]


@pytest.fixture(scope="module")
def whole(params, rollouts, advantages):
  return run(params, rollouts, advantages)


def test_metrics_of_an_update(rollouts, advantages, whole):
  mask = np.asarray(rollouts.mask)
  tokens = mask.sum()
  metrics = whole[1]
  # With ratios of one the token-mean loss is minus the mean advantage of the tokens.
  expected = -(mask * np.asarray(advantages)[..., None]).sum() / tokens
  assert metrics["policy/loss"] == pytest.approx(expected, abs=1e-5)
  entropy = np.asarray(rollouts.entropies)[mask].mean()
  assert metrics["policy/entropy"] == pytest.approx(entropy, abs=1e-4)
  norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients(whole[0]))))
  assert norm > 0.1
  assert metrics["policy/grad_norm"] == pytest.approx(norm, rel=1e-5)
  assert metrics["policy/clip_fraction"] == metrics["policy/dual_clip_fraction"] == 0
  assert abs(metrics["policy/kl"]) < 1e-6


@pytest.mark.parametrize("size", [1, 2, 4])
def test_any_microbatch_size_gives_the_same_update(params, rollouts, advantages, whole, size):
  assert_same_update(run(params, rollouts, advantages, microbatch_size=size), whole)


@pytest.mark.parametrize("kind,size", [("packed", 1), ("packed", 4), ("shared", 2), ("shared", 8)])
def test_passes_of_any_shape_give_the_same_update(
  params, rollouts, advantages, whole, monkeypatch, kind, size
):
  """Rows of several sequences in several widths, and rows of a prompt and its responses."""
  monkeypatch.setattr(plan, "LEAST_POSITIONS", 4)
  made, shapes = getattr(plan, kind), set()

  def only(lengths, microbatch_size, shards):
    result = made(lengths, microbatch_size // shards * (TP + T), shards)
    shapes.update((m.rows, m.width, m.responses) for m in result.micro_batches)
    return result

  monkeypatch.setattr(batching, "plan", only)
  assert_same_update(run(params, rollouts, advantages, microbatch_size=size), whole)
  assert len(shapes) > 1 or kind == "shared"
  assert {responses for *_, responses in shapes} == {1 if kind == "packed" else N}


def test_useful_positions_of_an_update(params, rollouts, whole):
  prompts = np.asarray(rollouts.prompts.mask).sum() * N
  assert 0.5 < whole[1]["update/useful_positions"] <= 1
  _, metrics = run(params, rollouts, jnp.zeros((P, N)), microbatch_size=1)
  tokens = prompts + np.asarray(rollouts.mask).sum()
  assert tokens / (P * N * (TP + T)) < metrics["update/useful_positions"] <= 1


def test_an_empty_response_in_a_microbatch_of_its_own(params, rollouts, advantages):
  empty = rollouts.replace(mask=rollouts.mask.at[1, 0].set(False))
  a, b = (run(params, empty, advantages, microbatch_size=size) for size in (1, 8))
  assert_same_update(a, b)


def test_sampler_logprobs_serve_as_old_logprobs(params, rollouts, advantages, whole):
  assert_same_update(run(params, rollouts, advantages, old_logprobs="sampler"), whole)


def test_old_logprobs_are_those_from_before_the_first_optimizer_step(params, rollouts, advantages):
  changes = dict(minibatch_size=4, microbatch_size=2, learning_rate=3e-3)
  other = rollouts.replace(logprobs=rollouts.logprobs - 0.3)  # must not be read
  state, metrics = run(params, other, advantages, **changes)
  assert int(state.step) == int(adam(state).count) == 2
  assert 1e-4 < metrics["policy/kl"]  # the second mini-batch is off-policy
  # The same with old log-probs computed here, from the weights before the update.
  old = sequence_logprobs(params, rollouts).reshape(P, N, T)
  manual = rollouts.replace(logprobs=old)
  _, expected = run(params, manual, advantages, old_logprobs="sampler", **changes)
  for name in set(metrics) - {"rollout/mismatch_kl"}:
    assert metrics[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name


def test_two_minibatches_are_two_updates_in_order(params, rollouts, advantages):
  """Each half alone, one after the other, with the same old log-probs."""
  changes = dict(minibatch_size=4, microbatch_size=2, learning_rate=3e-3, old_logprobs="sampler")
  both, both_metrics = run(params, rollouts, advantages, **changes)
  config = dataclasses.replace(BASE, **changes)
  state, metrics = initial(params, config), []
  for half in (slice(0, P // 2), slice(P // 2, P)):
    part = experience(jax.tree.map(lambda x, half=half: x[half], rollouts))
    state, m = update.step(MODEL, config, state, part, advantages[half])
    metrics.append(m)
  for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(a, b)
  first, second = ({k: float(v) for k, v in m.items()} for m in metrics)
  assert second["rollout/mismatch_kl"] > 10 * first["rollout/mismatch_kl"]
  for name, value in both_metrics.items():
    mean = (first[name] + second[name]) / 2
    expected = first[name] if name == "rollout/mismatch_kl" else mean
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-7), name


def test_an_advantage_a_token_is_that_of_its_sequence_if_all_are_equal(
  params, rollouts, advantages, whole
):
  tokens = jnp.broadcast_to(advantages[..., None], (P, N, T))
  assert_same_update(run(params, rollouts, tokens), whole)
  other = tokens.at[:, :, 1].add(1.0)
  assert run(params, rollouts, other)[1]["policy/grad_norm"] != whole[1]["policy/grad_norm"]


def test_groups_of_earlier_steps_have_the_log_probs_of_the_policy_that_sampled_them(
  params, rollouts, advantages, whole
):
  """Half of the groups come from another policy, and their ratios are relative to it."""
  age = jnp.array([0, 2, 0, 1])
  carried = rollouts.replace(logprobs=rollouts.logprobs - 0.1 * (age > 0)[:, None, None])
  _, metrics = run(params, carried, advantages, age=age)
  mask = np.asarray(rollouts.mask)
  share = mask[[1, 3]].sum() / mask.sum()
  expected = share * (np.exp(0.1) - 1 - 0.1)  # k3 of a log-ratio of 0.1 there and 0 elsewhere
  assert metrics["policy/kl"] == pytest.approx(expected, rel=1e-3)
  assert_same_update(run(params, rollouts, advantages, age=0 * age), whole)


def test_mismatch_kl_leaves_out_groups_of_earlier_steps(params, rollouts, advantages):
  """In one mini-batch, and where the first mini-batch has no other groups."""
  far = rollouts.replace(logprobs=rollouts.logprobs - 0.5)
  near = rollouts.replace(logprobs=rollouts.logprobs - 0.1)
  mixed = jax.tree.map(lambda a, b: jnp.concatenate([a[: P // 2], b[P // 2 :]]), far, near)
  age = jnp.array([1, 3, 0, 0])
  two = dict(minibatch_size=4, microbatch_size=2, old_logprobs="sampler")
  for changes, rel in (({}, 1e-3), (two, 0.2)):  # in the second one the policy has moved
    _, metrics = run(params, mixed, advantages, age=age, **changes)
    assert metrics["rollout/mismatch_kl"] == pytest.approx(np.exp(0.1) - 1 - 0.1, rel=rel)


def test_clipped_optimizer_steps_are_counted(params, rollouts, advantages, whole):
  assert whole[1]["policy/grad_clipped"] == 0  # without a limit
  changes = dict(minibatch_size=4, microbatch_size=4, max_grad_norm=1e-3)
  scaled = advantages * jnp.array([1.0, 1.0, 1e-5, 1e-5])[:, None]
  assert run(params, rollouts, scaled, **changes)[1]["policy/grad_clipped"] == 0.5


def test_a_minibatch_without_tokens_changes_nothing(params, rollouts, advantages):
  """Not even by momentum; it is not counted as skipped."""
  changes = dict(minibatch_size=4, microbatch_size=2, old_logprobs="sampler")
  config = dataclasses.replace(BASE, **changes)
  state, _ = update.step(MODEL, config, initial(params, config), experience(rollouts), advantages)
  before = jax.tree.map(jnp.copy, state)
  filtered = rollouts.replace(mask=jnp.zeros_like(rollouts.mask))
  state, metrics = update.step(MODEL, config, state, experience(filtered), advantages)
  for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(a, b)
  assert np.isnan(metrics["policy/loss"]) and metrics["policy/skipped_updates"] == 0
  half = rollouts.replace(mask=rollouts.mask.at[: P // 2].set(False))
  _, metrics = update.step(MODEL, config, state, experience(half), advantages)
  assert np.isfinite(metrics["policy/grad_norm"]) and metrics["policy/entropy"] > 0


def test_minibatches_of_padding_are_skipped(params, rollouts, advantages):
  changes = dict(minibatch_size=4, microbatch_size=2)
  empty = rollouts.replace(mask=rollouts.mask.at[P // 2 :].set(False))
  state, metrics = run(params, empty, advantages, groups=P // 2 - 1, **changes)
  part = jax.tree.map(lambda x: x[: P // 2], rollouts)
  expected, expected_metrics = run(params, part, advantages[: P // 2], **changes)
  assert int(state.step) == 1
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(a, b)
  assert metrics == pytest.approx(expected_metrics)


def test_mismatch_kl_sees_weights_that_differ(params, rollouts, advantages, whole):
  assert abs(whole[1]["rollout/mismatch_kl"]) < 1e-6
  keys = iter(jax.random.split(jax.random.key(4), 100))
  other = jax.tree.map(lambda x: x + 0.01 * jax.random.normal(next(keys), x.shape), params)
  _, metrics = run(other, rollouts, advantages)
  mask = np.asarray(rollouts.mask).reshape(-1, T)
  new = np.asarray(sequence_logprobs(other, rollouts), np.float64)
  d = (new - np.asarray(rollouts.logprobs).reshape(-1, T))[mask]
  expected = (np.exp(d) - 1 - d).mean()
  assert expected > 1e-3
  assert metrics["rollout/mismatch_kl"] == pytest.approx(expected, rel=1e-3)


def gradient_program(params, rollouts, advantages, **changes):
  """The first micro-batch's program, lowered."""
  config = dataclasses.replace(BASE, **changes)
  part, *_ = update.policy_minibatches(MODEL, config, params, experience(rollouts), advantages)
  part = part.with_fields(weights=jnp.ones(part.batch.mask.shape))
  total, micro = jax.tree.map(jnp.zeros_like, params), part.plan.micro_batches[0]
  return update.microbatch_gradient.lower(MODEL, config, total, params, part.batch, micro)


def test_no_buffer_of_all_logits(params, rollouts, advantages, optimized):
  v = MODEL.vocab_size
  lowered = functools.partial(gradient_program, params, rollouts, advantages, microbatch_size=4)
  forbidden = []
  for batch in (2, 4, 8):
    for time in (T, T + 1, TP + T, TP + 2 * T):
      forbidden += [f"[{batch},{time},{v}]", f"[{batch * time},{v}]", f"[{v},{batch * time}]"]
  chunk = 10  # of 28 tokens: three equal chunks of as many tokens as no batch above has
  text = lowered(logprob_chunk=chunk).compile().as_text()
  assert not [shape for shape in forbidden if shape in text]
  assert f"[{chunk},{v}]" in text
  # The test detects one chunk of all tokens. (Lowered only: compiling it takes seconds.)
  rows = re.findall(rf"tensor<(\d+)x{v}xf32>", lowered(logprob_chunk=99).as_text())
  assert max(map(int, rows)) >= 4 * (T + 1)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_does_not_change_the_update(params, rollouts, advantages, whole, remat):
  assert_same_update(run(params, rollouts, advantages, remat=remat), whole)


def test_groups_of_one_with_the_same_sequences_give_the_same_update(
  params, rollouts, advantages, whole
):
  flat = jax.tree.map(lambda x: x.reshape(P * N, 1, *x.shape[2:]), rollouts.replace(prompts=None))
  flat = flat.replace(prompts=jax.tree.map(lambda x: jnp.repeat(x, N, 0), rollouts.prompts))
  assert_same_update(run(params, flat, advantages.reshape(-1, 1)), whole)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_advantage_moves_its_response_in_its_direction(params, rollouts, sign):
  advantages = jnp.zeros((P, N)).at[2, 1].set(sign)
  state, _ = run(params, rollouts, advantages)
  row = 2 * N + 1
  mask = np.asarray(rollouts.mask).reshape(-1, T)[row]
  before = np.asarray(sequence_logprobs(params, rollouts))[row][mask].sum()
  after = np.asarray(sequence_logprobs(state.params, rollouts))[row][mask].sum()
  assert sign * (after - before) > 1e-3


def test_warm_up_and_weight_decay_reach_the_parameters(params, rollouts):
  """Without advantages the gradient is zero, and only decay moves a parameter."""
  rate, decay = 0.1, 0.5
  state, metrics = run(
    params, rollouts, jnp.zeros((P, N)), learning_rate=rate, weight_decay=decay, warmup_steps=4
  )
  assert metrics["policy/learning_rate"] == pytest.approx(rate / 4)
  for new, old in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
    np.testing.assert_allclose(new, old * (1 - rate / 4 * decay), rtol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(params, rollouts, advantages):
  with pytest.raises(ValueError, match="4 prompts x 2 samples are 8 .*train.minibatch_size=3"):
    run(params, rollouts, advantages, minibatch_size=3, microbatch_size=3)


def test_the_kl_pulls_towards_the_reference(params, rollouts):
  """Without advantages only the KL moves parameters; the reference is not donated."""
  reference, batch = jax.tree.map(lambda x: 1.1 * x, params), experience(rollouts)
  loss = PolicyLossConfig(kl_coef=1.0, kl_estimator="k2")
  config = dataclasses.replace(BASE, loss=loss)
  state, distances = initial(params, config), []
  for _ in range(4):
    state, metrics = update.step(MODEL, config, state, batch, jnp.zeros((P, N)), reference)
    distances.append(float(metrics["policy/reference_kl"]))
    norm = float(metrics["policy/grad_norm"])
  assert distances[0] > 1e-3 and distances == sorted(distances, reverse=True)
  assert distances[-1] < 0.9 * distances[0]
  _, metrics = update.step(MODEL, config, initial(params, config), batch, jnp.zeros((P, N)), params)
  assert float(metrics["policy/reference_kl"]) < 1e-10
  assert float(metrics["policy/grad_norm"]) < 1e-3 * norm


def test_the_entropy_bonus_raises_entropy(params, rollouts):
  config = dataclasses.replace(BASE, loss=PolicyLossConfig(entropy_coef=1.0), learning_rate=1e-3)
  state, entropies = initial(params, config), []
  for _ in range(3):
    state, metrics = update.step(MODEL, config, state, experience(rollouts), jnp.zeros((P, N)))
    entropies.append(float(metrics["policy/entropy"]))
  assert entropies[0] < entropies[1] < entropies[2]


def test_importance_weights_are_bounded(params, rollouts, advantages):
  """The sampler reports 1 / e times the probability of each token: the weight is min(e, cap)."""
  off = rollouts.replace(logprobs=jnp.where(rollouts.mask, rollouts.logprobs - 1.0, 0.0))
  norms = {}
  for cap in (0.0, 2.0, 9.0):
    config = dataclasses.replace(BASE, loss=PolicyLossConfig(importance_cap=cap))
    _, metrics = update.step(MODEL, config, initial(params, config), experience(off), advantages)
    norms[cap] = float(metrics["policy/grad_norm"])
  np.testing.assert_allclose(norms[2.0] / norms[0.0], 2.0, rtol=1e-4)
  np.testing.assert_allclose(norms[9.0] / norms[0.0], np.e, rtol=1e-3)


@pytest.mark.parametrize("level", ["sequence", "geometric", "token"])
def test_rejected_tokens_are_as_if_they_were_not_sampled(params, rollouts, advantages, level):
  """The sampler reports e^-3 times the probability of two responses, or of their last tokens."""
  mask = np.array(rollouts.mask)
  wild = np.zeros_like(mask)
  wild[[0, 2], [1, 0]] = mask[[0, 2], [1, 0]]
  if level == "token":
    wild &= np.arange(T) == mask.sum(-1, keepdims=True) - 1
  off = rollouts.replace(logprobs=jnp.where(wild, rollouts.logprobs - 3.0, rollouts.logprobs))
  loss = dataclasses.replace(BASE.loss, rejection=level)
  state, metrics = run(params, off, advantages, loss=loss)
  assert metrics.pop("rollout/rejected_fraction") == pytest.approx(wild.sum() / mask.sum())
  expected = run(params, rollouts.replace(mask=jnp.asarray(mask & ~wild)), advantages)
  assert_same_update((state, metrics), expected)


def test_a_step_that_is_not_finite_changes_only_the_counts(params, rollouts, advantages):
  """Of two mini-batches the first is broken, then the second, then both; the other one trains as
  if alone."""
  changes = dict(minibatch_size=4, microbatch_size=2, old_logprobs="sampler")
  config = dataclasses.replace(BASE, **changes)
  half = P // 2
  for bad, value in ((0, jnp.nan), (1, jnp.inf)):
    broken = advantages.at[bad * half, 0].set(value)
    state, metrics = update.step(
      MODEL, config, initial(params, config), experience(rollouts), broken
    )
    good = slice((1 - bad) * half, (2 - bad) * half)
    part = experience(jax.tree.map(lambda x, good=good: x[good], rollouts))
    alone, expected = update.step(MODEL, config, initial(params, config), part, advantages[good])
    for a, b in zip(
      jax.tree.leaves((state.step, state.params, state.opt_state)),
      jax.tree.leaves((alone.step, alone.params, alone.opt_state)),
      strict=True,
    ):
      np.testing.assert_array_equal(a, b)
    assert int(state.skipped) == int(metrics["policy/skipped_updates"]) == 1
    assert int(state.skipped_in_a_row) == bad  # 0 where the last optimizer step was taken
    assert float(metrics["policy/loss"]) == float(expected["policy/loss"])
  before = jax.tree.map(jnp.copy, state)
  state, metrics = update.step(MODEL, config, state, experience(rollouts), advantages * jnp.nan)
  for a, b in zip(
    jax.tree.leaves((state.step, state.params, state.opt_state)),
    jax.tree.leaves((before.step, before.params, before.opt_state)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  assert int(state.skipped) == int(state.skipped_in_a_row) == 3
  assert np.isnan(metrics["policy/loss"])


def test_log_probs_are_those_of_each_sequence_alone(params, rollouts):
  logprobs = update.sequence_logprobs(MODEL, params, rollouts, BASE).reshape(P * N, T)
  mask = np.asarray(rollouts.mask).reshape(-1, T)
  expected = np.asarray(sequence_logprobs(params, rollouts))
  np.testing.assert_allclose(np.asarray(logprobs)[mask], expected[mask], atol=1e-4)


def test_the_compiled_update_names_its_parts(params, rollouts, advantages):
  text = gradient_program(params, rollouts, advantages).as_text(debug_info=True)
  for scope in ("token_logprobs", "policy_loss"):
    assert f"/{scope}" in text or f"({scope})" in text, scope


def test_epochs_are_passes_over_the_same_rollouts(params, rollouts, advantages):
  """With the sampler's log-probs as old ones, two epochs are two updates over the same rollouts."""
  changes = dict(minibatch_size=4, microbatch_size=2, learning_rate=3e-3, old_logprobs="sampler")
  state, metrics = run(params, rollouts, advantages, epochs=2, **changes)
  config = dataclasses.replace(BASE, **changes)
  expected, clipped = initial(params, config), []
  for _ in range(2):
    expected, one = update.step(MODEL, config, expected, experience(rollouts), advantages)
    clipped.append(float(one["policy/clip_fraction"]))
  assert int(state.step) == int(expected.step) == 4
  jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)
  assert metrics["policy/clip_fraction"] == pytest.approx(np.mean(clipped))


@pytest.mark.parametrize("minibatch_size", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_old_logprobs_are_those_from_before_the_first_epoch(
  params, rollouts, advantages, minibatch_size
):
  """Also with one mini-batch, where a single epoch needs none."""
  changes = dict(minibatch_size=minibatch_size, microbatch_size=4, learning_rate=3e-3)
  old = np.asarray(sequence_logprobs(params, rollouts)).reshape(rollouts.logprobs.shape)
  given = rollouts.replace(logprobs=jnp.where(rollouts.mask, old, 0.0))
  _, expected = run(params, given, advantages, epochs=3, old_logprobs="sampler", **changes)
  _, metrics = run(params, given, advantages, epochs=3, **changes)
  for name in ("policy/loss", "policy/clip_fraction", "policy/grad_norm"):
    assert metrics[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
  _, once = run(params, given, advantages, **changes)
  assert abs(once["policy/loss"] - metrics["policy/loss"]) > 1e-3  # the later passes moved it
