"""Times the sampler with two samples per prompt, without features, and with one sample per prompt:

python -m experiments.peers.poise_sampler FOLDER SEQUENCES PROMPT NEW REPEATS

The three take turns. Prints one JSON line.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp

from poise_jax import models, rollout
from poise_jax.types import Prompts

folder, (sequences, prompt, new, repeats) = sys.argv[1], map(int, sys.argv[2:])
config, params = models.load(folder)
params = jax.jit(lambda p: models.sampling_params(config, p))(params)
tokens = jax.random.randint(jax.random.key(0), (sequences, prompt), 0, config.vocab_size)
middle = (config.num_hidden_layers * 2 // 3,)
variants = {"seconds": (2, middle), "without_features": (2, ()), "one_a_prompt": (1, middle)}
seconds = {name: [] for name in variants}
for i in range(repeats + 1):  # the first one compiles
  for name, (n, layers) in variants.items():
    options = rollout.RolloutConfig(n=n, max_new_tokens=new, feature_layers=layers)
    rows = tokens[: sequences // n]
    prompts = Prompts(rows, jnp.ones_like(rows, bool))
    start = time.perf_counter()
    jax.block_until_ready(rollout.sample(config, params, prompts, jax.random.key(i), options))
    seconds[name].append(time.perf_counter() - start)
print(json.dumps({name: times[1:] for name, times in seconds.items()}))
