"""Times a training step of POISE with n=2: sample, score, predict, update, refit.

python -m experiments.peers.poise_step LIMITS REPEATS

LIMITS is a JSON list: tokens of the responses to each prompt. Model, task, probe and update are
those of configs/smollm2_arithmetic.py. Prints one JSON line.
"""

import dataclasses
import json
import math
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
from poise_jax.training import build, rewards
from poise_jax.types import Experience

limits, repeats = map(json.loads, sys.argv[1:])
config = smollm2_arithmetic.get_config("poise")
config.rollouts = config.train.minibatch_size = 2 * len(limits)
config.train.microbatch_size = math.gcd(config.train.microbatch_size, config.rollouts)
config.rollout.max_new_tokens = max(limits)
config.probe.bootstrap_steps = 0  # every step fits a probe
experiment = build.build(config)
estimator, decode = experiment.estimator, experiment.encoder.tokenizer.decode
options = dataclasses.replace(experiment.rollout, eos_ids=())
params = build.initial_params(experiment)
initial = update.init(params, experiment.update), estimator.init(params)
# As in training: a step's inputs have the shardings of its outputs, so that it compiles once.
state, estimator_state = sharding.spread(experiment.mesh, initial)
del initial, params
jax.set_mesh(experiment.mesh)
prompts = len(limits)
ids = jnp.arange(prompts)
seconds = []
for i in range(repeats + 1):  # the first one compiles
  start = time.perf_counter()
  examples = experiment.task.train[i * prompts : (i + 1) * prompts]
  rollouts = rollout.sample(
    experiment.model,
    experiment.sampling_params(state.params),
    experiment.encoder(examples).replace(max_tokens=jnp.array(limits)),
    jax.random.key(i),
    options,
  )
  tokens = np.asarray(rollouts.tokens)
  responses = [[decode(row.tolist()) for row in group] for group in tokens]
  # As in trl_step.py, a reward that differs within groups, whatever the responses are.
  scores = jnp.array([[float(len(set(text)) % 2) for text in group] for group in responses])
  token_rewards = rewards.token_rewards(scores, rollouts.mask, experiment.reward)
  experience = Experience(rollouts, scores, token_rewards, domains=0 * ids, prompt_ids=ids)
  estimate = estimator.estimate(estimator_state, experience)
  state, _ = update.step(
    experiment.model, experiment.update, state, experience, estimate.advantages
  )
  estimator_state = estimator.update(estimator_state, experience, state.params, estimate.aux)
  jax.block_until_ready((state, estimator_state))
  seconds.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({"seconds": seconds[1:], "peak_gb": peak}))
