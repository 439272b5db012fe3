"""How many rows a probe needs before its baseline beats RLOO's: python -m experiments.probe_rows

Features are drawn like a language model's states: a graded spectrum, a few large dimensions, and
rollouts of a prompt that share most of their states. The value depends on three directions of the
prompt. Prints the table of docs/algorithms.md: mean A^2 on new prompts with two rollouts each, by
the number of rollouts that the probe was fitted on.
"""

import numpy as np
from jaxtyping import Float

from experiments import cli
from poise_jax.estimators import ProbeConfig, probe
from poise_jax.estimators.poise import cross_rollout_advantages
from poise_jax.reports import markdown

# Letters: P prompts, D width of a block, F = 2 D + 3 features.
WIDTH = 96
ROWS = (2, 8, 32, 64, 128, 256, 512, 1024, 2048)
SIGNALS = {"weak": 0.5, "medium": 1.0, "strong": 2.0}  # size of the log-odds of a right answer
PROBES = {
  "`poise`: PCA 32 and 64, α = 100": ProbeConfig(alpha=100.0, pca_prompt=32, pca_response=64),
  "`poise_v2`: raw states, α = 0.01": ProbeConfig(alpha=0.01),
  "raw states, α = 100": ProbeConfig(alpha=100.0),
}
TEST_PROMPTS, SEEDS = 2000, 5


def rollouts(
  prompts: int, signal: float, seed: int
) -> tuple[Float[np.ndarray, "P 2"], Float[np.ndarray, "P 2 F"], Float[np.ndarray, "P 1"]]:
  """Rewards and features of two rollouts of each prompt, and the prompts' values."""
  shared, rng = np.random.default_rng(99), np.random.default_rng(seed)
  basis = np.linalg.qr(shared.normal(size=(WIDTH, WIDTH)))[0]
  gain = np.exp(0.5 * shared.normal(size=WIDTH))
  gain[:3] *= 100
  spectrum = 10 ** (-3 * np.arange(WIDTH) / WIDTH)
  prompt = rng.normal(size=(prompts, 1, WIDTH))
  response = 0.8 * prompt + 0.6 * rng.normal(size=(prompts, 2, WIDTH))
  value = 1 / (1 + np.exp(-signal * prompt[..., [0, 3, 7]].sum(-1)))
  rewards = (rng.random((prompts, 2)) < value).astype(np.float32)
  blocks = [
    np.broadcast_to(prompt * spectrum @ basis * gain, response.shape),
    response * spectrum @ basis[::-1] * gain,
    np.abs(response[..., :3]),
  ]
  return rewards, np.concatenate(blocks, -1).astype(np.float32), value


def mean_squares(config: ProbeConfig, signal: float) -> list[float]:
  """Mean A^2 by number of rows, averaged over draws of the training rows."""
  rewards, features, _ = rollouts(TEST_PROMPTS, signal, seed=1000)
  results = []
  for rows in ROWS:
    squares = []
    for seed in range(SEEDS):
      # Padded to one size with rows of weight 0, as in the buffer: a single program.
      r, x, _ = rollouts(ROWS[-1] // 2, signal, seed)
      weights = (np.arange(ROWS[-1]) < rows).astype(np.float32)
      fitted = probe.fit(x.reshape(ROWS[-1], -1), r[:, ::-1].ravel(), config, weights)
      advantages = cross_rollout_advantages(rewards, probe.predict(fitted, features))
      squares.append(float((advantages**2).mean()))
    results.append(float(np.mean(squares)))
  return results


def table() -> str:
  """The table in Markdown."""
  lines = []
  for name, signal in SIGNALS.items():
    rewards, _, value = rollouts(TEST_PROMPTS, signal, seed=1000)
    limits = {
      "RLOO": ((rewards - rewards[:, ::-1]) ** 2).mean(),
      "the value itself": ((rewards - value) ** 2).mean(),
    }
    lines += [[name, limit, *[f"{x:.3f}"] * len(ROWS)] for limit, x in limits.items()]
    for label, config in PROBES.items():
      lines.append([name, label, *(f"{x:.3f}" for x in mean_squares(config, signal))])
  return markdown.table(("signal", "baseline", *map(str, ROWS)), lines)


def main(argv: list[str]):
  """Prints the table."""
  cli.refuse_arguments(argv)
  print(table())


if __name__ == "__main__":
  cli.run(main)
