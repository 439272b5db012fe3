"""Everything embedded: a Qwen3-shaped model of about a million parameters learns to add.

A sentencepiece model is trained on the task's text, a supervised warm start teaches the form of a
worked answer and partial skill, reinforcement learning does the rest. No download, minutes on 2 CPU
cores: `python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart`.
"""

from configs import common


def get_config(algorithm="poise"):
  """poise, rloo, grpo or dapo."""
  config = common.default(algorithm)
  config.steps = 100
  config.rollouts = 128
  config.eval_every = 20
  config.eval_batch = 80

  config.model.shape = dict(
    model_type="qwen3",
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=48,
    qk_norm=True,
    tie_word_embeddings=True,
  )
  config.task.kinds = ("1+", "1-", "2+", "2-")
  config.task.test = 160
  config.task.careless = 0.6
  config.task.template = "{question} :"
  config.task.max_prompt_length = 10

  config.warm_start.steps = 300

  config.rollout.max_new_tokens = 16
  config.rollout.feature_layers = (1,)
  config.rollout.feature_window = 5
  config.probe.bootstrap_steps = 4
  config.probe.buffer_rows = 1024
  config.probe.alpha = 100.0
  config.train.minibatch_size = 64
  config.train.microbatch_size = 64
  config.train.learning_rate = 3e-4
  return config
