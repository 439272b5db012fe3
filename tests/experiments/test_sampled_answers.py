"""Which prompts are answered: different ones, drawn at random."""

import contextlib
import dataclasses
import types

import numpy as np
import pytest

from experiments import answers
from poise_jax.data.tasks import Example
from poise_jax.errors import UserError
from poise_jax.estimators import Estimator
from poise_jax.rollout import RolloutConfig
from poise_jax.training import step
from poise_jax.training.rewards import RewardConfig
from poise_jax.verifiers import Check, pool


@dataclasses.dataclass(frozen=True)
class Fake:
  """What is read of an experiment."""

  questions: str
  groups: int = 4
  rollout: RolloutConfig = RolloutConfig(max_new_tokens=3, n=2)
  reward: RewardConfig = RewardConfig()
  estimator: Estimator = Estimator(init=None, estimate=None, update=None)

  config = types.SimpleNamespace(seed=0)
  verifier = types.SimpleNamespace(workers=1, time_limit=1.0)

  @property
  def task(self):
    """A training set of the questions."""
    check = Check("exact", "1")
    examples = [Example(q, "1", "1", "d", "easy", check) for q in self.questions]
    return types.SimpleNamespace(train=examples)

  def sampling_params(self, params):
    """They are not read."""
    return params


CASES = ("abcd", [0, 1, 2, 3]), ("aabbc", [0, 2, 4]), ("zyzyxzwvyu", [0, 1, 4, 6, 7, 9]), ("a", [0])


@pytest.mark.parametrize("questions, expected", CASES)
def test_the_first_example_of_each_question_counts(questions, expected):
  experiment = Fake(questions)
  assert answers.different(experiment.task.train).tolist() == expected
  answers.check_prompts(experiment, len(expected))
  with pytest.raises(UserError, match=f"exceed the {len(expected)} different questions"):
    answers.check_prompts(experiment, len(expected) + 1)


@pytest.mark.parametrize("questions, expected", CASES)
def test_no_question_is_answered_twice(monkeypatch, questions, expected):
  """But to fill up the last batch, behind the prompts that were asked for."""
  monkeypatch.setattr(step, "Sampling", lambda *_: lambda ids, _: ids)
  monkeypatch.setattr(pool, "Pool", lambda *_: contextlib.nullcontext())
  monkeypatch.setattr("poise_jax.evaluation.judge.Judge", lambda *_: None)
  experiment = Fake(questions)
  for prompts in range(1, len(expected) + 1):
    batches = list(answers.sampled(experiment, {}, prompts, 2))
    assert {len(ids) for ids in batches} == {experiment.groups}
    ids = np.concatenate(batches)
    asked = ids[:prompts].tolist()
    assert len(set(asked)) == prompts and set(asked) <= set(expected)
    assert len(ids) - prompts < experiment.groups and set(ids) <= set(asked)


def test_a_training_set_that_is_sorted_is_asked_of_everywhere(monkeypatch):
  experiment = Fake([str(i) for i in range(1000)])
  ids = answers.drawn(experiment, 100)
  assert set(ids // 250) == {0, 1, 2, 3} and np.corrcoef(ids, np.arange(100))[0, 1] < 0.3
  np.testing.assert_array_equal(answers.drawn(experiment, 40), ids[:40])
  monkeypatch.setattr(Fake, "config", types.SimpleNamespace(seed=1))
  assert answers.drawn(experiment, 100).tolist() != ids.tolist()
