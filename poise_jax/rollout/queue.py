"""The queue of responses that a device has to sample, and the prompts prefilled for the next ones.

Letters are those of poise_jax/types.py for the prompts of one device, and N = P * n responses,
R slots, B prompts in a prefill. Response q is sample q % n of prompt q // n.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from poise_jax.models import ModelConfig
from poise_jax.models.kv_cache import KVCache
from poise_jax.rollout.config import RolloutConfig
from poise_jax.rollout.draw import Drawn, next_tokens
from poise_jax.rollout.prefill import prefill
from poise_jax.types import Prompts

# Most positions of prompts that are prefilled at once while others wait: enough for the chip's
# peak, and few, since their caches lie beside those of the slots.
POSITIONS = 2**14


@flax.struct.dataclass
class Queue:
  """All responses, in the order in which they get a slot."""

  tokens: Int[Array, "P Tp"]  # prompts, padded on the right
  lengths: Int[Array, " P"]  # of the prompts
  limits: Int[Array, " P"]  # tokens that a response may have
  keys: Key[Array, "P n"]  # a response draws its token t with fold_in(key, t)


@flax.struct.dataclass
class Staged:
  """B consecutive prompts that are prefilled, and the first tokens of their responses."""

  first: Int[Array, ""]  # index of the first prompt
  caches: list[KVCache]  # keys and values per layer, B rows
  features: Float[Array, "layers B D"]  # pooled prompt states of the feature layers
  drawn: Drawn  # first token of each of the B * n responses


def batch(prompts: int, width: int, n: int, rows: int) -> int:
  """The number of prompts B that a device prefills at once.

  Args:
    prompts: P, of the device.
    width: positions of a prompt.
    n: responses a prompt.
    rows: slots of the device. If each response has one, B is P.
  """
  if rows >= prompts * n:
    return prompts
  return min(-(-rows // n), max(POSITIONS // width, 1))


def make(prompts: Prompts, keys: Key[Array, "P n"], rollout: RolloutConfig) -> Queue:
  """The queue of all samples of `prompts`."""
  lengths = prompts.mask.sum(-1, dtype=jnp.int32)
  limits = jnp.full_like(lengths, rollout.max_new_tokens)
  if prompts.max_tokens is not None:
    limits = jnp.clip(prompts.max_tokens, 1, limits)
  tokens = jax.vmap(jnp.roll)(prompts.tokens, lengths)  # padding moves from the left to the right
  return Queue(tokens=tokens, lengths=lengths, limits=limits, keys=keys)


def stage(
  config: ModelConfig,
  params: PyTree[Array],
  queue: Queue,
  first: Int[Array, ""],
  size: int,
  rollout: RolloutConfig,
) -> Staged:
  """Prefills `size` prompts from `first` on; at the end of the queue, its last ones."""
  first = jnp.minimum(first, len(queue.lengths) - size)
  tokens, lengths, keys = (
    jax.lax.dynamic_slice_in_dim(x, first, size) for x in (queue.tokens, queue.lengths, queue.keys)
  )
  results = prefill(config, params, tokens, lengths, rollout)
  hidden, keys = jnp.repeat(results.hidden, rollout.n, axis=0), keys.reshape(-1)
  drawn = next_tokens(config, params, hidden, keys, jnp.zeros_like(keys, jnp.int32), rollout)
  return Staged(first=first, caches=results.caches, features=results.features, drawn=drawn)
