"""GRESO: which prompts it skips, and how their streaks and chances change."""

import numpy as np
from fake_groups import N, P, generator, groups, run, start

from poise_jax.training import collect, greso
from poise_jax.training.collect import CollectConfig

GRESO = CollectConfig(greso_target=0.25)
EASY, HARD = [[1.0, 1.0]], [[0.0, 0.0]]


def skips(streaks, keep=(0.5, 0.5)):
  return greso.Skips(np.asarray(streaks, np.int32), np.asarray(keep, np.float64))


def test_the_chance_of_a_skip_is_1_minus_p_to_the_streak():
  streaks, keep = np.array([0, 1, 2, -1, -3, 0]), (0.6, 0.8)
  state = skips(np.tile(streaks, 20), keep)
  order = [i % 120 for i in range(40000)]
  counts, position = np.zeros(6), 0
  while position < 30000:
    ids, position = collect.choose(order, position, P, state, seed=1)
    np.add.at(counts, ids % 6, 1)
  expected = np.array([1, 0.6, 0.6**2, 0.8, 0.8**3, 1])
  # 5,000 candidates each: the largest standard deviation of a share is 0.007.
  np.testing.assert_allclose(counts / (position / 6), expected, atol=0.03)
  first, _ = collect.choose(order, 0, P, state, seed=1)
  second, _ = collect.choose(order, 0, P, state, seed=1)
  assert first.tolist() == second.tolist()  # depends on seed and position only


def test_after_an_epoch_of_candidates_nothing_is_skipped():
  ids, position = collect.choose(range(1000), 0, P, skips([-99] * 64), seed=3)
  assert ids.tolist() == [64, 65, 66, 67] and position == 68  # with this seed, none of the 1 %


def test_the_chance_to_be_sampled_is_at_least_one_percent():
  state = skips([-99] * 64, keep=(0.05, 0.05))
  sampled = [not greso.is_skipped(state, i % 64, seed=0, position=i) for i in range(20_000)]
  np.testing.assert_allclose(np.mean(sampled), 0.01, atol=0.003)


def test_partial_scores_are_easy_or_hard_by_their_mean():
  """The bounds of the released code: at least 0.98 and at most 0.11."""
  means = np.array([0.98, 0.97, 0.5, 0.12, 0.11, 0.0])
  batch = np.arange(6), np.repeat(means, 2).reshape(6, 2)
  state, metrics = greso.update(greso.init(6), [batch], 0.25, adapt=False)
  assert state.streaks.tolist() == [1, 0, 0, 0, -1, -1]
  assert (metrics["collect/easy"], metrics["collect/hard"]) == (1 / 6, 2 / 6)


def test_streaks_count_easy_or_hard_groups_in_a_row():
  state, scores = start(GRESO), {0: EASY, 1: HARD, 2: EASY, 3: [[1.0, 0.0]]}
  order = [0, 1, 2, 3] * 100

  def generate(ids, _):
    return groups(ids, np.concatenate([scores[i] for i in ids]))

  def step(state):
    state = state.replace(skips=state.skips.replace(keep=np.ones(2)))  # skips nothing
    _, _, state, metrics = run(generate, state, GRESO, order)
    return state, metrics

  for _ in range(3):
    state, metrics = step(state)
  assert state.skips.streaks[:4].tolist() == [3, -3, 3, 0]
  assert (metrics["collect/easy"], metrics["collect/hard"]) == (0.5, 0.25)
  scores.update({0: HARD, 1: [[0.0, 1.0]], 3: EASY})
  state, metrics = step(state)
  assert state.skips.streaks[:4].tolist() == [-1, 0, 4, 1]
  assert metrics["collect/skipped"] == 0


def test_p_drifts_towards_the_target_after_the_first_epoch():
  """A third of 0.25 may be easy and two thirds hard: 1 / 4 easy is too much, 0 hard too little."""

  def generate(ids, _):
    return groups(ids, [[1.0, 1.0]] + [[1.0, 0.0]] * (P - 1))

  state, history = start(GRESO), []
  for _ in range(70):
    _, _, state, metrics = run(generate, state, GRESO, [i % 64 for i in range(9999)])
    history.append((metrics["collect/keep_easy"], metrics["collect/keep_hard"]))
  epoch = 64 // P  # steps of the first epoch
  assert history[epoch - 1] == (0.5, 0.5)
  np.testing.assert_allclose(history[epoch], (0.49, 0.51))
  np.testing.assert_allclose(history[-1], (greso.P_MIN, greso.P_MAX))


def test_skipped_prompts_are_counted_and_cost_no_rollout():
  generate, _ = generator([1])
  config = CollectConfig(dynamic_sampling=True, greso_target=0.25)
  state = start(config).replace(skips=skips([-99, -99, 0, 0, 0, 0] + [0] * 58))
  experience, real_groups, state, metrics = run(generate, state, config)
  assert experience.prompt_ids.tolist() == [2, 3, 4, 5] and real_groups == P
  assert metrics["collect/skipped"] == 2 and metrics["collect/generated"] == P * N
  assert int(state.position) == 6
