"""Times the sampler with two samples per prompt, without features, and with one sample per prompt:

python -m experiments.peers.poise_sampler FOLDER PROMPT LIMITS REPEATS SLOTS

LIMITS is a JSON list: tokens of the responses to each prompt. The three take turns; with SLOTS, the
first one is alone. Prints one JSON line.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from poise_jax import models, rollout
from poise_jax.types import Prompts

folder, prompt, limits, repeats, slots = sys.argv[1], *map(json.loads, sys.argv[2:])
config, params = models.load(folder)
params = jax.jit(lambda p: models.sampling_params(config, p))(params)
tokens = jax.random.randint(jax.random.key(0), (2 * len(limits), prompt), 0, config.vocab_size)
middle = (config.num_hidden_layers * 2 // 3,)
variants = {"seconds": (2, middle), "without_features": (2, ()), "one_a_prompt": (1, middle)}
if slots:
  variants = {"seconds": variants["seconds"]}
seconds = {name: [] for name in variants}
for i in range(repeats + 1):  # the first one compiles
  for name, (n, layers) in variants.items():
    options = rollout.RolloutConfig(
      n=n, max_new_tokens=max(limits), feature_layers=layers, slots=slots
    )
    own = np.repeat(np.array(limits, np.int32), 2 // n)
    rows = tokens[: len(own)]
    prompts = Prompts(rows, jnp.ones_like(rows, bool), jnp.array(own))
    start = time.perf_counter()
    out = jax.block_until_ready(rollout.sample(config, params, prompts, jax.random.key(i), options))
    seconds[name].append(time.perf_counter() - start)
    assert out.mask.sum() == 2 * sum(limits)
print(json.dumps({name: times[1:] for name, times in seconds.items()}))
