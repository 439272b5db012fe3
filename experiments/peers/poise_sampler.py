"""Times this project's sampler, features on and off in turn:

python -m experiments.peers.poise_sampler FOLDER SEQUENCES PROMPT NEW REPEATS; one JSON line.
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
prompts = Prompts(tokens, jnp.ones_like(tokens, bool))
middle = (config.num_hidden_layers * 2 // 3,)
seconds = {"on": [], "off": []}
for i in range(repeats + 1):  # the first one compiles
  for name, layers in (("on", middle), ("off", ())):
    options = rollout.RolloutConfig(n=1, max_new_tokens=new, feature_layers=layers)
    start = time.perf_counter()
    jax.block_until_ready(rollout.sample(config, params, prompts, jax.random.key(i), options))
    seconds[name].append(time.perf_counter() - start)
print(json.dumps({"seconds": seconds["on"][1:], "without_features": seconds["off"][1:]}))
