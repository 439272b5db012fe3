"""Times google-tunix's vanilla sampler with every prompt twice:

tunix_sampler.py FOLDER PROMPT LIMITS REPEATS

LIMITS is a JSON list with the same number for every prompt: tokens of its responses. Weights are
random, in the shape of the folder's model (Llama family). Runs in an environment with google-tunix.
Prints one JSON line.
"""

import json
import os
import pathlib
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
import numpy as np
from flax import nnx
from tunix.generate import sampler
from tunix.models.llama3 import model as llama

folder, prompt, limits, repeats = sys.argv[1], *map(json.loads, sys.argv[2:])
(new,) = set(limits)
shape = json.loads((pathlib.Path(folder) / "config.json").read_text())
head_dim = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
config = llama.ModelConfig(
  num_layers=shape["num_hidden_layers"],
  vocab_size=shape["vocab_size"],
  embed_dim=shape["hidden_size"],
  hidden_dim=shape["intermediate_size"],
  num_heads=shape["num_attention_heads"],
  head_dim=head_dim,
  num_kv_heads=shape["num_key_value_heads"],
  rope_theta=100000,  # any value takes the same time
  norm_eps=shape["rms_norm_eps"],
  weight_tying=shape["tie_word_embeddings"],
)


class Numbers:
  """A tokenizer whose texts are token ids, so that prompts have an exact length."""

  def encode(self, text, **_):
    """'7 8' -> [7, 8]."""
    return [int(word) for word in text.split()]

  def decode(self, ids, **_):
    """[7, 8] -> '7 8'."""
    return " ".join(map(str, ids))

  def bos_id(self):
    """A token that no prompt contains."""
    return 1

  def eos_id(self):
    """A token that no prompt contains."""
    return shape["vocab_size"] - 1

  def pad_id(self):
    """A token that no prompt contains."""
    return 0

  def dedup_bos_ids(self, ids):
    """Returns the ids unchanged."""
    return ids


rng = np.random.default_rng(0)
texts = [" ".join(map(str, rng.integers(1000, 2000, prompt))) for _ in limits]
generate = sampler.Sampler(
  llama.Llama3(config, rngs=nnx.Rngs(0)),
  Numbers(),
  sampler.CacheConfig(
    cache_size=2 * prompt + new + 8,
    num_layers=config.num_layers,
    num_kv_heads=config.num_kv_heads,
    head_dim=head_dim,
  ),
)
seconds = []
for i in range(repeats + 1):  # the first one compiles
  start = time.perf_counter()
  generate(
    texts + texts,
    max_generation_steps=new,
    max_prompt_length=prompt,
    temperature=1.0,
    top_p=1.0,
    seed=i,
    eos_tokens=[shape["vocab_size"] - 1],
    return_logprobs=True,
  )
  seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": seconds[1:]}))
