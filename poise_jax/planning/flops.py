"""FLOPs and bytes that a model itself needs, whatever program computes it.

Only matrix products count: 2 FLOPs per parameter and token in the forward pass, twice that in the
backward pass (the 6ND of arXiv 2001.08361), plus causal attention. Rematerialisation, norms,
softmax and the optimizer are not counted.
"""

import math

import jax
from jaxtyping import PyTree

from poise_jax.models import ModelConfig


def matmul_parameters(model: ModelConfig) -> tuple[int, int]:
  """Number of parameters that multiply each token: (all layers together, the unembedding)."""
  queries = model.num_attention_heads * model.head_dim
  keys = model.num_key_value_heads * model.head_dim
  layer = model.hidden_size * (2 * queries + 2 * keys + 3 * model.intermediate_size)
  return model.num_hidden_layers * layer, model.hidden_size * model.vocab_size


def forward_flops(model: ModelConfig, length: int, num_logits: int, start: int = 0) -> float:
  """Forward pass over positions start to `length` of one sequence.

  Args:
    model: shape of the decoder.
    length: tokens up to the last position.
    num_logits: positions whose logits are computed.
    start: positions already in the cache: they are attended to, not computed.
  """
  layers, unembedding = matmul_parameters(model)
  width = model.num_attention_heads * model.head_dim
  pairs = sum(_pairs(length, layer) - _pairs(start, layer) for layer in model.layers)
  attention = 4 * width * pairs  # scores and weighted values
  return 2.0 * (layers * (length - start) + unembedding * num_logits) + attention


def _pairs(length, layer):
  """Pairs of a query and a key that it attends to, in a sequence."""
  ramp = min(length, layer.window or length)  # queries that attend to all keys up to their own
  return ramp * (ramp + 1) / 2 + (length - ramp) * layer.window


def training_flops(
  model: ModelConfig, prompt_length: int, num_responses: int, response_length: int
) -> float:
  """Forward and backward pass of responses that share one pass over their prompt; logits of
  response tokens only."""
  prompt = forward_flops(model, prompt_length, 0)
  length = prompt_length + response_length
  response = forward_flops(model, length, response_length, start=prompt_length)
  return 3 * (prompt + num_responses * response)


def sampling_flops(
  model: ModelConfig, prompt_length: int, num_responses: int, response_length: int
) -> float:
  """Prefill of one prompt and decoding of its responses."""
  prefill = forward_flops(model, prompt_length, 1)
  length = prompt_length + response_length
  response = forward_flops(model, length, response_length, start=prompt_length)
  return prefill + num_responses * response


def decode_bytes(
  sampling_params: PyTree[jax.ShapeDtypeStruct], tied: bool, cache_bytes: float
) -> float:
  """Least number of bytes that one decode step reads on one device: every weight and every cached
  position once. An embedding that is not also the unembedding is read at the sampled tokens only,
  which is not counted.

  Args:
    sampling_params: shapes and shardings of the parameters in the sampling layout.
    tied: whether the embedding is also the unembedding.
    cache_bytes: keys and values on one device.
  """
  if not tied:
    sampling_params = {k: v for k, v in sampling_params.items() if k != "embed_tokens"}
  return device_bytes(sampling_params) + cache_bytes


def device_bytes(tree: PyTree[jax.Array | jax.ShapeDtypeStruct]) -> int:
  """Bytes that a tree of arrays, or of shapes with shardings, takes on one device."""

  def leaf_bytes(x):
    shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    return math.prod(shape) * x.dtype.itemsize

  return sum(leaf_bytes(x) for x in jax.tree.leaves(tree))
