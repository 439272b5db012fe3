"""Figures of numbers that are unknown or infinite."""

import re

import numpy as np
import pytest

from poise_jax.reports import svg
from poise_jax.reports.svg import Line

UNKNOWN = (np.nan, np.inf, -np.inf)


def drawn(figure: svg.Figure) -> str:
  """The figure's elements, every number of which is finite."""
  body = str(figure.body())
  assert not re.search(r"\b(nan|inf)\b", body)
  return body


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_a_curve_leaves_out_points_that_are_not_finite(unknown):
  x, y = np.arange(4.0), np.array([1.0, 3.0, 2.0, 5.0])
  spread = np.full(4, 0.5)
  expected = drawn(svg.curves([None, Line("a", x[1:3], y[1:3], spread[1:3])], "step"))
  x[0], y[3] = unknown, unknown
  found = drawn(svg.curves([None, Line("a", x, y, spread)], "step"))
  assert found == expected and found.count("<circle") == 2
  other = Line("b", np.full(3, unknown), np.ones(3))
  assert drawn(svg.curves([other, Line("a", x, y, spread)], "step")) == expected


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_a_bar_whose_value_is_not_finite_is_left_out(unknown):
  def body(values, errors):
    return drawn(svg.bars(["a", "b", "c"], values, errors, ["red", "green", "blue"], "r"))

  found = body([unknown, 0.5, 0.25], [unknown, 0.1, 0.0])
  assert "red" not in found and "green" in found and "blue" in found and ">a</text>" in found
  full = body([0.1, 0.5, 0.25], [0.0, 0.1, 0.0])
  left = re.findall(r"<path[^>]*(?:green|blue)[^>]*>", full)
  assert left == re.findall(r"<path[^>]*(?:green|blue)[^>]*>", found) and len(left) == 2


def test_figures_of_nothing_known_have_axes():
  nothing = np.full(2, np.nan)
  for figure in (
    svg.curves([Line("a", np.arange(2.0), nothing)], "step"),
    svg.curves([], "step"),
    svg.bars(["a"], [np.nan], [0.0], ["red"], "r"),
  ):
    assert drawn(figure).count("<text") > 4 and "circle" not in drawn(figure)
