"""FLOPs and minutes of a training run, from its log.

Counted as in poise_jax/planning/flops.py: matrix products and attention of the policy and of a
critic, and of the fits of all probes: matrix products, Cholesky factors and triangular solves, but
no eigenvectors. In sampling, the answers to a prompt share its prefill, and prompts have the mean
length of the training problems. In an update each answer has a prompt of its own: with prompts and
answers of the lab's lengths the planner packs them so. These prompts have the mean length of those
in samples.jsonl, since dynamic sampling prefers some. Evaluations, which are no part of training,
do not count.
"""

import functools
import json

import numpy as np
from jaxtyping import Bool, Float

from poise_jax.data.tasks.config import task_of_run
from poise_jax.planning import flops
from poise_jax.reports.run_log import Run
from poise_jax.rollout.features import ENTROPIES

SLOW = 3.0  # a step that takes as many medians compiles a program


def cumulative(run: Run) -> Float[np.ndarray, " rows"]:
  """FLOPs up to every row of a run's log.

  Args:
    run: its model.source is a folder with the model's shape and tokenizer.
  """
  from poise_jax import models

  source = run.config["model"]["source"]
  drawn = _mean_prompt(json.dumps(run.config["task"], sort_keys=True), run.config["seed"], source)
  trained = _trained_prompt(run, models.load_tokenizer(source)) or drawn
  model = models.read_config(source)
  fits = probe_fits(run, model.hidden_size)
  step = functools.partial(_step, run.config, model, drawn, trained, fits)
  return np.cumsum([step(row) if row["step"] else 0.0 for row in run.rows])


def steady(run: Run) -> Bool[np.ndarray, " rows"]:
  """Which rows of a run's log are of steps that compile no program, by the time that they take."""
  times = _step_times(run)
  return (times > 0) & (times <= SLOW * np.median(times[times > 0]))


def minutes(run: Run) -> Float[np.ndarray, " rows"]:
  """Minutes of all steps up to every row of a run's log, without evaluations. Steps that compile a
  program count as the median of the others: how many there are depends on restarts and caches."""
  times, known = _step_times(run), steady(run)
  times = np.where(known | (times == 0), times, np.median(times[known]))
  return np.cumsum(times) / 60


def _step_times(run):
  return np.array([row.get("time/step", 0.0) for row in run.rows])


@functools.cache
def _mean_prompt(task: str, seed: int, source: str) -> float:
  """Mean tokens of the training prompts of a run's config.task, as JSON."""
  from poise_jax import models
  from poise_jax.data import tasks
  from poise_jax.data.prompts import PromptEncoder

  config = task_of_run(json.loads(task))
  encoder = PromptEncoder.from_config(config, models.load_tokenizer(source))
  return float(np.mean([len(encoder.ids(x)) for x in tasks.make(config, seed).train]))


def _trained_prompt(run, tokenizer) -> float:
  """Mean tokens of the prompts in samples.jsonl; 0 if there are none."""
  template = run.config["task"]["template"]
  rows = run.samples(lambda steps: steps)
  questions = {row["question"] for row in rows if not row.get("extra")}  # those are unusual
  lengths = [len(tokenizer.encode(template.replace("{question}", x))) for x in questions]
  return float(np.mean(lengths)) if lengths else 0.0


def _step(config, model, drawn, trained, fits, row) -> float:
  """FLOPs of a step.

  Args:
    drawn: mean tokens of the prompts that are sampled for.
    trained: mean tokens of the prompts that are trained on.
    fits: FLOPs of a refit of all probes.
  """
  n, rollouts = config["rollout"]["n"], config["rollouts"]
  generated = row["collect/generated"]
  length = row["collect/tokens"] / generated
  total = flops.sampling_flops(model, drawn, n, length) * generated / n
  groups = row.get("collect/groups", rollouts // n)
  update = flops.training_flops(model, trained, 1, row.get("rollout/length", 0.0)) * groups * n
  train = config["train"]
  total += update * train["epochs"]
  several = rollouts > train["minibatch_size"] or train["epochs"] > 1
  if several and train["old_logprobs"] != "sampler":
    total += update / 3  # the old policy's log-probs
  estimator = config["estimator"]
  if estimator == "ppo":  # a prediction, and an update on the same sequences
    total += update * (1 / 3 + train["epochs"])
  elif estimator == "sppo":
    total += (1 + 3 * train["epochs"]) * flops.forward_flops(model, trained, 0) * groups
  elif estimator.startswith("poise") and row["step"] >= config["probe"]["bootstrap_steps"]:
    total += fits
  return total


def probe_fits(run: Run, hidden_size: int) -> float:
  """FLOPs of a refit of a run's probes: one for each domain, or for each group of domains that
  share one. All are fitted on as many rows as the largest buffer has; empty ones are zeros."""
  probe, rollout = run.config["probe"], run.config["rollout"]
  prefix, shared = "reward/domain/", probe.get("domain_probes", {})
  domains = {name.removeprefix(prefix) for row in run.rows for name in row if prefix in name}
  names = {shared.get(domain, domain) for domain in domains} or {""}  # a single one is not logged
  rows = max(probe.get("domain_buffer_rows", {}).get(x, probe["buffer_rows"]) for x in names)
  width = hidden_size * max(len(rollout.get("feature_layers", ())), 1)
  return len(names) * probe_fit(rows, width, probe["pca_prompt"], probe["pca_response"])


def probe_fit(rows: int, width: int, *components: int) -> float:
  """FLOPs of one fit of a ridge probe, as poise_jax/estimators/{probe,ridge}.py compute it.

  Args:
    rows: rollouts in the buffer.
    width: of a block of the features, the states of all feature layers.
    components: principal components of each block; 0: the raw block.
  """
  features, total = ENTROPIES, 0.0
  for kept in components:
    features += kept or width
    if kept:
      small = min(rows, width)  # of the Gram matrix
      projection = 2.0 * rows * width * kept
      total += 3 * 2.0 * rows * width * small  # three rounds, each with a Gram matrix
      total += 3 * projection * (rows < width)  # from its vectors to directions
      total += 4 * projection  # twice out of the rest, forth and back
      total += 2 * projection  # deviations, and the projected block
  # [X; sqrt(alpha) I], or its dual: two rounds of Gram matrix, Cholesky factor and solve, and three
  # solutions with two refinements.
  small, stacked = min(rows, features), rows + features
  total += 2 * (3.0 * stacked * small**2 + small**3 / 3)
  return total + 20.0 * stacked * small
