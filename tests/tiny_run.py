"""A run of a few seconds, for many tests."""

import json

from configs import quickstart

STEPS = 3
TINY = {
  "seed": 2,  # with which a response of step 1 is right, so that there is something to learn
  "steps": STEPS,
  "rollouts": 8,
  "eval_every": 2,
  "eval_batch": 10,
  "checkpoint_every": 1,
  "log_samples": 2,
  "model.shape.hidden_size": 32,
  "model.shape.intermediate_size": 48,
  "model.shape.num_hidden_layers": 2,
  "model.shape.num_attention_heads": 2,
  "model.shape.num_key_value_heads": 1,
  "model.shape.head_dim": 16,
  "task.name": "arithmetic",
  "task.think_end": "",
  "task.arithmetic.kinds": ("1+", "1-"),
  "task.arithmetic.careless": 0.35,
  "task.train": 100,
  "task.test": 16,
  "task.max_prompt_length": 8,
  "warm_start.steps": 2,
  "warm_start.batch_size": 8,
  "rollout.max_new_tokens": 10,
  "rollout.feature_layers": (1,),
  "rollout.feature_window": 5,
  "probe.bootstrap_steps": 1,
  "probe.buffer_rows": 16,
  "probe.min_rows": 8,
  "probe.pca_prompt": 4,
  "probe.pca_response": 4,
  "train.minibatch_size": 4,
  "train.microbatch_size": 2,
  "train.loss.kl_coef": 0.1,
  "reference_every": 2,
}
PROMPTS, N = 4, 2
PARTS = ("checkpoint", "rollout", "reward", "estimate", "update")


def tiny(algorithm="poise", **changes):
  """A smaller quickstart; a change a__b sets the field a.b."""
  config = quickstart.get_config(algorithm)
  config.update_from_flattened_dict(TINY)
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]
