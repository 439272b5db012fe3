"""Curves as SVG whose colours are a page's variables: light and dark, sharp at any size.

A page of ten is made in some hundredths of a second, while a run waits; matplotlib takes a second.
"""

import dataclasses
import html
import itertools
import math

import numpy as np

COLORS = (  # on light pages; dark ones mix them with white
  *("#1f77b4", "#e8710a", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf"),
  *("#a8a000", "#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d"),
)
WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 408, 10, 212  # of the plot itself
POINTS = 300  # more than these are thinned out


@dataclasses.dataclass
class Line:
  """A curve: x, y [N], how far to either side its band goes [N], and what it smooths [N]."""

  label: str
  x: np.ndarray
  y: np.ndarray
  spread: np.ndarray | None = None
  raw: np.ndarray | None = None


class Figure:
  """A pair of axes; what is added later lies above. Values beyond `ylim` are drawn at its edge."""

  def __init__(self, xlabel: str, xlim, ylim, ylabel: str = ""):
    """xlim, ylim: the least and the largest value to show; they may be equal."""
    self.xlim = _widened(*xlim, 0.0)
    self.ylim = _widened(*ylim, 0.06)
    self.parts = []
    middle_x, middle_y = (LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2
    for value, text in ticks(*self.ylim, 5):
      y = self._y(value)
      self.parts.append(f'<path class="grid" d="M{LEFT} {y}H{RIGHT}"/>')
      self.parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{text}</text>')
    for value, text in ticks(*self.xlim, 6, whole=xlabel == "step"):
      x = self._x(value)
      self.parts.append(f'<path class="grid" d="M{x} {BOTTOM}v4"/>')
      self.parts.append(f'<text x="{x}" y="{BOTTOM + 17}" text-anchor="middle">{text}</text>')
    self.parts.append(
      f'<text x="{middle_x}" y="{HEIGHT - 5}" text-anchor="middle">{html.escape(xlabel)}</text>'
    )
    if ylabel:
      turned = f'transform="translate(13 {middle_y}) rotate(-90)" text-anchor="middle"'
      self.parts.append(f"<text {turned}>{html.escape(ylabel)}</text>")

  def line(self, color: str, x, y, style: str = ""):
    """A polyline; of one point nothing can be seen, see `dots`."""
    self.parts.append(f'<path class="line" style="stroke:{color};{style}" d="{self._path(x, y)}"/>')

  def area(self, color: str, x, low, high, opacity: float):
    """What lies between two curves over the same x."""
    around = self._path([*x, *x[::-1]], [*high, *low[::-1]])
    self.parts.append(f'<path style="fill:{color};fill-opacity:{opacity}" d="{around}Z"/>')

  def dots(self, color: str, x, y, radius: float, titles=(), opacity: float = 1.0):
    """A dot a point; `titles` are shown when the mouse is on it."""
    for place, value, title in itertools.zip_longest(x, y, titles, fillvalue=""):
      self.parts.append(
        f'<circle cx="{self._x(place)}" cy="{self._y(value)}" r="{radius}" '
        f'style="fill:{color};fill-opacity:{opacity}">'
        + (f"<title>{html.escape(title)}</title>" if title else "")
        + "</circle>"
      )

  def inside(self) -> str:
    """All that was drawn, WIDTH by HEIGHT, without an <svg> around it."""
    return "".join(self.parts)

  def svg(self, label: str) -> str:
    """An element that takes the width of what it is in; `label` is its name to screen readers."""
    return (
      f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">'
      f"{self.inside()}</svg>"
    )

  def _x(self, value):
    low, high = self.xlim
    return round(LEFT + (RIGHT - LEFT) * float(value - low) / (high - low), 1)

  def _y(self, value):
    low, high = self.ylim
    share = (min(max(float(value), low), high) - low) / (high - low)
    return round(BOTTOM - (BOTTOM - TOP) * share, 1)

  def _path(self, x, y):
    return "M" + "L".join(f"{self._x(a)} {self._y(b)}" for a, b in zip(x, y, strict=True))


def curves(lines: list[Line | None], xlabel: str) -> Figure:
  """Curves over one x axis, each in the colour of its place in the list (a None keeps one free).

  Where colours come round again, curves are dashed (see `dash`).
  """
  shown = [line for line in lines if line]
  values = [line.y if line.raw is None else line.raw for line in shown]
  bands = [np.concatenate([k.y - k.spread, k.y + k.spread]) for k in shown if k.spread is not None]
  y, x = np.concatenate([*values, *bands]), np.concatenate([line.x for line in shown])
  figure = Figure(xlabel, (x.min(), x.max()), (y.min(), y.max()))
  for i, line in enumerate(lines):
    if not line:
      continue
    color = f"var(--c{i % len(COLORS)})"
    if line.spread is not None and len(line.x) > 1:
      figure.area(color, line.x, line.y - line.spread, line.y + line.spread, 0.16)
    if line.raw is not None:
      figure.line(color, *thinned(line.x, line.raw), "stroke-width:0.8;stroke-opacity:0.35")
    figure.line(color, *thinned(line.x, line.y), dash(i))
    if len(line.x) < 80:  # dots on a long curve are there only for the mouse
      of = f"{line.label}, " * bool(line.label)
      titles = [f"{of}{xlabel} {a:,.5g}: {b:.4g}" for a, b in zip(line.x, line.y, strict=True)]
      few = len(line.x) < 16
      figure.dots(color, line.x, line.y, 2.2 if few else 4, titles, 1.0 if few else 0.0)
  return figure


def dash(place: int) -> str:
  """The style of a curve by its place: dashed where colours come round again."""
  return "stroke-dasharray:6 3" * (place >= len(COLORS))


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The least and the largest of every stretch of a long curve, so that spikes stay."""
  if len(x) <= 2 * POINTS:
    return x, y
  kept = set()
  for stretch in np.array_split(np.arange(len(x)), POINTS):
    kept |= {stretch[y[stretch].argmin()], stretch[y[stretch].argmax()]}
  kept = sorted(kept | {0, len(x) - 1})
  return x[kept], y[kept]


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[tuple[float, str]]:
  """About `count` round values from low to high, and how they are written."""
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
  texts = [f"{abs(value) / unit:,.{digits}f}{suffix * bool(value)}" for value in values]
  return [(v, "−" * (v < 0) + t) for v, t in zip(values, texts, strict=True)]


def picture(panels: list[tuple[str, Figure]], labels: list[str], columns: int) -> str:
  """An SVG file of panels with their titles, and one legend above them all."""
  title_height, entry, line_height = 24, 200, 20
  width = columns * WIDTH
  per_line = width // entry
  top = 10 + line_height * -(-len(labels) // per_line)
  height = top + -(-len(panels) // columns) * (HEIGHT + title_height + 8)
  parts = []
  for i, label in enumerate(labels):
    x, y = 14 + entry * (i % per_line), 16 + line_height * (i // per_line)
    parts.append(
      f'<path class="line" style="stroke:var(--c{i % len(COLORS)});stroke-width:3;{dash(i)}" '
      f'd="M{x} {y - 4}h16"/><text x="{x + 22}" y="{y}">{html.escape(label)}</text>'
    )
  for i, (title, figure) in enumerate(panels):
    x, y = WIDTH * (i % columns), top + (HEIGHT + title_height + 8) * (i // columns)
    parts.append(
      f'<text class="title" x="{x + 14}" y="{y + 16}">{html.escape(title)}</text>'
      f'<g transform="translate({x} {y + title_height})">{figure.inside()}</g>'
    )
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
    f'height="{height}"><style>svg{{{variables(False)};background:var(--card)}}'
    f"@media(prefers-color-scheme:dark){{svg{{{variables(True)}}}}}"
    f"text{{font:12px system-ui,sans-serif}}text.title{{font-size:14px;font-weight:600}}{STYLE}"
    f"</style>{''.join(parts)}</svg>\n"
  )


STYLE = (
  "svg text{fill:var(--ink);font-size:11.5px}.grid{stroke:var(--grid);stroke-width:0.8}"
  ".line{fill:none;stroke-width:1.7;stroke-linejoin:round}"
)


def variables(dark: bool) -> str:
  """CSS declarations of the colours."""
  card, ink, grid = ("#1d2127", "#bcc2ca", "#363c45") if dark else ("#fff", "#4a5058", "#e3e6ea")
  colors = [f"color-mix(in srgb,{c} 72%,white)" if dark else c for c in COLORS]
  return f"--card:{card};--ink:{ink};--grid:{grid};" + ";".join(
    f"--c{i}:{c}" for i, c in enumerate(colors)
  )


def _widened(low, high, share):
  """The range with some room at its ends, and never empty."""
  low, high = float(low), float(high)
  if low == high:
    return (-0.06, 1.0) if low == 0 else (low - 0.05 * abs(low), high + 0.05 * abs(high))
  return low - (high - low) * share, high + (high - low) * share
