"""FLOPs of a training run, from its log.

Counted as in poise_jax/planning/flops.py: matrix products and attention of the policy and of a
critic, and the products of a probe's fit. Evaluations, which are no part of training, do not count.
"""

import functools

import numpy as np
from jaxtyping import Float

from poise_jax.planning import flops
from poise_jax.reports.run_log import Run
from poise_jax.rollout.features import ENTROPIES


def cumulative(run: Run) -> Float[np.ndarray, " rows"]:
  """FLOPs up to every row of a run's log.

  Args:
    run: its model.source is a folder with the model's shape and tokenizer.
  """
  from poise_jax import models

  source = run.config["model"]["source"]
  prompt = _prompt_length(run, models.load_tokenizer(source))
  step = functools.partial(_step, run.config, models.read_config(source), prompt)
  return np.cumsum([step(row) if row["step"] else 0.0 for row in run.rows])


def _prompt_length(run, tokenizer) -> float:
  """Mean tokens of the prompts in samples.jsonl."""
  template = run.config["task"]["template"]
  questions = {row["question"] for row in run.samples(lambda steps: steps)}
  prompts = [template.replace("{question}", question) for question in questions]
  return float(np.mean([len(tokenizer.encode(prompt)) for prompt in prompts]))


def _step(config, model, prompt, row) -> float:
  """FLOPs of a step."""
  n, rollouts = config["rollout"]["n"], config["rollouts"]
  generated = row["collect/generated"]
  length = row["collect/tokens"] / generated
  total = flops.sampling_flops(model, prompt, n, length) * generated / n
  groups = row.get("collect/groups", rollouts // n)
  update = flops.training_flops(model, prompt, n, row.get("rollout/length", 0.0)) * groups
  train = config["train"]
  total += update * train["epochs"]
  several = rollouts > train["minibatch_size"] or train["epochs"] > 1
  if several and train["old_logprobs"] != "sampler":
    total += update / 3  # the old policy's log-probs
  estimator = config["estimator"]
  if estimator == "ppo":  # a prediction, and an update on the same sequences
    total += update * (1 / 3 + train["epochs"])
  elif estimator == "sppo":
    total += (1 + 3 * train["epochs"]) * flops.forward_flops(model, prompt, 0) * groups
  elif estimator.startswith("poise") and row["step"] >= config["probe"]["bootstrap_steps"]:
    total += probe_fit(config["probe"], model.hidden_size)
  return total


def probe_fit(probe: dict, width: int) -> float:
  """FLOPs of a fit on a full buffer: the products of PCA and of the normal equations.

  Args:
    probe: config.probe.
    width: of a block of the features, one layer's states.
  """
  rows, features, total = probe["buffer_rows"], ENTROPIES, 0.0
  for components in (probe["pca_prompt"], probe["pca_response"]):
    if components:
      total += 2.0 * rows * width * (width + components)
    features += components or width
  return total + 2.0 * rows * features**2
