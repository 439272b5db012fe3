"""The table of model families: what the decoders of a family share, as data.

Whatever differs between two decoders of one family is a field of models.config.ModelConfig.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers


@dataclasses.dataclass(frozen=True)
class Norms:
  """Names of the norms of a block, in the model's files and in the parameters; "": no norm."""

  before_attention: str = "input_layernorm"
  after_attention: str = ""  # of the attention's output, before it is added to the residual stream
  before_mlp: str = "post_attention_layernorm"
  after_mlp: str = ""


OUTPUT_NORMS = Norms("", "post_attention_layernorm", "", "post_feedforward_layernorm")
FOUR_NORMS = Norms(
  after_attention="post_attention_layernorm",
  before_mlp="pre_feedforward_layernorm",
  after_mlp="post_feedforward_layernorm",
)


@dataclasses.dataclass(frozen=True)
class Family:
  """What the decoders of a family share."""

  architecture: str  # class of transformers
  norms: Norms = Norms()
  norm_offset: float = 0.0  # added to the stored scales of all norms
  qk_norm: str = ""  # queries and keys are normalised over each "head" or the whole "projection"
  activation: str = "silu"  # of the MLP, by transformers' name
  scales_queries: bool = False  # whether query_pre_attn_scalar replaces head_dim in their scale
  scales_embedding: bool = False  # whether embeddings are multiplied by sqrt(hidden_size)
  qkv_bias: bool = False  # whether q, k and v always have biases
  biases: tuple[str, ...] = ()  # keys of config.json that switch biases on
  # whether rope_parameters of config.json has a dictionary for each kind of layer, and rope_scaling
  # is that of full layers alone
  rope_by_kind: bool = False
  gguf: str = ""  # in GGUF files, rotated dimensions are "halves" or "neighbours"; "": not read
  # what transformers assumes for keys that a config.json lacks, where families differ
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def slides(self) -> bool:
    """Whether layers may have a window."""
    return bool({"sliding_window", "use_sliding_window"} & self.defaults.keys())

  @property
  def skips_rotation(self) -> bool:
    """Whether layers may have no rotary embedding."""
    return "no_rope_layer_interval" in self.defaults


_QWEN = {"use_sliding_window": False, "max_window_layers": 28}
_OLMO = {"rms_norm_eps": 1e-5}
_EVERY_FOURTH = {"sliding_window": 4096, "sliding_window_pattern": 4}

FAMILIES = {
  "llama": Family("LlamaForCausalLM", biases=("attention_bias", "mlp_bias"), gguf="neighbours"),
  "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, gguf="halves", defaults=_QWEN),
  "qwen3": Family(
    "Qwen3ForCausalLM", qk_norm="head", biases=("attention_bias",), gguf="halves", defaults=_QWEN
  ),
  "olmo2": Family(
    "Olmo2ForCausalLM",
    norms=OUTPUT_NORMS,
    qk_norm="projection",
    biases=("attention_bias",),
    defaults=_OLMO,
  ),
  "olmo3": Family(
    "Olmo3ForCausalLM",
    norms=OUTPUT_NORMS,
    qk_norm="projection",
    biases=("attention_bias",),
    rope_by_kind=True,
    defaults={**_OLMO, **_EVERY_FOURTH, "rope_theta": 5e5},
  ),
  "gemma3_text": Family(
    "Gemma3ForCausalLM",
    norms=FOUR_NORMS,
    norm_offset=1.0,
    qk_norm="head",
    activation="gelu_pytorch_tanh",
    scales_queries=True,
    scales_embedding=True,
    biases=("attention_bias",),
    rope_by_kind=True,
    defaults={
      "head_dim": 256,
      "query_pre_attn_scalar": 256,
      "tie_word_embeddings": True,
      "sliding_window": 4096,
      "sliding_window_pattern": 6,
      "rope_theta": 1e6,
      "rope_local_base_freq": 1e4,
    },
  ),
  "mistral": Family(
    "MistralForCausalLM", defaults={"sliding_window": 4096, "max_window_layers": 0}
  ),
  "smollm3": Family(
    "SmolLM3ForCausalLM",
    biases=("attention_bias", "mlp_bias"),
    defaults={
      "tie_word_embeddings": True,
      "rope_theta": 2e6,
      "no_rope_layer_interval": 4,
      "use_sliding_window": False,
    },
  ),
}
