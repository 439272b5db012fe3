from poise_jax.models.config import LayerSpec, ModelConfig
from poise_jax.models.io.huggingface import save_hf
from poise_jax.models.io.pretrained import load, read_config
from poise_jax.models.io.tokenizers import (
  Tokenizer,
  check_fits,
  load_tokenizer,
  save_tokenizer,
  token_texts,
)
from poise_jax.models.layouts import sampling_axes, sampling_params
from poise_jax.models.rotary import LinearScaling, RopeScaling, YarnScaling
from poise_jax.models.rows import Rows
from poise_jax.models.transformer import (
  Output,
  abstract_params,
  forward,
  hidden_states,
  init,
  logical_axes,
  unembedding,
)

__all__ = [
  "LayerSpec",
  "LinearScaling",
  "ModelConfig",
  "Output",
  "RopeScaling",
  "Rows",
  "Tokenizer",
  "YarnScaling",
  "abstract_params",
  "check_fits",
  "forward",
  "hidden_states",
  "init",
  "load",
  "load_tokenizer",
  "logical_axes",
  "read_config",
  "sampling_axes",
  "sampling_params",
  "save_hf",
  "save_tokenizer",
  "token_texts",
  "unembedding",
]
