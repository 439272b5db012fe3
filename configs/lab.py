"""The lab: all five domains of visible thinking, with thoughts of up to about 90 tokens.

A model of about three million parameters, from scratch, for experiments on lengths, values and
algorithms on a CPU: half an hour of warm start on two cores, then ten minutes a run on one
(docs/results/lab). The warm start depends on the seed alone; make it once and give it to every run:

    python -m experiments.warm_start --config=configs/lab.py --workdir=runs/lab-start
    python -m experiments.train --config=configs/lab.py:ALGORITHM --workdir=DIR \\
      --config.model.source=runs/lab-start --config.warm_start.steps=0

`experiments.sweep` does so for every seed.
"""

from configs import quickstart


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = quickstart.get_config(algorithm)
  config.steps = 60
  config.eval_every = 20

  config.model.shape.hidden_size = 256
  config.model.shape.intermediate_size = 704
  config.model.shape.num_hidden_layers = 4
  config.model.shape.head_dim = 64
  # Levels at the edge of what the warm start teaches: values between 0.2 and 0.8.
  config.task.reasoning.levels = {
    "sums": (1, 4),
    "products": (1, 3),
    "expressions": (1, 2),
    "search": (1, 3),
    "words": (1, 5),
  }
  config.task.test = 500
  config.task.max_prompt_length = 28
  config.warm_start.steps = 3000

  config.rollout.max_new_tokens = 128
  config.rollout.feature_layers = (2,)
  # One probe for all domains: it knows more than five with a fifth of the problems each
  # (docs/results/lab), and its 2,048 rows are the newest 8 steps instead of 40.
  config.probe.domain_probes = dict.fromkeys(config.task.reasoning.levels, "all")
  config.probe.bootstrap_steps = 3  # half of what is learned is learned in the first 8 steps
  config.train.microbatch_size = 32  # 128 sequences at the limit need 5 GiB for an update
  return config
