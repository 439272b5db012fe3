"""Hugging Face's config.json as the fields of models.config.ModelConfig, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from poise_jax.errors import UserError
from poise_jax.models.families import FAMILIES, FULL, SLIDING, Family
from poise_jax.models.rotary import SCALINGS, Scaling

# Options that change what a decoder computes, and that none of the families here uses.
_REFUSED = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")
_RECIPES = {
  "moe": "mixtures of experts",
  "qwen3_5": "layers with a delta rule",
  "qwen3_next": "layers with a delta rule",
}


def read(hf: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a ModelConfig; see ModelConfig.from_hf."""
  family = _family(hf)
  hf = {**family.defaults, **hf}
  _check(hf, family)
  heads, layers = hf["num_attention_heads"], hf["num_hidden_layers"]
  bias = "attention_bias" in family.biases and bool(hf.get("attention_bias"))
  kinds = _layer_types(hf, layers)
  sliding = SLIDING in kinds
  return dict(
    model_type=hf["model_type"],
    vocab_size=hf["vocab_size"],
    hidden_size=hf["hidden_size"],
    intermediate_size=hf["intermediate_size"],
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=hf.get("num_key_value_heads") or heads,
    head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
    **_rotary(hf, family, sliding),
    rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
    tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
    qkv_bias=family.qkv_bias or bias,
    out_bias=bias,
    mlp_bias="mlp_bias" in family.biases and bool(hf.get("mlp_bias")),
    qk_norm=bool(family.qk_norm),
    layer_types=() if kinds == (FULL,) * layers else kinds,
    sliding_window=(hf.get("sliding_window") or 0) if sliding else 0,
    unrotated_layers=_unrotated(hf, layers) if family.skips_rotation else (),
    query_pre_attn_scalar=(
      float(hf.get("query_pre_attn_scalar") or 0) if family.scales_queries else 0.0
    ),
    max_position_embeddings=hf.get("max_position_embeddings", 2048),
  )


def _family(hf) -> Family:
  kind = hf.get("model_type")
  if kind in FAMILIES:
    return FAMILIES[kind]
  kind = kind or hf.get("architectures")
  has = next((f" has {what} and" for name, what in _RECIPES.items() if name in str(kind)), "")
  raise UserError(
    f"architecture {kind!r}{has} is not supported; choose a model of type {', '.join(FAMILIES)}"
  )


def _check(hf, family):
  """Raises UserError for options that are not supported."""
  for key in ("hidden_act", "hidden_activation"):
    if (name := hf.get(key) or family.activation) != family.activation:
      raise UserError(f"{key} {name!r} is not supported; only {family.activation!r} is")
  for key in _REFUSED:
    if hf.get(key):
      raise UserError(f"{key} {hf[key]!r} is not supported")
  if quantisation := hf.get("quantization_config"):
    raise UserError(
      f"quantised weights (quantization_config {quantisation.get('quant_method')!r}) are not "
      "supported; use the original checkpoint in bfloat16, float16 or float32"
    )


def _layer_types(hf, layers) -> tuple[str, ...]:
  """The kind of each layer."""
  if kinds := hf.get("layer_types"):
    return tuple(kinds)
  switch = hf.get("use_sliding_window")
  if not hf.get("sliding_window") or switch is False:
    return (FULL,) * layers
  if pattern := hf.get("sliding_window_pattern"):
    return tuple(SLIDING if (i + 1) % pattern else FULL for i in range(layers))
  if (first := hf.get("max_window_layers")) is not None:
    return tuple(SLIDING if i >= first else FULL for i in range(layers))
  if switch:
    raise UserError("use_sliding_window needs layer_types, the kind of each layer")
  return (FULL,) * layers


def _unrotated(hf, layers) -> tuple[int, ...]:
  """Layers without rotary embedding; no_rope_layers has 1 for each layer with one."""
  if rotated := hf.get("no_rope_layers"):
    return tuple(i for i, flag in enumerate(rotated[:layers]) if not flag)
  every = hf.get("no_rope_layer_interval")
  return tuple(i for i in range(layers) if every and (i + 1) % every == 0)


def _rotary(hf, family, sliding) -> dict[str, Any]:
  """The fields of the rotary embeddings."""
  scaling, parameters = hf.get("rope_scaling") or {}, hf.get("rope_parameters") or {}
  by_kind = any(isinstance(value, Mapping) for value in {**parameters, **scaling}.values())
  if by_kind and not family.rope_by_kind:
    kinds = ", ".join({**parameters, **scaling})
    raise UserError(f"rotary embeddings by kind of layer ({kinds}) are not supported")
  if not family.rope_by_kind:
    rope, local = scaling or parameters, {}
  elif by_kind:
    rope, local = {**(parameters.get(FULL) or {}), **scaling}, parameters.get(SLIDING) or {}
  else:
    rope, local = {**parameters, **scaling}, {}
  if (kind := local.get("rope_type", "default")) != "default":
    raise UserError(f"rope_type {kind!r} of sliding layers is not supported; only 'default' is")
  theta = float(rope.get("rope_theta") or hf.get("rope_theta") or 10000.0)
  local_theta = float(local.get("rope_theta") or hf.get("rope_local_base_freq") or theta)
  return dict(
    rope_theta=theta,
    rope_scaling=_scaling(rope, hf),
    sliding_rope_theta=local_theta if sliding and family.rope_by_kind else 0.0,
  )


def _scaling(rope, hf) -> Scaling | None:
  for values in (rope, hf):
    if values.get("partial_rotary_factor") not in (None, 1):
      raise UserError(f"partial_rotary_factor {values['partial_rotary_factor']} is not supported")
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind == "default":
    return None
  if kind not in SCALINGS:
    names = ", ".join(map(repr, SCALINGS))
    raise UserError(f"rope_type {kind!r} is not supported; only 'default', {names} are")
  if rope.get("mscale") or rope.get("mscale_all_dim"):
    raise UserError("mscale of rope_type 'yarn' is not supported; set attention_factor instead")
  # As in transformers, the length of a model that does not name an original one.
  original = {"original_max_position_embeddings": hf.get("max_position_embeddings")}
  rope = {**original, **{key: value for key, value in rope.items() if value is not None}}
  fields = dataclasses.fields(SCALINGS[kind])
  required = {f.name for f in fields if f.default is dataclasses.MISSING}
  if missing := sorted(name for name in required if rope.get(name) is None):
    raise UserError(f"rope_type {kind!r} lacks {', '.join(missing)}")
  return SCALINGS[kind](**{f.name: f.type(rope[f.name]) for f in fields if f.name in rope})


def write(fields: Mapping[str, Any]) -> dict[str, Any]:
  """The config.json for transformers 4 and 5 of a ModelConfig's `fields`; the inverse of `read`.

  It has the rotary parameters in both spellings.
  """
  hf = dict(fields)
  family = FAMILIES[hf["model_type"]]
  scaling, local_theta = hf.pop("rope_scaling"), hf.pop("sliding_rope_theta")
  kinds, unrotated = hf.pop("layer_types"), hf.pop("unrotated_layers")
  window, scalar = hf.pop("sliding_window"), hf.pop("query_pre_attn_scalar")
  for name in ("qkv_bias", "qk_norm"):
    del hf[name]
  rope: dict[str, Any] = {"rope_type": "default"}
  if scaling is not None:
    rope = {"rope_type": scaling.rope_type, **dataclasses.asdict(scaling)}
  parameters = {**rope, "rope_theta": hf["rope_theta"]}
  if family.rope_by_kind:
    local = {"rope_type": "default", "rope_theta": local_theta or hf["rope_theta"]}
    parameters = {FULL: parameters, SLIDING: local}
    hf["rope_local_base_freq"] = local["rope_theta"]
  hf |= {
    "architectures": [family.architecture],
    "hidden_act": family.activation,
    "hidden_activation": family.activation,
    "attention_bias": hf.pop("out_bias"),
    "rope_scaling": None if scaling is None else rope,
    "rope_parameters": parameters,
    "torch_dtype": "float32",
    "pad_token_id": None,  # transformers' default of a family can be outside of the vocabulary
  }
  layers = hf["num_hidden_layers"]
  if kinds or "sliding_window" in family.defaults:
    hf["layer_types"] = list(kinds or (FULL,) * layers)
  if kinds:
    hf["use_sliding_window"] = True
  if kinds or "sliding_window_pattern" not in family.defaults:
    hf["sliding_window"] = window or None
  if unrotated or "no_rope_layer_interval" in family.defaults:
    hf["no_rope_layers"] = [int(i not in unrotated) for i in range(layers)]
  if scalar:
    hf["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
  return hf
