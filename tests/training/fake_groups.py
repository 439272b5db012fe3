"""Groups without a model, for tests of collection."""

import numpy as np

from poise_jax.training import collect
from poise_jax.training.collect import CollectConfig
from poise_jax.types import Experience, Prompts, Rollouts

P, N, T, TP, F = 4, 2, 3, 2, 5
DYNAMIC = CollectConfig(dynamic_sampling=True, max_generations=3)


def groups(ids, scores):
  """Groups whose arrays are filled with the index of their prompt."""
  ids, scores = np.asarray(ids, np.int32), np.asarray(scores, np.float32)

  def filled(*shape):
    return np.broadcast_to(ids.reshape(-1, *[1] * len(shape)), (len(ids), *shape))

  per_token = filled(N, T).astype(np.float32)
  return Experience(
    rollouts=Rollouts(
      prompts=Prompts(filled(TP), filled(TP) >= 0),
      tokens=filled(N, T),
      mask=np.ones((len(ids), N, T), bool),
      logprobs=per_token,
      entropies=per_token,
      truncated=np.zeros((len(ids), N), bool),
      features=filled(N, F).astype(np.float32),
      decode_rows=filled(N).astype(np.float32),
    ),
    scores=scores,
    token_rewards=per_token,
    domains=0 * ids,
    prompt_ids=ids,
    age=0 * ids,
  )


def generator(is_mixed):
  """generate() that gives the responses to prompt i different scores where is_mixed[i]; and the
  list of its calls: (first prompt, number of batches before)."""
  calls = []

  def generate(ids, generation):
    assert len(ids) == P
    calls.append((ids[0], generation))
    scores = [[1.0, 0.0] if is_mixed[i % len(is_mixed)] else [1.0, 1.0] for i in ids]
    return groups(ids, scores)

  return generate, calls


def start(config=DYNAMIC):
  return collect.init(config, P, N, T, TP, F, prompts=64)


def run(generate, state, config=DYNAMIC, order=range(1000), groups=P):
  return collect.collect(order, generate, state, groups, config, seed=0)
