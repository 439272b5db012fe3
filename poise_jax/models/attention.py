"""Attention over a whole sequence, and of one new token over a prompt cache shared by its samples.

Operands are brought into [batch..., rows, K] order by hand before each matrix product, with the
query heads of one key head as rows: left to itself, XLA transposes the far larger score matrices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

NEGATIVE = -1e30  # finite: a row whose keys are all masked stays finite instead of turning NaN


def attention(
  q: Float[Array, "B S H K"],
  k: Float[Array, "B T G K"],
  v: Float[Array, "B T G K"],
  mask: Bool[Array, "B S T"],
) -> Float[Array, "B S H K"]:
  """Grouped-query attention; query head h reads key head h // (H / G). Softmax in float32."""
  batch, length, heads, dim = q.shape
  groups = k.shape[2]
  ratio = heads // groups
  q = (q * dim**-0.5).reshape(batch, length, groups, ratio, dim)
  q = q.transpose(0, 2, 3, 1, 4).reshape(batch, groups, ratio * length, dim)
  k, v = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)  # [B, G, K, T], [B, G, T, K]
  scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
  scores = scores.reshape(batch, groups, ratio, length, -1)
  scores = jnp.where(mask[:, None, None], scores, NEGATIVE)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  context = jnp.matmul(weights.reshape(batch, groups, ratio * length, -1), v)
  context = context.reshape(batch, groups, ratio, length, dim).transpose(0, 3, 1, 2, 4)
  return context.reshape(batch, length, heads, dim)


def decode_attention(
  q: Float[Array, "P n H K"],
  prompt_k: Float[Array, "P G K Tp"],
  prompt_v: Float[Array, "P G Tp K"],
  prompt_mask: Bool[Array, "P Tp"],
  own_k: Float[Array, "P*n G K T"],
  own_v: Float[Array, "P*n G T K"],
  own_mask: Bool[Array, " T"],
) -> Float[Array, "P n H K"]:
  """One new token of each of n samples attends to their shared prompt and to its own response.

  The prompt's keys and values exist once for all n samples. The two parts are normalised together:
  each is an unnormalised softmax with its own maximum, merged at the end.
  """
  p, n, heads, dim = q.shape
  groups = prompt_k.shape[1]
  ratio = heads // groups
  q = (q * dim**-0.5).reshape(p, n, groups, ratio, dim)
  by_prompt = q.swapaxes(1, 2).reshape(p, groups, n * ratio, dim)  # its samples as rows
  by_sample = q.reshape(p * n, groups, ratio, dim)

  def part(q, k, v, mask):  # -> context [..., rows, K], mass and maximum [..., rows, 1]
    scores = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, NEGATIVE)
    top = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - top)
    context = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return context, weights.sum(-1, keepdims=True), top

  shared = part(by_prompt, prompt_k, prompt_v, prompt_mask[:, None, None])
  shared = [x.reshape(p, groups, n, ratio, -1).swapaxes(1, 2) for x in shared]
  own = part(by_sample, own_k, own_v, own_mask)
  own = [x.reshape(p, n, groups, ratio, -1) for x in own]
  top = jnp.maximum(shared[2], own[2])
  scale = [jnp.exp(x[2] - top) for x in (shared, own)]
  context = shared[0] * scale[0] + own[0] * scale[1]
  context = context / (shared[1] * scale[0] + own[1] * scale[1])
  return context.astype(own_v.dtype).reshape(p, n, heads, dim)
