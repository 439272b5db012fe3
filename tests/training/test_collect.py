"""Collection: which groups dynamic sampling selects, discards, carries over and counts."""

import jax
import numpy as np
import pytest
from fake_groups import DYNAMIC, N, P, T, generator, groups, run, start

from poise_jax.data.order import example_order
from poise_jax.training import collect
from poise_jax.training.collect import CollectConfig


def test_without_dynamic_sampling_a_step_trains_on_all_that_it_samples():
  generate, calls = generator([False])
  state = start(CollectConfig())
  for step in range(3):
    experience, real_groups, state, metrics = run(generate, state, CollectConfig())
    assert experience.prompt_ids.tolist() == list(range(step * P, step * P + P))
    assert real_groups == P
  assert calls == [(0, 0), (4, 0), (8, 0)]
  assert metrics == {
    "collect/generated": P * N,
    "collect/generated_total": 3 * P * N,
    "collect/score": 1.0,
  }


def test_groups_of_equal_scores_are_discarded_and_surplus_groups_carried_over():
  # Two of prompts 0 to 3 are mixed, three of 4 to 7, two of 8 to 11, ...
  generate, calls = generator([1, 0, 1, 0, 1, 1, 1, 0])
  experience, real_groups, state, metrics = run(generate, start())
  assert experience.prompt_ids.tolist() == [0, 2, 4, 5] and real_groups == P
  assert experience.age.tolist() == [0] * P
  assert metrics == {
    "collect/generated": 2 * P * N,
    "collect/generated_total": 2 * P * N,
    "collect/generations": 2,
    "collect/discarded": 3 * N,
    "collect/carried_in": 0,
    "collect/carried_out": 1,
    "collect/groups": P,
    "collect/score": 11 / 16,  # 3 groups are right, 5 half right
  }
  experience, real_groups, state, metrics = run(generate, state)
  assert experience.prompt_ids.tolist() == [6, 8, 10, 12] and real_groups == P
  assert experience.age.tolist() == [1, 0, 0, 0]
  assert experience.rollouts.features[:, 0, 0].tolist() == [6, 8, 10, 12]
  assert metrics["collect/carried_in"] == 1 and metrics["collect/carried_out"] == 2
  assert calls == [(0, 0), (4, 1), (8, 0), (12, 1)]  # every prompt once


def test_over_many_steps_every_mixed_group_is_trained_on_once():
  is_mixed = np.random.default_rng(0).random(64) < 0.6
  generate, _ = generator(is_mixed)
  state, trained = start(), []
  for _ in range(12):
    experience, real_groups, state, _ = run(generate, state)
    trained += experience.prompt_ids[:real_groups].tolist()
  surplus = state.pool.prompt_ids[: int(state.carried)].tolist()
  assert trained + surplus == [i for i in range(int(state.position)) if is_mixed[i % 64]]


def test_a_full_pool_needs_no_sampling():
  generate, calls = generator([1])
  pool = groups([7, 8, 9, 10], [[0, 1]] * P)
  state = start().replace(pool=pool, carried=np.int64(P))
  experience, real_groups, state, metrics = run(generate, state)
  assert not calls and experience.prompt_ids.tolist() == [7, 8, 9, 10] and real_groups == P
  assert metrics["collect/generated"] == 0 and state.carried == 0
  assert "collect/score" not in metrics


def test_after_max_generations_a_step_trains_on_what_it_has():
  generate, calls = generator([1] + [0] * 11)
  experience, real_groups, state, metrics = run(generate, start())
  assert len(calls) == DYNAMIC.max_generations
  assert real_groups == metrics["collect/groups"] == 1
  assert experience.prompt_ids[0] == 0 and experience.rollouts.mask[0].all()
  for leaf in jax.tree.leaves(experience):
    assert len(leaf) == P and not np.any(leaf[1:])  # padding: mask False, rewards 0
  generate, _ = generator([0])
  _, real_groups, _, _ = run(generate, start())
  assert real_groups == 0


def test_shaped_rewards_do_not_make_a_group_mixed():
  batch = groups(range(P), [[0, 0], [0, 1], [1, 1], [0.5, 0.25]])
  batch = batch.replace(token_rewards=np.random.default_rng(0).random((P, N, T)))
  experience, real_groups, _, _ = run(lambda *_: batch, start(), groups=2)
  assert experience.prompt_ids[:real_groups].tolist() == [1, 3]


def test_responses_of_the_reference_policy_count_as_generated():
  batch = groups(range(P), [[0, 1]] * P).replace(reference_scores=np.zeros((P, 3), np.float32))
  _, _, _, metrics = run(lambda *_: batch, start(CollectConfig()), CollectConfig())
  assert metrics["collect/generated"] == P * (N + 3)
  assert metrics["collect/score"] == 0.5  # theirs are 0


@pytest.mark.parametrize("dynamic", (False, True))
@pytest.mark.parametrize("seed", (0, 1))
def test_the_score_is_that_of_all_sampled_responses(dynamic, seed):
  """Also of discarded groups and of surplus ones, in the step that samples them."""
  config = CollectConfig(dynamic_sampling=dynamic, max_generations=3)
  rng, sampled = np.random.default_rng(seed), []

  def generate(ids, generation):
    sampled.append(rng.choice([0.0, 0.25, 1.0], (P, N)))
    return groups(ids, sampled[-1])

  state = start(config)
  for _ in range(4):
    sampled.clear()
    _, _, state, metrics = run(generate, state, config)
    assert metrics["collect/score"] == pytest.approx(np.mean(sampled))


def test_the_state_always_has_the_same_shapes():
  generate, _ = generator([1, 1, 1, 0, 1, 0])
  state = start()
  shapes = jax.tree.map(lambda x: (x.shape, x.dtype), state)
  for _ in range(3):
    _, _, state, _ = run(generate, state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shapes


def test_priorities_draw_different_prompts_by_weight():
  weights = np.array([0, 1, 1, 0, 1, 1, 0.0])
  ids, position = collect.choose([], 8, P, (), seed=0, priorities=weights)
  assert sorted(ids) == [1, 2, 4, 5] and position == 12


@pytest.mark.parametrize("size,count", [(10, 4), (10, 9), (7, 7), (16, 6)])
def test_a_step_that_crosses_an_epochs_edge_has_no_prompt_twice(size, count):
  order, position, chosen = example_order(size, seed=1), 0, []
  for _ in range(40):
    ids, position = collect.choose(order, position, count, (), seed=0)
    assert len(set(ids.tolist())) == count
    chosen += ids.tolist()
  # A prompt that is passed over was in the step already: all are used about as often.
  uses = np.bincount(chosen, minlength=size)
  assert uses.min() >= 0.7 * uses.max()


@pytest.mark.parametrize("size,count", [(3, 5), (1, 4), (2, 8)])
def test_a_step_larger_than_the_training_set_repeats_prompts(size, count):
  ids, _ = collect.choose(example_order(size, seed=1), 2, count, (), seed=0)
  assert len(ids) == count and set(ids.tolist()) == set(range(size))


def test_later_batches_and_carried_groups_repeat_no_prompt_of_the_step():
  """Dynamic sampling goes through a training set of 12 prompts, half of them mixed, many times."""
  order, state = example_order(12, seed=0), start()
  generate, calls = generator([1, 0, 1, 1, 0, 0])
  for _ in range(20):
    experience, real_groups, state, _ = run(generate, state, order=order)
    trained = experience.prompt_ids[:real_groups].tolist()
    assert len(set(trained)) == real_groups == P
  assert max(generation for _, generation in calls) > 0


def test_scores_that_differ_by_rounding_do_not_make_a_group_mixed():
  tenths = np.cumsum(np.full(10, 0.1, np.float32))[-1]
  assert tenths != 1
  batch = groups(range(P), [[tenths, 1], [0, 1], [1, 1], [1, 0.99]])
  experience, real_groups, _, _ = run(lambda *_: batch, start(), groups=2)
  assert experience.prompt_ids[:real_groups].tolist() == [1, 3]


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(max_generations=0), "collect.max_generations must be at least 1, got 0"),
    (dict(greso_target=1.0), "collect.greso_target must be .* less than 1, got 1.0"),
  ],
)
def test_invalid_options_are_an_error(changes, message):
  with pytest.raises(ValueError, match=message):
    CollectConfig(**changes)
