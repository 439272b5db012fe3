"""The shape of a decoder, read from and written as a Hugging Face config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from poise_jax.errors import UserError, unknown_name

# Families of the Transformer; each is a choice of the options below.
ARCHITECTURES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3's scaling of the low rotary frequencies (`rope_type: llama3`)."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A Llama, Qwen2 or Qwen3 decoder. Field names are Hugging Face's; all sizes are in elements.

  Raises UserError on construction for sizes that do not fit together.
  """

  model_type: str  # family: llama, qwen2 or qwen3
  vocab_size: int  # V, size of the vocabulary
  hidden_size: int  # D, width of the hidden states
  intermediate_size: int  # width of the MLP
  num_hidden_layers: int  # L, number of blocks
  num_attention_heads: int  # number of query heads
  num_key_value_heads: int  # number of key-value heads, each shared by a group of query heads
  head_dim: int  # width of a head, even
  rope_theta: float = 10000.0  # base of the rotary wavelengths
  rope_scaling: RopeScaling | None = None  # scaling of the rotary frequencies; None: unscaled
  rms_norm_eps: float = 1e-6  # constant added to the mean square before its root
  tie_word_embeddings: bool = False  # whether the unembedding is the transposed embedding
  qkv_bias: bool = False  # biases of q, k and v: Qwen2 always, the others by `attention_bias`
  out_bias: bool = False  # bias of o_proj: Llama and Qwen3 by `attention_bias`
  mlp_bias: bool = False  # biases of the MLP: Llama by its `mlp_bias`
  qk_norm: bool = False  # normalisation of queries and keys: Qwen3 always
  max_position_embeddings: int = 2048  # context length in training; not enforced

  def __post_init__(self):
    if self.model_type not in ARCHITECTURES:
      raise unknown_name("model_type", self.model_type, ARCHITECTURES)
    if self.num_attention_heads % self.num_key_value_heads:
      raise UserError(
        f"num_attention_heads {self.num_attention_heads} is not a multiple of "
        f"num_key_value_heads {self.num_key_value_heads}"
      )
    if self.head_dim % 2:
      raise UserError(f"head_dim {self.head_dim} is odd; rotary embeddings need an even one")

  def check_is(self, expected: Mapping[str, Any]):
    """Raises UserError if a field differs from its `expected` value."""
    for name, value in expected.items():
      if getattr(self, name) != value:
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
    model_type = hf.get("model_type")
    if model_type not in ARCHITECTURES:
      raise UserError(
        f"architecture {model_type or hf.get('architectures')!r} is not supported; "
        f"choose a model of type {', '.join(ARCHITECTURES)}"
      )
    if hf.get("hidden_act", "silu") != "silu":
      raise UserError(f"hidden_act {hf['hidden_act']!r} is not supported; only 'silu' is")
    if hf.get("use_sliding_window") or "sliding_attention" in (hf.get("layer_types") or ()):
      raise UserError("sliding-window attention (use_sliding_window) is not supported")
    if quantisation := hf.get("quantization_config"):
      raise UserError(
        f"quantised weights (quantization_config {quantisation.get('quant_method')!r}) are not "
        "supported; use the original checkpoint in bfloat16, float16 or float32"
      )
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in rope.values()):
      raise UserError(f"rotary embeddings by kind of layer ({', '.join(rope)}) are not supported")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
      raise UserError(f"rope_type {kind!r} is not supported; only 'default' and 'llama3' are")
    scaling = None
    if kind == "llama3":
      scaling = RopeScaling(
        **{f.name: f.type(rope[f.name]) for f in dataclasses.fields(RopeScaling)}
      )
    heads = hf["num_attention_heads"]
    bias = bool(hf.get("attention_bias", False))
    return cls(
      model_type=model_type,
      vocab_size=hf["vocab_size"],
      hidden_size=hf["hidden_size"],
      intermediate_size=hf["intermediate_size"],
      num_hidden_layers=hf["num_hidden_layers"],
      num_attention_heads=heads,
      num_key_value_heads=hf.get("num_key_value_heads") or heads,
      head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
      rope_theta=float(rope.get("rope_theta") or hf.get("rope_theta") or 10000.0),
      rope_scaling=scaling,
      rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
      tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
      qkv_bias=model_type == "qwen2" or bias,
      out_bias=model_type != "qwen2" and bias,
      mlp_bias=model_type == "llama" and bool(hf.get("mlp_bias", False)),
      qk_norm=model_type == "qwen3",
      max_position_embeddings=hf.get("max_position_embeddings", 2048),
    )

  def to_hf(self) -> dict[str, Any]:
    """The config.json of this decoder, for transformers 4 and 5.

    It has the rotary parameters in both spellings.
    """
    rope: dict[str, Any] = {"rope_type": "default"}
    if self.rope_scaling is not None:
      rope = {"rope_type": "llama3", **dataclasses.asdict(self.rope_scaling)}
    hf = {
      "architectures": [ARCHITECTURES[self.model_type]],
      "hidden_act": "silu",
      "attention_bias": self.out_bias,
      "rope_scaling": None if self.rope_scaling is None else rope,
      "rope_parameters": {**rope, "rope_theta": self.rope_theta},
      "torch_dtype": "float32",
    }
    derived = ("rope_scaling", "qkv_bias", "out_bias", "qk_norm")
    for field in dataclasses.fields(self):
      if field.name not in derived:
        hf[field.name] = getattr(self, field.name)
    return hf
