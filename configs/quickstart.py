"""A Qwen3-shaped model of about a million parameters learns from scratch that thinking pays.

It adds and subtracts digit by digit and sorts letters by insertion (task `reasoning`). A
sentencepiece model is trained on the text of the task. A supervised warm start imitates a teacher
who thinks before some answers and guesses at most of the harder ones. Reinforcement learning then
improves the policy. It needs no download and takes five minutes on 2 CPU cores:
`python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart`.
"""

from configs import common


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = common.default(algorithm)
  config.steps = 30
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
  config.task.name = "reasoning"
  config.task.think_end = "</think>"
  # One-digit sums are easy and four-digit ones nearly hopeless: a spread of values for the probe.
  config.task.reasoning.levels = {"sums": (1, 4), "words": (2, 3)}
  config.task.reasoning.guess = 0.5
  config.task.reasoning.slip = 0.01
  config.task.test = 240
  config.task.template = "{question} :"
  config.task.max_prompt_length = 12

  config.warm_start.steps = 1000
  config.warm_start.batch_size = 64

  config.rollout.max_new_tokens = 42
  config.rollout.feature_layers = (1,)
  config.collect.max_generations = 3  # near the end few groups have different scores
  config.critic.learning_rate = 1e-3
  if config.critic.length_alpha:  # VAPO's 0.05 gives lambda 0 to answers of fewer than 20 tokens
    config.critic.length_alpha = 1.0
  config.probe.bootstrap_steps = 4
  config.probe.buffer_rows = 2048
  config.train.minibatch_size = 128
  config.train.microbatch_size = 128
  config.train.learning_rate = 2e-4
  config.train.warmup_steps = 5
  config.train.adam_b2 = 0.99
  return config
