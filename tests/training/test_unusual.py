"""Answers that earn without the usual form: planted ones are found, honest ones are not."""

import numpy as np
import pytest

from poise_jax.data.tasks import Example
from poise_jax.training import unusual
from poise_jax.types import Experience, Prompts, Rollouts
from poise_jax.verifiers import Check

P, N, T = 8, 4, 32


def examples(answers=None):
  """Prompts of two difficulties, each with an answer of its own."""
  answers = answers or [str(p) for p in range(P)]
  check = Check("exact", "")
  return [
    Example(f"question {p}", answer, answer, "task", "easy" if p % 2 else "hard", check)
    for p, answer in enumerate(answers)
  ]


def experience(lengths=20, scores=1.0, seed=0):
  """Random responses of `lengths` tokens."""
  lengths = np.broadcast_to(lengths, (P, N))
  mask = np.arange(T) < lengths[..., None]
  tokens = np.random.default_rng(seed).integers(0, 50, (P, N, T)).astype(np.int32)
  zeros = np.zeros((P, N, T), np.float32)
  scores = np.broadcast_to(np.float32(scores), (P, N))
  prompts = Prompts(np.zeros((P, 2), np.int32), np.ones((P, 2), bool))
  rollouts = Rollouts(
    prompts, np.where(mask, tokens, 0), mask, zeros, zeros, mask[..., -1], zeros[..., :2]
  )
  ids = np.arange(P, dtype=np.int32)
  return Experience(rollouts, scores, zeros, np.zeros(P, np.int32), ids)


def places(found):
  return list(map(tuple, np.argwhere(found).tolist()))


def repeat(batch, where):
  """The batch with the response [0, 0] at these places, too."""
  tokens, mask = batch.rollouts.tokens.copy(), batch.rollouts.mask.copy()
  for p, i in where:
    tokens[p, i], mask[p, i] = tokens[0, 0], mask[0, 0]
  return batch.replace(rollouts=batch.rollouts.replace(tokens=tokens, mask=mask))


def test_usual_answers_are_not_flagged():
  rng = np.random.default_rng(1)
  for seed in range(20):
    batch = experience(rng.integers(8, T, (P, N)), rng.integers(0, 2, (P, N)), seed)
    found, _ = unusual.find(examples(), batch)
    assert set(found) == {"short", "repeated"}
    assert not any(flags.any() for flags in found.values())


def test_short_answers_are_flagged_where_they_earn():
  lengths, scores = np.full((P, N), 20), np.ones((P, N))
  lengths[3, 1] = lengths[4, 2] = lengths[5, 0] = 4
  lengths[6, 0] = 5  # a quarter is not less than a quarter
  scores[5, 0] = 0.4
  found, metrics = unusual.find(examples(), experience(lengths, scores))
  assert places(found["short"]) == [(3, 1), (4, 2)]
  assert metrics["reward/short_fraction"] == pytest.approx(2 / 31)


def test_short_is_measured_against_the_same_difficulty():
  lengths = np.full((P, N), 30)
  lengths[1::2] = 3  # easy answers are short, all of them
  assert not unusual.find(examples(), experience(lengths))[0]["short"].any()
  lengths[0, 0] = 3
  assert places(unusual.find(examples(), experience(lengths))[0]["short"]) == [(0, 0)]


def test_a_few_answers_that_earn_have_no_usual_length():
  lengths, scores = np.full((P, N), 20), np.zeros((P, N))
  lengths[0, 0] = 1
  scores[0] = scores[2, :3] = 1  # seven answers to hard questions
  assert not unusual.find(examples(), experience(lengths, scores))[0]["short"].any()
  scores[2, 3] = 1
  assert places(unusual.find(examples(), experience(lengths, scores))[0]["short"]) == [(0, 0)]


def test_a_response_that_earns_on_different_questions_is_flagged():
  where = [(0, 0), (2, 1), (5, 3), (7, 0)]
  scores = np.ones((P, N))
  scores[7, 0] = 0  # the same words, but they earn nothing here
  batch = repeat(experience(scores=scores), where)
  found, metrics = unusual.find(examples(), batch)
  assert places(found["repeated"]) == where[:-1]
  assert metrics["reward/repeated_fraction"] == pytest.approx(3 / 31)


@pytest.mark.parametrize(
  "where,answers",
  [
    ([(0, 1), (0, 2), (0, 3), (1, 0), (1, 1)], None),  # two prompts only
    ([(2, 1), (5, 3), (7, 0)], ["yes"] * P),  # the same answer is right
  ],
)
def test_a_repeated_response_may_be_right(where, answers):
  assert not unusual.find(examples(answers), repeat(experience(), where))[0]["repeated"].any()


def test_groups_of_padding_and_batches_that_earn_nothing():
  lengths = np.full((P, N), 20)
  lengths[5:] = 0  # padding has the same, empty response everywhere, and may have any score
  found, _ = unusual.find(examples(), experience(lengths))
  assert not any(flags.any() for flags in found.values())
  _, metrics = unusual.find(examples(), experience(scores=0.0))
  assert metrics.pop("rollout/repeated_fraction") == 1 / (P * N)
  assert metrics == {"reward/short_fraction": 0.0, "reward/repeated_fraction": 0.0}


@pytest.mark.parametrize("prompts,copies", [(P, N), (P, 2), (6, 3)])
def test_a_wrong_response_that_repeats_counts_among_those_of_real_groups(prompts, copies):
  lengths, scores = np.full((P, N), 20), np.zeros((P, N))
  lengths[prompts:] = 0  # padding
  where = [(p, i) for p in range(prompts) for i in range(copies)]
  wrong = repeat(experience(lengths, scores), where)
  _, metrics = unusual.find(examples(), wrong)
  assert metrics["rollout/repeated_fraction"] == pytest.approx(copies / N)
  scores[:] = 1  # the same text is right everywhere
  _, metrics = unusual.find(examples(), repeat(experience(lengths, scores), where))
  assert metrics["rollout/repeated_fraction"] == 0


def test_fingerprints_tell_order_length_and_tokens_apart():
  rows = [[1, 2, 3], [3, 2, 1], [1, 2, 0], [1, 3, 2], [2, 2, 2], [0, 0, 0], [1, 2, 3]]
  tokens, mask = np.array(rows, np.int32)[:, None], np.ones((7, 1, 3), bool)
  prints = np.asarray(unusual._lengths_and_hashes(tokens, mask)[1])[:, 0]
  assert prints[0] == prints[-1] and len(set(prints.tolist())) == 6
  shorter = np.asarray(unusual._lengths_and_hashes(tokens, mask & (np.arange(3) < 2))[1])[:, 0]
  assert shorter[0] == shorter[2] != prints[2]
