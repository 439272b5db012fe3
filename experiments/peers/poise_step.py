"""Times a step of this project, POISE with n=2: sample, score, predict, refit, update.

python -m experiments.peers.poise_step SEQUENCES NEW REPEATS; one JSON line.
Takes model, task, probe and update from configs/smollm2_arithmetic.py. Answers do not end early.
"""

import dataclasses
import json
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import smollm2_arithmetic
from poise_jax import rollout
from poise_jax.distributed import sharding
from poise_jax.learner import update
from poise_jax.training import rewards, train
from poise_jax.types import Experience

sequences, new, repeats = map(int, sys.argv[1:])
config = smollm2_arithmetic.get_config("poise")
config.rollouts = config.train.minibatch_size = sequences
config.rollout.max_new_tokens = new
config.probe.bootstrap_steps = 0  # so that every step fits a probe
run = train.setup(config)
options = dataclasses.replace(run.rollout, eos_ids=())
begin = update.init(run.params, run.update), run.estimator.init(run.params)
state, estimator_state = sharding.spread(run.mesh, begin)  # as in training: one layout, one compile
del begin
run.params = None
jax.set_mesh(run.mesh)
prompts_a_step = sequences // options.n
seconds = []
for i in range(repeats + 1):  # the first one compiles
  start = time.perf_counter()
  examples = run.task.train[i * prompts_a_step : (i + 1) * prompts_a_step]
  rollouts = rollout.sample(
    run.model,
    run.sampling_params(state.params),
    run.encoder(examples),
    jax.random.key(i),
    options,
  )
  tokens = np.asarray(rollouts.tokens)
  texts = [[run.encoder.tokenizer.decode(row.tolist()) for row in group] for group in tokens]
  # As for the peer, a reward that differs within groups, whatever the answers are.
  scores = jnp.array([[float(len(set(text)) % 2) for text in group] for group in texts])
  ids = jnp.arange(prompts_a_step)
  earned = rewards.token_rewards(scores, rollouts.mask, run.reward)
  seen = Experience(rollouts, scores, earned, 0 * ids, ids, 0 * ids)
  advantages, *_ = run.estimator.estimate(estimator_state, seen)
  state, _ = update.step(run.model, state, rollouts, advantages, run.update)
  estimator_state = run.estimator.update(estimator_state, seen, state.params)
  jax.block_until_ready((state, estimator_state))
  seconds.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({"seconds": seconds[1:], "peak_gb": peak}))
