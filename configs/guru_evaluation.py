"""The benchmarks of the paper's second study (v3) that can be judged here (docs/data.md), with one
answer to each question; AIME is in configs/guru_aime.py. For `python -m experiments.evaluate`.
"""

from configs import qwen3_4b_guru

TESTS = (
  *("humaneval", "livecodebench", "mbpp", "arcagi1", "zebra_puzzle", "math_500", "codeio"),
  *("gpqa_diamond", "supergpqa", "finqa", "hitab", "multihier"),
)


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = qwen3_4b_guru.get_config(algorithm)
  sets = (f"guru_test_{name}" for name in TESTS)
  config.eval.tasks = {name: qwen3_4b_guru.held_out(name) for name in sets}
  config.task.max_prompt_length = 24576  # tables are long
  return config
