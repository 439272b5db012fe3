"""Dynamic sampling and GRESO: what is kept, carried over, counted, left out, skipped."""

import jax
import numpy as np
import pytest

from poise_jax.training import collect
from poise_jax.training.collect import CollectConfig
from poise_jax.types import Experience, Prompts, Rollouts

P, N, T, TP, F = 4, 2, 3, 2, 5
DYNAMIC = CollectConfig(dynamic_sampling=True, max_generations=3)


def groups(ids, scores):
  """Groups whose every array tells which prompt they are of."""
  ids, scores = np.asarray(ids, np.int32), np.asarray(scores, np.float32)
  of = lambda *shape: np.broadcast_to(ids.reshape(-1, *[1] * len(shape)), (len(ids), *shape))  # noqa: E731
  number = of(N, T).astype(np.float32)
  return Experience(
    rollouts=Rollouts(
      prompts=Prompts(of(TP), of(TP) >= 0),
      tokens=of(N, T),
      mask=np.ones((len(ids), N, T), bool),
      logprobs=number,
      entropies=number,
      truncated=np.zeros((len(ids), N), bool),
      features=of(N, F).astype(np.float32),
    ),
    scores=scores,
    token_rewards=number,
    domains=0 * ids,
    prompt_ids=ids,
    age=0 * ids,
  )


def source(mixed):
  """generate() that gives prompt i different scores where mixed[i]."""
  calls = []

  def generate(ids, generation):
    assert len(ids) == P
    calls.append((ids[0], generation))
    right = [[1.0, 0.0] if mixed[i % len(mixed)] else [1.0, 1.0] for i in ids]
    return groups(ids, right)

  return generate, calls


def start(config=DYNAMIC):
  return collect.init(config, P, N, T, TP, F, prompts=64)


def run(generate, state, config=DYNAMIC, stream=range(1000), groups=P):
  return collect.collect(stream, generate, state, groups, config, seed=0)


def test_without_it_a_step_trains_on_what_it_sampled():
  generate, calls = source([False])
  state = start(CollectConfig())
  for step in range(3):
    experience, real, state, metrics = run(generate, state, CollectConfig())
    assert experience.prompt_ids.tolist() == list(range(step * P, step * P + P)) and real == P
  assert calls == [(0, 0), (4, 0), (8, 0)]
  assert metrics == {"collect/generated": P * N, "collect/generated_total": 3 * P * N}


def test_groups_without_a_difference_are_left_out_and_surplus_is_carried_over():
  # Of prompts 0 to 3 two are mixed, of 4 to 7 three, of 8 to 11 two, ...
  generate, calls = source([1, 0, 1, 0, 1, 1, 1, 0])
  experience, real, state, metrics = run(generate, start())
  assert experience.prompt_ids.tolist() == [0, 2, 4, 5] and real == P
  assert experience.age.tolist() == [0] * P
  assert metrics == {
    "collect/generated": 2 * P * N,
    "collect/generated_total": 2 * P * N,
    "collect/generations": 2,
    "collect/discarded": 3 * N,
    "collect/carried_in": 0,
    "collect/carried_out": 1,
    "collect/groups": P,
  }
  experience, real, state, metrics = run(generate, state)
  assert experience.prompt_ids.tolist() == [6, 8, 10, 12] and real == P
  assert experience.age.tolist() == [1, 0, 0, 0]
  assert experience.rollouts.features[:, 0, 0].tolist() == [6, 8, 10, 12]
  assert metrics["collect/carried_in"] == 1 and metrics["collect/carried_out"] == 2
  assert calls == [(0, 0), (4, 1), (8, 0), (12, 1)]  # no prompt twice, none left out


def test_nothing_is_lost_or_doubled_over_many_steps():
  mixed = np.random.default_rng(0).random(64) < 0.6
  generate, _ = source(mixed)
  state, trained = start(), []
  for _ in range(12):
    experience, real, state, _ = run(generate, state)
    trained += experience.prompt_ids[:real].tolist()
  left = state.pool.prompt_ids[: int(state.carried)].tolist()
  assert trained + left == [i for i in range(int(state.position)) if mixed[i % 64]]


def test_a_full_pool_needs_no_sampling():
  generate, calls = source([1])
  pool = groups([7, 8, 9, 10], [[0, 1]] * P)
  state = start().replace(pool=pool, carried=np.int64(P))
  experience, real, state, metrics = run(generate, state)
  assert not calls and experience.prompt_ids.tolist() == [7, 8, 9, 10] and real == P
  assert metrics["collect/generated"] == 0 and state.carried == 0


def test_at_the_cap_it_trains_on_what_there_is():
  generate, calls = source([1] + [0] * 11)
  experience, real, state, metrics = run(generate, start())
  assert len(calls) == DYNAMIC.max_generations and real == 1 and metrics["collect/groups"] == 1
  assert experience.prompt_ids[0] == 0 and experience.rollouts.mask[0].all()
  for leaf in jax.tree.leaves(experience):
    assert len(leaf) == P and not np.any(leaf[1:])  # masks False, rewards 0
  generate, _ = source([0])
  _, real, _, _ = run(generate, start())
  assert real == 0


def test_shaped_rewards_do_not_make_a_group_mixed():
  """All answers wrong, one of them punished for its length: still nothing to compare."""
  seen = groups(range(P), [[0, 0], [0, 1], [1, 1], [0.5, 0.25]])
  seen = seen.replace(token_rewards=np.random.default_rng(0).random((P, N, T)))
  experience, real, _, _ = run(lambda *_: seen, start(), groups=2)
  assert experience.prompt_ids[:real].tolist() == [1, 3]


def test_the_state_always_has_the_same_shapes():
  generate, _ = source([1, 1, 1, 0, 1, 0])
  state = start()
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
  for _ in range(3):
    _, _, state, _ = run(generate, state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes


def test_a_cap_of_nothing_is_refused():
  with pytest.raises(ValueError, match="collect.max_generations=0"):
    CollectConfig(max_generations=0)


GRESO = CollectConfig(greso_target=0.25)
EASY, HARD = [[1.0, 1.0]], [[0.0, 0.0]]


def visits(streaks, keep=(0.5, 0.5)):
  """A state of GRESO's."""
  state = start(GRESO)
  streaks = np.asarray(streaks, np.int32)
  return state.replace(skips=collect.Skips(streaks, np.asarray(keep, np.float64)))


def test_prompts_are_skipped_as_often_as_their_streaks_say():
  """1 - p ** z, by counting; a prompt without a streak is never skipped."""
  streaks, keep = np.array([0, 1, 2, -1, -3, 0]), (0.6, 0.8)
  state = visits(np.tile(streaks, 20), keep)
  stream = [i % 120 for i in range(40000)]
  taken, position = np.zeros(6), 0
  while position < 30000:
    ids, position = collect.choose(stream, position, P, state.skips, seed=1)
    np.add.at(taken, ids % 6, 1)
  expected = np.array([1, 0.6, 0.6**2, 0.8, 0.8**3, 1])
  # 5000 looks each: the largest standard deviation of a share is 0.007.
  np.testing.assert_allclose(taken / (position / 6), expected, atol=0.03)
  again, _ = collect.choose(stream, 0, P, state.skips, seed=1)
  same, _ = collect.choose(stream, 0, P, state.skips, seed=1)
  assert again.tolist() == same.tolist()  # of seed and position alone


def test_when_all_prompts_are_hopeless_an_epoch_of_looking_is_enough():
  ids, position = collect.choose(range(1000), 0, P, visits([-99] * 64).skips, seed=0)
  assert ids.tolist() == [64, 65, 66, 67] and position == 68  # and not for ever


def test_streaks_count_visits_in_a_row_of_the_same_kind():
  state, scores = start(GRESO), {0: EASY, 1: HARD, 2: EASY, 3: [[1.0, 0.0]]}
  stream = [0, 1, 2, 3] * 100

  def generate(ids, _):
    return groups(ids, np.concatenate([scores[i] for i in ids]))

  for _ in range(3):  # before anything is certain to be skipped
    state = state.replace(skips=state.skips.replace(keep=np.ones(2)))
    _, _, state, metrics = run(generate, state, GRESO, stream)
  assert state.skips.streaks[:4].tolist() == [3, -3, 3, 0]
  assert (metrics["collect/easy"], metrics["collect/hard"]) == (0.5, 0.25)
  scores.update({0: HARD, 1: [[0.0, 1.0]], 3: EASY})
  state = state.replace(skips=state.skips.replace(keep=np.ones(2)))
  _, _, state, metrics = run(generate, state, GRESO, stream)
  assert state.skips.streaks[:4].tolist() == [-1, 0, 4, 1]
  assert metrics["collect/skipped"] == 0


def test_the_chances_drift_towards_the_target_after_the_first_epoch():
  """A third of 0.25 may be easy and two thirds hard: 1 / 4 easy is too many, 0 hard too few."""

  def generate(ids, _):
    return groups(ids, [[1.0, 1.0]] + [[1.0, 0.0]] * (P - 1))

  state = start(GRESO)
  seen = []
  for _ in range(70):
    _, _, state, metrics = run(generate, state, GRESO, [i % 64 for i in range(9999)])
    seen.append((metrics["collect/keep_easy"], metrics["collect/keep_hard"]))
  first = 64 // P  # steps of the first epoch
  assert seen[first - 1] == (0.5, 0.5)
  np.testing.assert_allclose(seen[first], (0.49, 0.51))
  np.testing.assert_allclose(seen[-1], (0.05, 0.95))  # the bounds


def test_skipped_prompts_are_counted_and_cost_no_rollout():
  generate, calls = source([1])
  state = visits([-99, -99, 0, 0, 0, 0] + [0] * 58)
  config = CollectConfig(dynamic_sampling=True, greso_target=0.25)
  state = state.replace(pool=start().pool)
  experience, real, state, metrics = run(generate, state, config)
  assert experience.prompt_ids.tolist() == [2, 3, 4, 5] and real == P
  assert metrics["collect/skipped"] == 2 and metrics["collect/generated"] == P * N
  assert int(state.position) == 6


def test_preferred_prompts_are_drawn_without_replacement_by_weight():
  weights = np.array([0, 1, 1, 0, 1, 1, 0.0])
  ids, position = collect.choose([], 8, P, (), 0, prefer=weights)
  assert sorted(ids) == [1, 2, 4, 5] and position == 12


def test_a_target_that_is_no_share_is_refused():
  with pytest.raises(ValueError, match="collect.greso_target=1.0"):
    CollectConfig(greso_target=1.0)
