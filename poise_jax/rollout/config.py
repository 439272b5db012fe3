"""What a rollout is asked to do."""

import dataclasses

from poise_jax.errors import UserError, unknown_name
from poise_jax.models.kv_cache import CACHE_DTYPES


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """Sampling options; a static argument of the sampler, so each new value compiles once.

  Raises UserError on construction for values that no sampler could honour.
  """

  n: int = 2  # responses a prompt
  max_new_tokens: int = 64  # T, most tokens of a response, the EOS included
  temperature: float = 1.0  # logits are divided by it; 0 picks the most likely token
  top_p: float = 1.0  # keep the smallest set of tokens with at least this mass; 1 keeps all
  top_k: int = 0  # keep the k most likely tokens; 0 keeps all
  eos_ids: tuple[int, ...] = ()  # any of them ends a response; none: always T tokens
  pad_id: int = 0  # fills positions after the end; masks never read it
  think_end: tuple[int, ...] = ()  # token ids of the end-of-thinking marker; none: all is reasoning
  feature_layers: tuple[int, ...] = ()  # blocks whose output is pooled, 0-based; none: no features
  feature_window: int = 10  # k: how many last prompt and last reasoning states are averaged
  # of keys and values of past tokens: "" (as computed), "bfloat16" or "int8" with a scale a token
  cache_dtype: str = ""
  prefill_chunk: int = 0  # prompt positions computed at once, to save memory; 0: all
  attention: str = "auto"  # over the prompt, see models/attention.py; train.attention decides

  def __post_init__(self):
    for name in ("n", "max_new_tokens", "feature_window"):
      if getattr(self, name) < 1:
        raise UserError(f"rollout.{name}={getattr(self, name)} must be at least 1")
    if self.temperature < 0:
      raise UserError(f"rollout.temperature={self.temperature} must not be negative")
    if not 0 < self.top_p <= 1:
      raise UserError(f"rollout.top_p={self.top_p} must be in (0, 1]")
    if self.top_k < 0:
      raise UserError(f"rollout.top_k={self.top_k} must not be negative; 0 keeps all tokens")
    if self.cache_dtype not in CACHE_DTYPES:
      raise unknown_name("rollout.cache_dtype", self.cache_dtype, CACHE_DTYPES)
    if self.prefill_chunk < 0:
      raise UserError(
        f"rollout.prefill_chunk={self.prefill_chunk} must not be negative; 0 is the whole prompt"
      )
    layers = self.feature_layers
    if not all(isinstance(layer, int) for layer in layers) or list(layers) != sorted(set(layers)):
      raise UserError(f"rollout.feature_layers={layers} must be whole numbers that increase")
