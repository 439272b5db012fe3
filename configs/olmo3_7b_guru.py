"""The paper's second study (v3) with OLMo-3-7B-Instruct-DPO, whose answers have no marked thought.

All but the model and its probe is as in configs/qwen3_4b_guru.py. The released code has no entropy
of the reasoning where a response has no marker; here the whole response is reasoning.
"""

from configs import qwen3_4b_guru
from poise_jax.models.families import FULL, SLIDING


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = qwen3_4b_guru.get_config(algorithm)
  config.model.source = "allenai/Olmo-3-7B-Instruct-DPO"
  config.model.shape = dict(  # the scaling of its rotary frequencies comes with the source
    model_type="olmo3",
    vocab_size=100278,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    rope_theta=5e5,
    rms_norm_eps=1e-6,
    qk_norm=True,
    layer_types=(SLIDING, SLIDING, SLIDING, FULL) * 8,
    sliding_window=4096,
  )
  config.task.think_end = ""
  config.mesh.tensor = 2  # divides the vocabulary, which is 2 x 3 x 16,713 tokens
  config.train.microbatch_size = 32  # data x fsdp on 64 chips
  config.rollout.feature_layers = (7,)
  config.rollout.feature_window = 32
  if algorithm != "poise_v2":
    config.probe.alpha = 1000.0
    config.probe.pca_prompt, config.probe.pca_response = 16, 128
  return config
