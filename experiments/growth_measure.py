"""Measurements of experiments.growth, in a module without flags, so that tests can import it.

The model is a small decoder with random weights, on a mesh of all devices.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from poise_jax import models, rollout
from poise_jax.learner import update
from poise_jax.learner.config import UpdateConfig
from poise_jax.models import ModelConfig
from poise_jax.reports import markdown, svg
from poise_jax.rollout import RolloutConfig
from poise_jax.types import Experience, Prompts

BASE = {"T": 64, "n": 2, "P": 8}  # response tokens, samples per prompt, prompts
GROWN = {"T": (32, 64, 128, 256), "n": (1, 2, 4, 8), "P": (4, 8, 16, 32)}
LAYERS = (2, 4, 8, 16)
PROMPT = 64  # tokens per prompt
PARTS = ("sampling", "update")

Rows = list[dict[str, float]]


def model(width: int, layers: int) -> ModelConfig:
  """A Qwen3 decoder with heads of 64 dimensions."""
  heads = width // 64
  return ModelConfig("qwen3", 4096, width, 3 * width, layers, heads, heads, 64, qk_norm=True)


def step(config: ModelConfig, t: int, n: int, p: int) -> tuple[Callable, Callable]:
  """Makes the two halves of a training step on p prompts with n responses of t tokens each.

  Returns:
    sample: samples the responses. None ends early, so that each has t tokens.
    learn: updates the parameters with them.
  """
  params = models.init(config, jax.random.key(0))
  decoding = jax.jit(functools.partial(models.sampling_params, config))(params)
  tokens = np.ones((p, PROMPT), np.int32)
  prompts = Prompts(tokens, tokens > 0)
  rollout_config = RolloutConfig(
    n=n, max_new_tokens=t, feature_layers=(config.num_hidden_layers // 2,)
  )
  options = UpdateConfig(minibatch_size=p * n, microbatch_size=min(p * n, 16))
  rewards, ids = jnp.zeros((p, n, t)), jnp.zeros(p, jnp.int32)
  current = {"state": update.init(params, options)}

  def sample():
    key = jax.random.key(1)
    current["rollouts"] = rollout.sample(config, decoding, prompts, key, rollout_config)
    jax.block_until_ready(current["rollouts"])

  def learn():
    rollouts = current["rollouts"]
    advantages = rollouts.logprobs[..., 0]
    experience = Experience(rollouts, rewards[..., 0], rewards, domains=ids, prompt_ids=ids)
    current["state"], _ = update.step(config, options, current["state"], experience, advantages)
    jax.block_until_ready(current["state"])

  return sample, learn


def timed(call: Callable, repeats: int) -> float:
  """Median seconds of `repeats` calls."""
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def measure(width: int, repeats: int) -> dict[str, Rows]:
  """Seconds of sampling and update, by the quantity that varies: T, n, P and layers.

  Args:
    width: hidden size of the decoder, a multiple of 64.
    repeats: timed calls; a row has their median.
  """
  results = {}
  jobs = [(name, value) for name, values in GROWN.items() for value in values]
  for name, value in track(jobs, "time", transient=True):
    size = {**BASE, name: value}
    calls = step(model(width, 4), size["T"], size["n"], size["P"])
    timed(calls[0], 1), timed(calls[1], 1)
    sampling, learning = (timed(call, repeats) for call in calls)
    row = {name: value, "sampling": sampling, "update": learning}
    results.setdefault(name, []).append(row)
  for layers in track(LAYERS, "compile time", transient=True):
    compiling = []
    for _ in range(repeats):
      jax.clear_caches()
      calls = step(model(64, layers), 8, 2, 2)
      cold = [timed(call, 1) for call in calls]
      compiling.append([first - timed(call, 1) for first, call in zip(cold, calls, strict=True)])
    sampling, learning = (statistics.median(times) for times in zip(*compiling, strict=True))
    row = {"layers": layers, "sampling": sampling, "update": learning}
    results.setdefault("layers", []).append(row)
  return results


def table(results: dict[str, Rows]) -> str:
  """The results in Markdown, a table per quantity; times come with their ratio to the row above."""
  tables = []
  for name, rows in results.items():
    unit = "compile seconds" if name == "layers" else "seconds"
    header = [name, *(f"{part}, {unit}" for part in PARTS)]
    lines = []
    for row, previous in zip(rows, [None, *rows], strict=False):
      ratios = [f" ({row[part] / previous[part]:.2f} x)" if previous else "" for part in PARTS]
      cells = [f"{row[part]:.2f}{ratio}" for part, ratio in zip(PARTS, ratios, strict=True)]
      lines.append([row[name], *cells])
    tables.append(markdown.table(header, lines))
  return "\n\n".join(tables)


def figure(results: dict[str, Rows]) -> str:
  """An SVG of seconds against each quantity, on logarithmic axes: a slope of 1 is proportional."""
  panels = []
  for name, rows in results.items():
    sizes = [row[name] for row in rows]
    seconds = {part: [row[part] for row in rows] for part in PARTS}
    yticks = svg.log_ticks(min(map(min, seconds.values())), max(map(max, seconds.values())))
    panel = svg.Figure(
      name,
      (math.log10(sizes[0]), math.log10(sizes[-1])),
      (yticks[0][0], yticks[-1][0]),
      xticks=[(math.log10(size), str(size)) for size in sizes],
      yticks=yticks,
    )
    for i, values in enumerate(seconds.values()):
      x, y = np.log10(sizes), np.log10(values)
      panel.line(svg.color_of(i), x, y)
      panel.dots(svg.color_of(i), x, y, 2.5)
    panels.append(("Compilation (seconds)" if name == "layers" else "Time (seconds)", panel))
  return svg.picture(panels, PARTS, 2)
