"""SmolLM2-135M-Instruct on three domains of reasoning-gym on a CPU, with a probe per domain.

A short warm start on bare answers teaches the format, without which no answer is counted. After a
warm start on these and four other domains, greedy answers to 30 problems each were right in 0.37
(chain_sum), 0.33 (gcd, almost all of them "2") and 0.17 (word_sequence_reversal, with up to four
words).
"""

from configs import smollm2_arithmetic


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = smollm2_arithmetic.get_config(algorithm)  # the same model, batches, probe and optimizer
  config.task.name = "reasoning_gym"
  config.task.reasoning_gym.generators = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "gcd": {"max_numbers": 2, "min_value": 2, "max_value": 30},
    "word_sequence_reversal": {"min_words": 3, "max_words": 3},
  }
  config.steps = 40
  config.task.train = 3000
  config.task.test = 120
  config.task.system = "Give only the answer."
  config.task.template = "{question}"
  config.task.max_prompt_length = 72
  config.task.drop_long = True
  config.rollout.max_new_tokens = 24

  config.warm_start.steps = 20
  config.warm_start.batch_size = 8
  config.warm_start.learning_rate = 5e-5
  return config
