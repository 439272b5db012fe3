"""Critics learn from fixed answers what can be learned from the prompt, and nothing else."""

import jax
import numpy as np
import pytest
from commands import load
from tiny_run import tiny

from poise_jax import models
from poise_jax.training import build

critics = load("critics")
PROMPTS, N = 48, 2


@pytest.fixture(scope="module")
def experiment():
  batch = {"rollouts": 16, "train__minibatch_size": 16, "train__microbatch_size": 16}
  config = tiny(warm_start__steps=0, critic__learning_rate=1e-2, **batch)
  return build.build(config)


def arrays(experiment, rewards):
  """Answers whose prompts are one of two tokens."""
  rng = np.random.default_rng(0)
  kind = np.arange(PROMPTS) % 2
  width, length = experiment.encoder.max_length, experiment.rollout.max_new_tokens
  prompt = np.zeros((PROMPTS, width), np.int32)
  prompt[:, -1] = 5 + kind
  mask = np.arange(length) < rng.integers(1, length, (PROMPTS, N, 1))
  return {
    "rewards": rewards(kind, rng).astype(np.float32),
    "features": np.zeros((PROMPTS, N, 67), np.float32),
    "domains": np.zeros(PROMPTS, np.int32),
    "prompt_tokens": prompt,
    "prompt_mask": prompt > 0,
    "tokens": rng.integers(1, 9, (PROMPTS, N, length)).astype(np.int32),
    "mask": mask,
  }


@pytest.mark.parametrize("name", ["sppo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_critic_finds_which_prompts_are_easy(experiment, name, monkeypatch):
  monkeypatch.setitem(critics.SEARCHES, name, critics.Search(name, 12))
  params = models.init(experiment.model, jax.random.key(0))
  data = arrays(experiment, lambda kind, rng: np.repeat(kind[:, None], N, 1))
  with jax.set_mesh(experiment.mesh):
    predicted, cost = critics.learn(experiment, params, data, name)
  assert predicted.shape == (PROMPTS // 2, N) and 0 <= predicted.min() <= predicted.max() <= 1
  right = data["rewards"][PROMPTS // 2 :] > 0.5
  assert predicted[right].mean() > predicted[~right].mean() + 0.3
  assert cost["seconds"] > 0
  weights = sum(x.nbytes for x in jax.tree.leaves(params))
  assert 3.5 * weights < cost["bytes"] < 4.5 * weights  # weights, two moments, gradients


def test_the_reported_critic_learns_from_all_prompts_with_the_chosen_passes(
  experiment, monkeypatch
):
  """The choice is made on an eighth that the candidates do not learn from."""
  monkeypatch.setitem(critics.SEARCHES, "sppo", critics.Search("sppo", 3))
  errors = {1.0: [0.9, 0.4, 0.8], 0.1: [0.7, 0.6, 0.5]}  # the best: 2 passes with the full rate
  drawn = iter([x for factor in critics.Search("sppo", 3).rates for x in errors[factor]])
  trained, half = [], PROMPTS // 2

  def epoch(self, state, ids, params):
    trained.append(len(ids))
    return state

  def predict(self, state, ids):
    if len(ids) == half:
      return np.full((half, N), 0.3)
    return self.arrays["rewards"][ids] + np.sqrt(next(drawn))

  monkeypatch.setattr(critics.Learner, "epoch", epoch)
  monkeypatch.setattr(critics.Learner, "predict", predict)
  params = models.init(experiment.model, jax.random.key(0))
  data = arrays(experiment, lambda kind, rng: rng.random((PROMPTS, N)))
  with jax.set_mesh(experiment.mesh):
    predicted, cost = critics.learn(experiment, params, data, "sppo")
  assert trained == [half * 7 // 8] * 6 + [half] * 2
  assert cost["passes"] == 2 and cost["learning_rate"] == 1e-2 and (predicted == 0.3).all()


def test_rewards_are_on_the_last_token_and_batches_cover_all_prompts(experiment):
  data = arrays(experiment, lambda kind, rng: rng.random((PROMPTS, N)))
  with jax.set_mesh(experiment.mesh):
    learner = critics.Learner(experiment, data, None)
    batch = learner.experience(np.array([3, 1]))
    np.testing.assert_allclose(batch.rewards, data["rewards"][[3, 1]], rtol=1e-6)
    last = data["mask"][[3, 1]].sum(-1) - 1
    found = np.asarray(batch.token_rewards).argmax(-1)
    np.testing.assert_array_equal(found, last)
    ids = np.arange(1, 12)
    batches = [np.asarray(b.prompt_ids) for b in learner.batches(ids)]
  assert len({len(x) for x in batches}) == 1
  np.testing.assert_array_equal(np.concatenate(batches)[: len(ids)], ids)


def test_the_cost_of_a_fit_is_described():
  costs = {"probe": critics.cost(lambda: [np.zeros(1000, np.float32)])}
  assert costs["probe"]["bytes"] == 4000
  assert "probe 0.000 s and 0.00 MB" in critics.describe(costs)
