"""Lengths of prompts and responses to plan a step for: at the limit, drawn, or those of a run."""

import json
import pathlib
import re

import numpy as np
from jaxtyping import Int

from poise_jax.errors import UserError
from poise_jax.learner.plan import Lengths
from poise_jax.training.build import StepConfig

PROMPT = 150  # tokens of a mathematical question in its template, where only responses are known
FORMS = "lognormal:MEAN,SIGMA with the mean as a share of the limit, such as lognormal:0.3,0.8"


def lengths_of(step: StepConfig, source: str = "") -> Lengths:
  """Lengths of the sequences of a step.

  Args:
    step: describes the step; responses are cut at rollout.max_new_tokens.
    source: "" for the limits; lognormal:MEAN,SIGMA for responses with this mean before the cut, a
      share of the limit, and this deviation of the logarithm; otherwise a text file with a length
      in each line, or a run's samples.jsonl. Draws, also those from a file, are always the same.

  Raises:
    UserError: the source is malformed, or not a file with lengths.
  """
  limits = step.config.task.max_prompt_length, step.rollout.max_new_tokens
  count, groups = step.config.rollouts, np.arange(step.config.rollouts) // step.rollout.n
  if not source:
    return Lengths(*(np.full(count, limit) for limit in limits), groups, limits)
  rng = np.random.default_rng(0)
  if source.startswith("lognormal:"):
    mean, sigma = _numbers(source)
    mu = np.log(mean * limits[1]) - sigma**2 / 2
    drawn = np.ceil(np.exp(mu + sigma * rng.standard_normal(count)))
  else:
    drawn = rng.choice(_read(pathlib.Path(source)), count)
  responses = np.clip(drawn, 1, limits[1]).astype(int)
  return Lengths(np.full(count, min(PROMPT, limits[0])), responses, groups, limits)


def _numbers(source):
  match = re.fullmatch(r"lognormal:([\d.]+),([\d.]+)", source)
  try:
    mean, sigma = map(float, match.groups())
  except (AttributeError, ValueError):
    mean, sigma = 0.0, 0.0
  if not mean:
    raise UserError(f"--lengths={source} must be {FORMS}, or a file")
  return mean, sigma


def _read(path: pathlib.Path) -> Int[np.ndarray, " lines"]:
  """Lengths in the lines of a file: numbers, or JSON objects with a response's `tokens`."""
  try:
    lines = path.read_text().split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"--lengths={path} is not a file that can be read, nor {FORMS}") from error
  lengths = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      value = json.loads(line)
      lengths.append(len(value["tokens"]) if isinstance(value, dict) else int(value))
    except (ValueError, TypeError, KeyError) as error:
      raise UserError(
        f"--lengths={path}, line {number}: {line[:60]!r} is neither a length nor a row of a run's "
        "samples.jsonl"
      ) from error
  if not lengths or min(lengths) < 1:
    raise UserError(f"--lengths={path} has no lengths, or one below 1")
  return np.array(lengths)
