"""How long answers are: a histogram by domain, from the newest held-out answers of a run."""

import json
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from poise_jax.reports import svg
from poise_jax.reports.html import Card
from poise_jax.reports.run_log import Run

BINS = 16  # of equal width on a logarithmic axis


def cards(run: Run) -> Iterator[Card]:
  """The figure; none without an evaluation."""
  paths = {int(p.stem.removeprefix("step_")): p for p in run.path.glob("answers/step_*.jsonl")}
  if not paths:
    return
  step = max(paths)
  by_domain = {}
  with paths[step].open() as file:
    for row in map(json.loads, file):
      if "tokens" in row:  # runs of older versions did not log it
        by_domain.setdefault(row["domain"] or "all", []).append(row["tokens"])
  if by_domain:
    shown = sorted(by_domain.items())[: len(svg.COLORS)]
    figure = histogram({name: np.array(lengths) for name, lengths in shown})
    lengths = np.concatenate([np.array(x) for x in by_domain.values()])
    median, p95 = np.quantile(lengths, (0.5, 0.95))
    note = f"all answers: median {median:.0f} tokens, 95th percentile {p95:.0f}"
    title = f"Lengths of held-out answers at step {step}"
    yield Card(title, figure, [name for name, _ in shown], note)


def histogram(lengths: dict[str, Int[np.ndarray, " N"]]) -> svg.Figure:
  """The share of each group's responses in bins of length, with a dot at the median.

  Args:
    lengths: for each group, tokens of its responses, at least one.
  """
  everything = np.concatenate(list(lengths.values()))
  low, high = np.log2(max(1, everything.min())), np.log2(everything.max() + 1)
  edges = np.linspace(low, max(high, low + 1), BINS + 1)
  shares = {
    name: np.histogram(np.log2(np.maximum(x, 1)), edges)[0] / len(x) for name, x in lengths.items()
  }
  ticks = [(float(e), f"{2**e}") for e in range(int(np.ceil(low)), int(np.floor(edges[-1])) + 1)]
  top = max(share.max() for share in shares.values())
  limits = float(edges[0]), float(edges[-1])
  figure = svg.Figure("tokens", limits, (0.0, float(top)), "share of answers", xticks=ticks)
  for i, (name, share) in enumerate(shares.items()):
    x, y = np.repeat(edges, 2)[1:-1], np.repeat(share, 2)
    figure.area(svg.color_of(i), x, 0 * y, y, 0.15)
    figure.line(svg.color_of(i), x, y)
    median = np.median(lengths[name])
    at = np.clip(np.searchsorted(edges, np.log2(max(1, median)), side="right") - 1, 0, BINS - 1)
    title = f"{name}: median {median:.0f} tokens, longest {lengths[name].max()}"
    figure.dots(svg.color_of(i), [np.log2(max(1, median))], [share[at]], 3.2, [title])
  return figure
