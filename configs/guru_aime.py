"""AIME 2025 as in the paper's second study (v3): 32 answers to each question. For
`python -m experiments.evaluate`.
"""

from configs import qwen3_4b_guru


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = qwen3_4b_guru.get_config(algorithm)
  config.task.template = "{question} Please output the final answer within \\boxed{}."
  config.eval.tasks = {"aime_2025": qwen3_4b_guru.held_out("aime_2025")}
  config.eval.n = 32
  config.eval_batch = 16  # prompts x eval.n: as many sequences as a step samples
  return config
