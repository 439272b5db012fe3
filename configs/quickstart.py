"""A Qwen3-shaped model of about a million parameters learns arithmetic from scratch.

A sentencepiece model is trained on the text of the task. A supervised warm start imitates a teacher
who works some answers out and guesses at most of the harder ones. Reinforcement learning then
improves the policy. It needs no download and takes minutes on 2 CPU cores:
`python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart`.
"""

from configs import common


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = common.default(algorithm)
  config.steps = 40
  config.rollouts = 256
  config.eval_every = 10
  config.eval_batch = 60

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
  # One-digit sums, a fifth of the mix, are easy: a spread of difficulty for the probe to find.
  config.task.arithmetic.kinds = ("1+", "2+", "2-", "2+", "2-")
  config.task.test = 120
  config.task.arithmetic.careless = 0.35
  config.task.template = "{question} :"
  config.task.max_prompt_length = 10

  config.warm_start.steps = 500

  config.rollout.max_new_tokens = 16
  config.rollout.feature_layers = (1,)
  config.rollout.feature_window = 5
  config.collect.max_generations = 3  # near the end few groups have different scores
  config.critic.learning_rate = 1e-3
  if config.critic.length_alpha:  # VAPO's 0.05 gives lambda 0 to answers of fewer than 20 tokens
    config.critic.length_alpha = 1.0
  config.probe.bootstrap_steps = 4
  config.probe.buffer_rows = 1024
  config.train.minibatch_size = 128
  config.train.microbatch_size = 128
  config.train.learning_rate = 2e-4
  config.train.warmup_steps = 5
  config.train.adam_b2 = 0.99
  return config
