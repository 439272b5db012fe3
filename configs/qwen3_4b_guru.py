"""The paper's second study (v3): Qwen3-4B on the six domains of GURU-92K.

`poise` has the settings of POISE's released code: one probe each for mathematics, code and the
rest, with their own buffers. `rloo`, `dapo` and `ppo` are the paper's baselines, whose scripts are
not released: they have the rollouts per step, optimizer steps and learning rate of `poise`, with
2, 8 and 1 responses per prompt. Data, and which of the paper's benchmarks can be judged here:
docs/data.md. Hardware: docs/scaling.md.
"""

from configs import qwen3_4b_dapo_math

DOMAINS = ("math", "code", "science", "logic", "simulation", "table")
VALIDATION = (  # of the released code, one answer to each row; AIME is in its file 8 times, AMC 4
  *("humaneval", "mbpp", "arcagi1", "ordering_puzzle", "zebra_puzzle", "math_500", "aime", "amc"),
  *("codeio", "supergpqa", "hitab", "multihier"),
)


def held_out(name):
  """A test set of eval.tasks. It is made with training questions that it does not use: here few."""
  return {"dataset": {"train_on": "guru_simulation", "test_on": name}}


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = qwen3_4b_dapo_math.get_config(algorithm)
  config.rollouts, config.train.minibatch_size, config.steps = 512, 64, 200
  config.train.warmup_steps = 10 * config.rollouts // config.train.minibatch_size
  config.seed = 42

  sets = [f"guru_val_{name}" for name in VALIDATION]
  config.task.dataset.train_on = ",".join(f"guru_{domain}" for domain in DOMAINS)
  config.task.dataset.test_on = ",".join(sets)  # their questions are not trained on
  config.task.template = "{question}"  # GURU's prompts say how to answer
  config.task.max_prompt_length = 4096
  config.eval.tasks = {name: held_out(name) for name in sets}
  config.eval.n = 1
  config.eval_batch = 512

  config.probe.domain_probes = dict.fromkeys(DOMAINS[2:], "other")
  config.probe.domain_buffer_rows = {"math": 4096, "code": 3072, "other": 3072}
  return config
