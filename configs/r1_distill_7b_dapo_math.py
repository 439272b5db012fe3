"""DeepSeek-R1-Distill-Qwen-7B on DAPO-Math-17K, the third model whose values the paper predicts
(v2, table 7). The paper does not train it; layer and window are those of its other two models.

    python -m experiments.probe_ablation --config=configs/r1_distill_7b_dapo_math.py --workdir=DIR
"""

from configs import r1_distill_1p5b_dapo_math


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = r1_distill_1p5b_dapo_math.get_config(algorithm)
  config.model.source = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
  config.model.shape = dict(
    config.model.shape,
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_attention_heads=28,
    num_key_value_heads=4,
    num_hidden_layers=28,
  )
  config.mesh.tensor = 4  # it has four key heads
  return config
