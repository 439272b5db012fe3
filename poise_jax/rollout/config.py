"""Sampling options: what a user sets, and what a run derives from its tokenizer and hardware."""

import dataclasses

from poise_jax.errors import UserError, check_finite, unknown_name
from poise_jax.models.kv_cache import CACHE_DTYPES

MIN_TEMPERATURE = 1e-3  # logits divided by less may overflow


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
  """What a user sets: the fields of config.rollout.

  Raises UserError on construction for a value out of its range.
  """

  n: int = 2  # responses per prompt
  max_new_tokens: int = 64  # T, maximum length of a response in tokens, including the EOS
  temperature: float = 1.0  # divisor of the logits; 0 picks the most likely token
  top_p: float = 1.0  # probability mass of the smallest set of tokens to draw from; 1: all tokens
  top_k: int = 0  # number of most likely tokens to draw from; 0: all tokens
  feature_layers: tuple[int, ...] = ()  # blocks whose output is pooled, 0-based; empty: no features
  # without feature_layers, the block at this share of the model's depth; 0: none
  feature_depth: float = 0.0
  feature_window: int = 10  # k, number of last prompt states and last reasoning states to average
  # dtype of the key-value cache: "" (dtype of the computation), "bfloat16", or "int8" with a scale
  # per token
  cache_dtype: str = ""
  prefill_chunk: int = 0  # prompt positions per prefill pass, to save memory; 0: all at once
  # responses that decode at once, on all devices together; the others wait until one of these ends.
  # Their caches are what slots cost. 0: all
  slots: int = 0

  def __post_init__(self):
    check_finite("rollout", self)
    for name in ("n", "max_new_tokens", "feature_window"):
      if getattr(self, name) < 1:
        raise UserError(f"rollout.{name} must be at least 1, got {getattr(self, name)}")
    if self.temperature and self.temperature < MIN_TEMPERATURE:
      raise UserError(
        f"rollout.temperature must be 0 (the most likely token) or at least {MIN_TEMPERATURE}, got "
        f"{self.temperature}"
      )
    if not 0 < self.top_p <= 1:
      raise UserError(f"rollout.top_p must be in (0, 1], got {self.top_p}")
    if self.top_k < 0:
      raise UserError(f"rollout.top_k must not be negative, got {self.top_k}; 0 keeps all tokens")
    if self.cache_dtype not in CACHE_DTYPES:
      raise unknown_name("rollout.cache_dtype", self.cache_dtype, CACHE_DTYPES)
    if self.prefill_chunk < 0:
      raise UserError(
        f"rollout.prefill_chunk must not be negative, got {self.prefill_chunk}; "
        "0 computes the whole prompt at once"
      )
    if self.slots < 0:
      raise UserError(
        f"rollout.slots must not be negative, got {self.slots}; 0 decodes all responses at once"
      )
    if not 0 <= self.feature_depth < 1:
      raise UserError(
        f"rollout.feature_depth must be at least 0 and less than 1, got {self.feature_depth}"
      )
    layers = self.feature_layers
    if not all(isinstance(layer, int) for layer in layers) or list(layers) != sorted(set(layers)):
      raise UserError(
        f"rollout.feature_layers must be whole numbers in increasing order, got {layers}"
      )


@dataclasses.dataclass(frozen=True)
class RolloutConfig(RolloutOptions):
  """Options and what a run derives; a static argument of the sampler, compiled once per value."""

  eos_ids: tuple[int, ...] = ()  # token ids that end a response; empty: always T tokens
  pad_id: int = 0  # token id at positions after the end; masks never read it
  # token ids of the end-of-thinking marker; empty: all is reasoning
  think_end: tuple[int, ...] = ()
  attention: str = "auto"  # implementation of attention, see models/attention.py
