"""Predicted against realised value: calibration by decile, for reports of runs and evaluations."""

import dataclasses

import numpy as np
from jaxtyping import Float

from poise_jax.reports import svg

BINS = 10


@dataclasses.dataclass(frozen=True)
class Bin:
  """Points of similar predictions: how many, their means, and the standard error of the second."""

  count: int
  predicted: float
  realised: float
  error: float


def deciles(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"], bins: int = BINS) -> list[Bin]:
  """Means of x and y in bins of equally many points by x, as far as values of x differ.

  Args:
    x: finite; points of equal x share a bin.
    y: finite.
    bins: number of bins; fewer are returned if x has few values.
  """
  edges = np.unique(np.quantile(x, np.linspace(0, 1, bins + 1)))
  bin_of = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(0, len(edges) - 2))
  result = []
  for i in np.unique(bin_of):
    members = y[bin_of == i]
    error = members.std() / np.sqrt(len(members))
    result.append(Bin(len(members), x[bin_of == i].mean(), members.mean(), error))
  return result


def calibration(
  predicted: Float[np.ndarray, " N"],
  realised: Float[np.ndarray, " N"],
  names: tuple[str, str],
  points: str,
  xlabel: str = "",
) -> svg.Figure:
  """Points and their means by decile with bars ± standard error; on the diagonal, predictions are
  right on average.

  Args:
    predicted: finite, at least one.
    realised: finite.
    names: what x and y are.
    points: what a point is, in the plural.
    xlabel: label of the x axis; empty: the name of x.
  """
  ends = min(0.0, predicted.min()), max(1.0, predicted.max())
  ylim = min(ends[0], realised.min()), max(ends[1], realised.max())
  figure = svg.Figure(xlabel or names[0], ends, ylim, names[1])
  figure.line("var(--ink)", ends, ends, "stroke-width:1;stroke-dasharray:4 4")
  figure.dots(svg.color_of(0), predicted, realised, 2.2, opacity=0.3)
  bins = deciles(predicted, realised)
  for b in bins:
    figure.line(svg.color_of(1), [b.predicted] * 2, [b.realised - b.error, b.realised + b.error])
  x, y = [b.predicted for b in bins], [b.realised for b in bins]
  figure.line(svg.color_of(1), x, y)
  titles = [
    f"{b.count} {points}: {names[0]} {b.predicted:.3f}, {names[1]} {b.realised:.3f} ± {b.error:.3f}"
    for b in bins
  ]
  figure.dots(svg.color_of(1), x, y, 3.2, titles)
  return figure
