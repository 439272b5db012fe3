"""How time grows with response length, samples and prompts, and compile time with layers.

Random weights of a small decoder, on whatever devices there are; one mesh of them all.
"""

import functools
import pathlib
import statistics
import time

import jax
import numpy as np
from rich.progress import track

from poise_jax import models, rollout
from poise_jax.learner import update
from poise_jax.learner.update import UpdateConfig
from poise_jax.models import ModelConfig
from poise_jax.rollout import RolloutConfig
from poise_jax.types import Prompts

BASE = {"T": 64, "n": 2, "P": 8}  # response tokens, samples a prompt, prompts
GROWN = {"T": (32, 64, 128, 256), "n": (1, 2, 4, 8), "P": (4, 8, 16, 32)}
LAYERS = (2, 4, 8, 16)
PROMPT = 64  # tokens


def model(width: int, layers: int) -> ModelConfig:
  """A Qwen3 decoder with heads of 64."""
  heads = width // 64
  return ModelConfig("qwen3", 4096, width, 3 * width, layers, heads, heads, 64, qk_norm=True)


def step(config: ModelConfig, t: int, n: int, p: int):
  """(sample, learn): calls that sample P x n responses of T tokens, and that take a step on them.

  No response ends early, so that T is what it says.
  """
  params = models.init(config, jax.random.key(0))
  decoding = jax.jit(functools.partial(models.sampling_params, config))(params)
  tokens = np.ones((p, PROMPT), np.int32)
  prompts = Prompts(tokens, tokens > 0)
  asked = RolloutConfig(n=n, max_new_tokens=t, feature_layers=(config.num_hidden_layers // 2,))
  options = UpdateConfig(minibatch_size=p * n, microbatch_size=min(p * n, 16))
  held = {"state": update.init(params, options)}

  def sample():
    held["said"] = rollout.sample(config, decoding, prompts, jax.random.key(1), asked)
    jax.block_until_ready(held["said"])

  def learn():
    advantages = held["said"].logprobs[..., 0]
    held["state"], _ = update.step(config, held["state"], held["said"], advantages, options)
    jax.block_until_ready(held["state"])

  return sample, learn


def timed(call, repeats: int) -> float:
  """Median seconds of `repeats` calls."""
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def measure(width: int, repeats: int) -> dict[str, list[dict[str, float]]]:
  """Rows by what is varied: T, n, P and layers."""
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


def table(results: dict[str, list[dict[str, float]]]) -> str:
  """All rows in Markdown; beside each time what it is of the row before."""
  lines = []
  for name, rows in results.items():
    what = "compile seconds" if name == "layers" else "seconds"
    lines += ["", f"| {name} | sampling, {what} | update, {what} |", "|---|---|---|"]
    before = None
    for row in rows:
      cells = [str(row[name])]
      for part in ("sampling", "update"):
        times = f" ({row[part] / before[part]:.2f} x)" if before else ""
        cells.append(f"{row[part]:.2f}{times}")
      lines.append("| " + " | ".join(cells) + " |")
      before = row
  return "\n".join(lines[1:])


def draw(results: dict[str, list[dict[str, float]]], path: pathlib.Path):
  """Seconds against each quantity, both axes logarithmic: proportional growth is a slope of 1."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, len(results), figsize=(3.2 * len(results), 3), sharey=False)
  for axis, (name, rows) in zip(axes, results.items(), strict=True):
    sizes = [row[name] for row in rows]
    for part in ("sampling", "update"):
      axis.loglog(sizes, [row[part] for row in rows], marker="o", label=part)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel(name)
    axis.set_title("compile seconds" if name == "layers" else "seconds", fontsize=9)
  axes[0].legend()
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  pyplot.close(figure)
