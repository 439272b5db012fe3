"""Figures as SVG: curves, bars and areas on a pair of axes.

A run waits for its report at every evaluation. A page of ten figures takes a few hundredths of a
second this way, and about a second with matplotlib. Colors are CSS variables, so that figures in a
page follow its light or dark scheme; `picture` makes a file of its own, always on white.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

COLORS = (  # on light pages; dark ones mix them with white
  *("#1f77b4", "#e8710a", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf"),
  *("#a8a000", "#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d"),
)
WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM_MARGIN = 52, 408, 10, 38  # edges of the axes within a figure
POINTS = 300  # curves with more than twice as many points are thinned
LABEL_CHARACTERS = 32  # limit for the label of a bar
STYLE = Markup(
  "svg text{fill:var(--ink);font-size:11.5px}.grid{stroke:var(--grid);stroke-width:0.8}"
  ".line{fill:none;stroke-width:1.7;stroke-linejoin:round}"
)
Ticks = Sequence[tuple[float, str]]  # positions and their labels


@dataclasses.dataclass
class Line:
  """A curve with an optional band y ± spread, and the raw values that y smooths."""

  label: str
  x: Float[np.ndarray, " N"]
  y: Float[np.ndarray, " N"]
  spread: Float[np.ndarray, " N"] | None = None
  raw: Float[np.ndarray, " N"] | None = None


class Figure:
  """A pair of axes. Later elements cover earlier ones; y beyond `ylim` is drawn at its edge."""

  def __init__(
    self,
    xlabel: str,
    xlim: tuple[float, float],
    ylim: tuple[float, float],
    ylabel: str = "",
    *,
    xticks: Ticks | None = None,
    yticks: Ticks | None = None,
    left: int = LEFT,
    height: int = HEIGHT,
  ):
    """Draws the axes.

    Args:
      xlabel: label below the x axis.
      xlim: smallest and largest x; they may be equal.
      ylim: smallest and largest y; they may be equal. A little room is added at either end.
      ylabel: label to the left of the y axis.
      xticks: ticks of the x axis; round values by default.
      yticks: ticks of the y axis; round values by default.
      left: left edge of the axes, with the labels of the y ticks in front of it.
      height: height of the whole figure.
    """
    self.xlim, self.ylim = _widened(*xlim, 0.0), _widened(*ylim, 0.06)
    self.left, self.height, self.bottom = left, height, height - BOTTOM_MARGIN
    self.parts: list[Markup] = []
    for value, text in yticks or ticks(*self.ylim, 5):
      y = self._y(value)
      self._add('<path class="grid" d="M{} {}H{}"/>', left, y, RIGHT)
      self._add('<text x="{}" y="{}" text-anchor="end">{}</text>', left - 6, y + 4, text)
    for value, text in xticks or ticks(*self.xlim, (RIGHT - left) // 55, whole=xlabel == "step"):
      x = self._x(value)
      self._add('<path class="grid" d="M{} {}v4"/>', x, self.bottom)
      self._add('<text x="{}" y="{}" text-anchor="middle">{}</text>', x, self.bottom + 17, text)
    middle = '<text x="{}" y="{}" text-anchor="middle">{}</text>'
    self._add(middle, (left + RIGHT) / 2, height - 5, xlabel)
    if ylabel:
      turned = '<text transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>'
      self._add(turned, (TOP + self.bottom) / 2, ylabel)

  def line(self, color: str, x: Sequence[float], y: Sequence[float], style: str = ""):
    """Adds a polyline. A single point is invisible; see `dots`."""
    path = self._path(x, y)
    self._add('<path class="line" style="stroke:{};{}" d="{}"/>', color, style, path)

  def area(
    self,
    color: str,
    x: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    opacity: float,
  ):
    """Adds the area between two curves over the same x."""
    outline = self._path([*x, *x[::-1]], [*high, *low[::-1]])
    self._add('<path style="fill:{};fill-opacity:{}" d="{}Z"/>', color, opacity, outline)

  def dots(
    self,
    color: str,
    x: Iterable[float],
    y: Iterable[float],
    radius: float,
    titles: Iterable[str] = (),
    opacity: float = 1.0,
  ):
    """Adds a dot per point; `titles` are their tooltips."""
    dot = '<circle cx="{}" cy="{}" r="{}" style="fill:{};fill-opacity:{}">{}</circle>'
    for px, py, title in itertools.zip_longest(x, y, titles, fillvalue=""):
      tooltip = Markup("<title>{}</title>").format(title) if title else ""
      self._add(dot, self._x(px), self._y(py), radius, color, opacity, tooltip)

  def body(self) -> Markup:
    """The elements of the figure, WIDTH by `height`, without an <svg> around them."""
    return Markup("").join(self.parts)

  def svg(self, label: str) -> Markup:
    """An <svg> element as wide as its container; `label` is its name for screen readers."""
    element = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return element.format(WIDTH, self.height, label, self.body())

  def _add(self, element: str, *values: object):
    """Adds an element; Markup.format escapes the values."""
    self.parts.append(Markup(element).format(*values))

  def _x(self, value: float) -> float:
    low, high = self.xlim
    return round(self.left + (RIGHT - self.left) * float(value - low) / (high - low), 1)

  def _y(self, value: float) -> float:
    low, high = self.ylim
    share = (min(max(float(value), low), high) - low) / (high - low)
    return round(self.bottom - (self.bottom - TOP) * share, 1)

  def _path(self, x: Sequence[float], y: Sequence[float]) -> str:
    return "M" + "L".join(f"{self._x(a)} {self._y(b)}" for a, b in zip(x, y, strict=True))


def curves(lines: Sequence[Line | None], xlabel: str) -> Figure:
  """Curves over one x axis. Each has the color of its position in the list; None skips a color.

  Where colors repeat, curves are dashed (see `dash`). Points that are not finite are left out.
  """
  lines = [_known(line) if line else None for line in lines]
  visible = [line for line in lines if line]
  values = [line.y if line.raw is None else line.raw for line in visible]
  for line in visible:
    if line.spread is not None:
      values += [line.y - line.spread, line.y + line.spread]
  figure = Figure(xlabel, _limits([line.x for line in visible]), _limits(values))
  for i, line in enumerate(lines):
    if not line:
      continue
    color = color_of(i)
    if line.spread is not None and len(line.x) > 1:
      figure.area(color, line.x, line.y - line.spread, line.y + line.spread, 0.16)
    if line.raw is not None:
      figure.line(color, *thinned(line.x, line.raw), "stroke-width:0.8;stroke-opacity:0.35")
    figure.line(color, *thinned(line.x, line.y), dash(i))
    if len(line.x) < 80:  # the dots of a long curve are invisible and carry the tooltips
      name = f"{line.label}, " if line.label else ""
      titles = [f"{name}{xlabel} {a:,.5g}: {b:.4g}" for a, b in zip(line.x, line.y, strict=True)]
      few = len(line.x) < 16
      figure.dots(color, line.x, line.y, 2.2 if few else 4, titles, 1.0 if few else 0.0)
  return figure


def _known(line: Line) -> Line | None:
  """The points of a curve that are finite; None if none is."""
  known = np.isfinite(line.x) & np.isfinite(line.y)
  spread, raw = (None if part is None else part[known] for part in (line.spread, line.raw))
  return Line(line.label, line.x[known], line.y[known], spread, raw) if known.any() else None


def _limits(parts: Sequence[Float[np.ndarray, " _"]]) -> tuple[float, float]:
  """The smallest and the largest of all numbers; 0 and 1 if there are none."""
  return (min(map(np.min, parts)), max(map(np.max, parts))) if parts else (0.0, 1.0)


def bars(
  labels: Sequence[str],
  values: Sequence[float],
  errors: Sequence[float],
  colors: Sequence[str],
  xlabel: str,
) -> Figure:
  """Horizontal bars from top to bottom, each with its label, if any, and an error bar ± error. A
  value that is not finite has no bar."""
  shown = [x if len(x) <= LABEL_CHARACTERS else f"…{x[1 - LABEL_CHARACTERS :]}" for x in labels]
  known = [i for i, value in enumerate(values) if math.isfinite(value)]
  ends = [values[i] + sign * errors[i] for i in known for sign in (-1, 1)]
  figure = Figure(
    xlabel,
    (min(0.0, *ends), max(ends)) if known else (0.0, 1.0),
    (0.5 - len(labels), 0.5),
    yticks=[(-i, label) for i, label in enumerate(shown) if label],
    left=max(LEFT, 14 + round(6.4 * max(map(len, shown)))),
    height=max(HEIGHT, TOP + 20 * len(labels) + BOTTOM_MARGIN),
  )
  for i in known:
    value, error = values[i], errors[i]
    figure.area(colors[i], [0.0, value], [-i - 0.35] * 2, [-i + 0.35] * 2, 0.7)
    figure.line("var(--ink)", [value - error, value + error], [-i, -i], "stroke-width:1.2")
  return figure


def color_of(place: int) -> str:
  """The color of the curve at a position; colors repeat after len(COLORS)."""
  return f"var(--c{place % len(COLORS)})"


def dash(place: int) -> str:
  """The style of the curve at a position: dashed where colors repeat."""
  return "stroke-dasharray:6 3" if place >= len(COLORS) else ""


def thinned(
  x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
  """The minimum and the maximum of each of POINTS segments of a long curve, so that spikes stay."""
  if len(x) <= 2 * POINTS:
    return x, y
  extremes = {0, len(x) - 1}
  for segment in np.array_split(np.arange(len(x)), POINTS):
    extremes |= {segment[y[segment].argmin()], segment[y[segment].argmax()]}
  indices = sorted(extremes)
  return x[indices], y[indices]


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[tuple[float, str]]:
  """At most about `count` round values in [low, high] with their labels; integers if `whole`."""
  step = 10.0 ** math.floor(math.log10((high - low) / count))
  step *= next(factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) <= count)
  if whole:
    step = math.ceil(step)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  values = [i * step for i in range(first, last + 1)]
  largest = max(map(abs, values), default=0.0)
  unit, suffix = next(
    ((u, s) for u, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 10 * u), (1.0, "")
  )
  if 0 < largest < 1e-3:
    return [(value, f"{value:.1e}") for value in values]
  digits = next(d for d in range(12) if math.isclose(round(step / unit, d), step / unit))
  texts = [f"{abs(value) / unit:,.{digits}f}{suffix if value else ''}" for value in values]
  return [(v, f"−{t}" if v < 0 else t) for v, t in zip(values, texts, strict=True)]


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
  """The values 1, 2 and 5 times a power of ten that enclose [low, high], at their log10."""
  powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  values = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
  first = max(value for value in values if value <= low)
  last = min(value for value in values if value >= high)
  return [(math.log10(value), f"{value:g}") for value in values if first <= value <= last]


def picture(panels: Sequence[tuple[str, Figure]], labels: Sequence[str], columns: int) -> str:
  """An SVG file of (title, figure) panels in a grid under one legend.

  It needs no stylesheet: colors are literal and the background is white, so that it is legible
  wherever an image can be shown, such as in a Markdown file.
  """
  title_height, gap, line_height = 24, 8, 20
  entry = max(200, 40 + 7 * max(map(len, labels), default=0))
  width = columns * WIDTH
  per_line = max(1, width // entry)
  y = 10 + line_height * -(-len(labels) // per_line)
  parts = []
  for i, label in enumerate(labels):
    column, row = i % per_line, i // per_line
    parts.append(_legend_entry(i, label, 14 + entry * column, 16 + line_height * row))
  panel = Markup(
    '<text class="title" x="{}" y="{}">{}</text><g transform="translate({} {})">{}</g>'
  )
  for start in range(0, len(panels), columns):
    row = panels[start : start + columns]
    for column, (title, figure) in enumerate(row):
      x = WIDTH * column
      parts.append(panel.format(x + 14, y + 16, title, x, y + title_height, figure.body()))
    y += title_height + gap + max(figure.height for _, figure in row)
  style = Markup("text{font:12px system-ui,sans-serif}text.title{font-size:14px;font-weight:600}")
  svg = Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
    'height="{height}" style="max-width:100%;height:auto"><style>{style}</style>'
    '<rect width="{width}" height="{height}" style="fill:var(--card)"/>{body}</svg>\n'
  ).format(width=width, height=y, style=style + STYLE, body=Markup("").join(parts))
  colors = _variables(dark=False)
  return re.sub(r"var\(--(\w+)\)", lambda match: colors.get(match[1], match[0]), str(svg))


def _legend_entry(place: int, label: str, x: float, y: float) -> Markup:
  entry = Markup(
    '<path class="line" style="stroke:{};stroke-width:3;{}" d="M{} {}h16"/>'
    '<text x="{}" y="{}">{}</text>'
  )
  return entry.format(color_of(place), dash(place), x, y - 4, x + 22, y, label)


def variables(dark: bool) -> Markup:
  """CSS declarations of the colors, for a page."""
  return Markup(";".join(f"--{name}:{color}" for name, color in _variables(dark).items()))


def _variables(dark: bool) -> dict[str, str]:
  card, ink, grid = ("#1d2127", "#bcc2ca", "#363c45") if dark else ("#fff", "#4a5058", "#e3e6ea")
  colors = [f"color-mix(in srgb,{c} 72%,white)" if dark else c for c in COLORS]
  return dict(card=card, ink=ink, grid=grid, bar="#8b949e") | {
    f"c{i}": color for i, color in enumerate(colors)
  }


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
  """The range with room at either end, and never empty."""
  low, high = float(low), float(high)
  if low == high:
    return (-0.06, 1.0) if low == 0 else (low - 0.05 * abs(low), high + 0.05 * abs(high))
  return low - (high - low) * share, high + (high - low) * share
