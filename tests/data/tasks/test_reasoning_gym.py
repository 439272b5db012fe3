"""Mixtures of reasoning-gym's generators, verified by reasoning-gym itself."""

import collections
import dataclasses
import pickle

import pytest
import reasoning_gym as library

from poise_jax.data.tasks import reasoning_gym
from poise_jax.data.tasks.config import ReasoningGymConfig
from poise_jax.verifiers import verify
from poise_jax.verifiers.gym_scores import REFUSED

MIXTURE = {
  "chain_sum": {"weight": 2, "min_terms": 2, "max_terms": 2},
  "gcd": {},
  "letter_counting": {"weight": 1.0, "max_words": 6},
}


def make(generators, train, test, seed=0):
  return reasoning_gym.make(ReasoningGymConfig(generators), train, test, seed)


def score(example, answer):
  check = pickle.loads(pickle.dumps(example.check))  # a worker process gets a pickled check
  return verify(check, answer).score


@pytest.fixture(scope="module")
def task():
  return make(MIXTURE, 400, 40, seed=7)


def test_weights_are_shares_and_every_generator_is_a_domain(task):
  assert task.domains == ("chain_sum", "gcd", "letter_counting")
  for split, total in ((task.train, 400), (task.test, 40)):
    counts = collections.Counter(example.domain for example in split)
    assert counts == {"chain_sum": total // 2, "gcd": total // 4, "letter_counting": total // 4}


def test_shares_add_up_when_they_do_not_divide():
  for train, test in ((10, 4), (11, 5), (100, 7)):
    thirds = {"gcd": {"weight": 0.1}, "lcm": {"weight": 0.1}, "leg_counting": {"weight": 0.1}}
    task = make(thirds, train, test)
    assert len(task.train) == train and len(task.test) == test


def test_reference_answers_score_one_and_settings_apply(task):
  for example in task.train[::20]:
    assert score(example, example.answer) == 1.0 and score(example, "nonsense") < 0.1
    assert score(example, f"I think so.\n<answer>{example.answer}</answer>") == 1.0
    assert example.worked == example.answer
    for response in (example.worked, f"It is <answer>{example.answer}</answer>, I think."):
      assert verify(example.check, response).score == 1.0
    assert verify(example.check, "<answer>nonsense</answer>").score < 0.1
  sums = [e.check.reference["entry"]["metadata"] for e in task.train if e.domain == "chain_sum"]
  assert {m["num_terms"] for m in sums} == {2}


def test_splits_are_disjoint_and_held_out_problems_are_unique(task):
  held_out = [example.question for example in task.test]
  assert len(set(held_out)) == 40 and not set(held_out) & {e.question for e in task.train}
  few = {"gcd": {"max_numbers": 2, "min_value": 1, "max_value": 6}}  # 36 problems
  task = make(few, 200, 10)
  held_out = {example.question for example in task.test}
  assert len(held_out) == 10 and len(task.train) == 200
  assert not held_out & {example.question for example in task.train}


def test_problems_depend_on_the_seed_and_neighbouring_seeds_share_none(task):
  again = make(MIXTURE, 440, 40, seed=7)
  assert again.test == task.test
  assert [e for e in again.train if e.domain == "gcd"][:100] == [
    e for e in task.train if e.domain == "gcd"
  ]
  other = make({"chain_sum": {"min_digits": 6, "max_digits": 6}}, 50, 50, seed=8)
  same = make({"chain_sum": {"min_digits": 6, "max_digits": 6}}, 50, 50, seed=7)
  questions = {e.question for e in (*other.train, *other.test)}
  assert not questions & {e.question for e in (*same.train, *same.test)}


def test_every_generator_works():
  """The first problem of each has a question, and its reference answer scores one."""
  slow = {"futoshiki", "knight_swap", "zebra_puzzles"}
  assert len(reasoning_gym.GENERATORS) > 100 and "composite" not in reasoning_gym.GENERATORS
  for name in set(reasoning_gym.GENERATORS) - slow - set(REFUSED):
    example = make({name: {}}, 1, 1).train[0]
    assert example.question.strip() and example.domain == name
    if example.answer:
      assert score(example, example.answer) == 1.0, name


@pytest.mark.parametrize(
  "generators,message",
  [
    ({"chainsum": {}}, "generator in .* 'chainsum'; did you mean 'chain_sum'"),
    ({"propositional_logic": {}}, "propositional_logic cannot be a reward: any conclusion"),
    ({"composite": {}}, "unknown generator in task.reasoning_gym.generators 'composite'"),
    ({"gcd": {"max_valeu": 3}}, "setting of .*gcd 'max_valeu'; did you mean 'max_value'"),
    ({"gcd": {"seed": 3}}, "unknown setting of task.reasoning_gym.generators.gcd 'seed'"),
    ({"gcd": {"min_numbers": 9}}, "gcd rejects {'min_numbers': 9}"),
    ({"coin_flip": {"max_trials": 1, "min_trials": 1}}, "coin_flip .*too few different problems"),
  ],
)
def test_invalid_mixtures_are_an_error(generators, message):
  with pytest.raises(ValueError, match=message):
    make(generators, 10, 200)


def test_no_generator_has_a_setting_named_weight():
  for name in reasoning_gym.GENERATORS:
    fields = {field.name for field in dataclasses.fields(library.factory.DATASETS[name][1])}
    assert "weight" not in fields


def test_all_stands_for_those_that_are_not_named(monkeypatch):
  monkeypatch.setattr(reasoning_gym, "GENERATORS", ["gcd", "lcm", "propositional_logic"])
  task = make({"all": {}, "lcm": {"weight": 3}}, 40, 8)
  counts = collections.Counter(example.domain for example in task.train)
  assert counts == {"gcd": 10, "lcm": 30}


def test_a_polynomial_without_real_roots_is_no_problem():
  task = make({"polynomial_equations": {"min_degree": 2, "max_degree": 2}}, 60, 10)
  assert all(example.answer for example in (*task.train, *task.test))


def test_an_integral_that_the_library_cannot_work_out_is_no_problem():
  task = make({"intermediate_integration": {}}, 60, 10)
  assert not any("Integral" in example.answer for example in (*task.train, *task.test))


def test_a_string_into_which_nothing_is_inserted_is_no_problem():
  """With the default settings 95 % are such, and the question ends with the answer."""
  task = make({"string_insertion": {"max_string_length": 10}}, 300, 5)  # 3 % are of use
  for example in (*task.train, *task.test):
    assert example.question.split()[-1] != example.answer
