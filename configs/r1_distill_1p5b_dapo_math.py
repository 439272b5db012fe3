"""The paper's smaller run: DeepSeek-R1-Distill-Qwen-1.5B on DAPO-Math-17K. All but the model
is as in configs/qwen3_4b_dapo_math.py; v2 has half as many prompts per step.
"""

from configs import qwen3_4b_dapo_math


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = qwen3_4b_dapo_math.get_config(algorithm)
  config.rollouts = min(config.rollouts, 1024)  # table 5: 512 prompts x 2; table 6: 128 x 8
  config.train.warmup_steps = 10 * config.rollouts // config.train.minibatch_size
  config.model.source = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
  config.model.shape = dict(
    model_type="qwen2",
    vocab_size=151936,
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    head_dim=128,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    qkv_bias=True,
  )
  config.mesh.tensor = 2  # it has two key heads
  return config
