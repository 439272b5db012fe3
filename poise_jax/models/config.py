"""The shape of a decoder, read from and written as a Hugging Face config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from poise_jax.errors import UserError, unknown_name
from poise_jax.models import config_json
from poise_jax.models.families import FAMILIES, FULL, SLIDING, Family
from poise_jax.models.rotary import NoRope, Rope, Scaling


class LayerSpec(NamedTuple):
  """What differs from layer to layer."""

  window: int  # keys that a query attends to at most, its own included; 0: all
  rope: int  # index in ModelConfig.ropes


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A decoder of one of the FAMILIES. Field names are mostly Hugging Face's; all sizes are in
  elements.

  Raises UserError on construction for sizes that do not fit together.
  """

  model_type: str  # family: a key of models.families.FAMILIES
  vocab_size: int  # V, size of the vocabulary
  hidden_size: int  # D, width of the hidden states
  intermediate_size: int  # width of the MLP
  num_hidden_layers: int  # L, number of blocks
  num_attention_heads: int  # number of query heads
  num_key_value_heads: int  # number of key-value heads, each shared by a group of query heads
  head_dim: int  # width of a head, even
  rope_theta: float = 10000.0  # base of the rotary wavelengths
  rope_scaling: Scaling | None = None  # scaling of the rotary frequencies; None: unscaled
  rms_norm_eps: float = 1e-6  # constant added to the mean square before its root
  tie_word_embeddings: bool = False  # whether the unembedding is the transposed embedding
  qkv_bias: bool = False  # biases of q, k and v: Qwen2 always, others by `attention_bias`
  out_bias: bool = False  # bias of o_proj: all but Qwen2 by `attention_bias`
  mlp_bias: bool = False  # biases of the MLP: by `mlp_bias`
  qk_norm: bool = False  # normalisation of queries and keys: of a family always or never
  max_position_embeddings: int = 2048  # context length in training; not enforced
  # "full_attention" or "sliding_attention" for each layer; empty: all layers are full
  layer_types: tuple[str, ...] = ()
  sliding_window: int = 0  # keys that a query of a sliding layer attends to, its own included
  # base of the rotary wavelengths of sliding layers, unscaled, in OLMo-3 and Gemma 3; 0: rope_theta
  sliding_rope_theta: float = 0.0
  unrotated_layers: tuple[int, ...] = ()  # layers without rotary embedding, 0-based
  query_pre_attn_scalar: float = 0.0  # queries are divided by its root; 0: head_dim

  def __post_init__(self):
    for name in ("layer_types", "unrotated_layers"):  # lists where they come from a JSON file
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if self.model_type not in FAMILIES:
      raise unknown_name("model_type", self.model_type, FAMILIES)
    if self.num_attention_heads % self.num_key_value_heads:
      raise UserError(
        f"num_attention_heads {self.num_attention_heads} is not a multiple of "
        f"num_key_value_heads {self.num_key_value_heads}"
      )
    if self.head_dim % 2:
      raise UserError(f"head_dim {self.head_dim} is odd; rotary embeddings need an even one")

    self._check_layers()
    if self.family.scales_queries and not self.query_pre_attn_scalar:
      object.__setattr__(self, "query_pre_attn_scalar", float(self.head_dim))
    # What scales the full layers of such a family never scales its sliding ones.
    by_kind = self.family.rope_by_kind and SLIDING in self.layer_types
    if by_kind and not self.sliding_rope_theta:
      object.__setattr__(self, "sliding_rope_theta", self.rope_theta)

  def _check_layers(self):
    if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
      raise UserError(
        f"layer_types has {len(self.layer_types)} layers, but num_hidden_layers is "
        f"{self.num_hidden_layers}"
      )
    for kind in self.layer_types:
      if kind not in (FULL, SLIDING):
        raise unknown_name("layer_types", kind, (FULL, SLIDING))
    if SLIDING in self.layer_types and self.sliding_window < 1:
      raise UserError(
        f"sliding_window {self.sliding_window} is too small; sliding layers need at least 1"
      )
    # What a family's config.json cannot say would be lost in a checkpoint or an export.
    for name, wanted, possible in (
      ("sliding layers", SLIDING in self.layer_types, self.family.slides),
      ("unrotated_layers", self.unrotated_layers, self.family.skips_rotation),
      ("sliding_rope_theta", self.sliding_rope_theta, self.family.rope_by_kind),
      ("query_pre_attn_scalar", self.query_pre_attn_scalar, self.family.scales_queries),
    ):
      if wanted and not possible:
        raise UserError(f"decoders of model_type {self.model_type!r} have no {name}")
    for layer in self.unrotated_layers:
      if not 0 <= layer < self.num_hidden_layers:
        raise UserError(
          f"unrotated_layers has {layer}, but the layers are 0 to {self.num_hidden_layers - 1}"
        )

  @property
  def family(self) -> Family:
    """What all decoders of the family share."""
    return FAMILIES[self.model_type]

  @property
  def layers(self) -> tuple[LayerSpec, ...]:
    """What differs from layer to layer, for each layer."""
    ropes, kinds = self.ropes, self.layer_types or (FULL,) * self.num_hidden_layers
    return tuple(
      LayerSpec(self.sliding_window if kind == SLIDING else 0, ropes.index(self._rope(i)))
      for i, kind in enumerate(kinds)
    )

  @property
  def ropes(self) -> tuple[Rope | NoRope, ...]:
    """The rotary embeddings of all layers, each once."""
    return tuple(dict.fromkeys(map(self._rope, range(self.num_hidden_layers))))

  def _rope(self, layer):
    if layer in self.unrotated_layers:
      return NoRope()
    if self.sliding_rope_theta and self.layer_types and self.layer_types[layer] == SLIDING:
      return Rope(self.sliding_rope_theta)
    return Rope(self.rope_theta, self.rope_scaling)

  def check_is(self, expected: Mapping[str, Any]):
    """Raises UserError if a field differs from its `expected` value."""
    for name, value in expected.items():
      if getattr(self, name) != (tuple(value) if isinstance(value, list) else value):
        raise UserError(
          f"config.model.shape.{name}={value!r}, but the model at config.model.source has "
          f"{getattr(self, name)!r}; correct the shape or the source"
        )

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any]) -> "ModelConfig":
    """Reads a config.json of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters).

    Where both are set, rope_scaling counts, as in transformers 5.

    Raises:
      UserError: the architecture or one of its options is not supported.
      KeyError: a size is missing.
    """
    return cls(**config_json.read(hf))

  def to_hf(self) -> dict[str, Any]:
    """The config.json of this decoder, for transformers 4 and 5.

    It has the rotary parameters in both spellings.
    """
    return config_json.write({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
