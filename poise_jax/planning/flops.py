"""What a model itself needs, whatever program computes it: FLOPs of its products, and the bytes
that decoding a token has to read.

Counted are matrix products alone: 2 FLOPs a parameter and token going forward, twice that going
back (the 6ND of arXiv 2001.08361), and attention over the positions up to a token's own. Nothing is
counted for what a program computes again (rematerialisation), for norms, softmax or the optimizer.
"""

import math
from typing import Any

import jax

from poise_jax.models import ModelConfig


def parameters(model: ModelConfig) -> tuple[int, int]:
  """How many multiply each token: in all layers, and in the unembedding."""
  c = model
  heads, groups = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
  layer = c.hidden_size * (2 * heads + 2 * groups + 3 * c.intermediate_size)
  return c.num_hidden_layers * layer, c.hidden_size * c.vocab_size


def forward_flops(model: ModelConfig, length: int, scored: int, start: int = 0) -> float:
  """Of positions start to `length` of one sequence, the last `scored` of which get logits."""
  layers, head = parameters(model)
  pairs = (length * (length + 1) - start * (start + 1)) / 2  # (query, key)
  width = model.num_attention_heads * model.head_dim
  attention = 4 * model.num_hidden_layers * width * pairs  # two products
  return 2.0 * (layers * (length - start) + head * scored) + attention


def training_flops(model: ModelConfig, prompt: int, n: int, response: int) -> float:
  """Forward and backward of n responses to one prompt, which is read once; logits of responses."""
  own = forward_flops(model, prompt + response, response, start=prompt)
  return 3 * (forward_flops(model, prompt, 0) + n * own)


def sampling_flops(model: ModelConfig, prompt: int, n: int, response: int) -> float:
  """Of n responses to one prompt, which is read once."""
  prefill = forward_flops(model, prompt, 1)
  return prefill + n * forward_flops(model, prompt + response, response, start=prompt)


def decode_bytes(decoding: Any, tied: bool, prompt_cache: float, response_cache: float) -> float:
  """The least that one decode step reads on one device: every weight and every cached position
  once. Of an embedding that is not the unembedding too, only the rows of the tokens are read.

  decoding: shapes, with shardings, of the parameters in the sampler's layout.
  """
  read = decoding if tied else {k: v for k, v in decoding.items() if k != "embed_tokens"}
  return device_bytes(read) + prompt_cache + response_cache


def device_bytes(tree: Any) -> int:
  """What a tree of arrays or shapes takes on one device."""

  def one(x):
    shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    return math.prod(shape) * x.dtype.itemsize

  return sum(one(x) for x in jax.tree.leaves(tree))
