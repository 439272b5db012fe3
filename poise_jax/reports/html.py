"""HTML pages that load nothing: no script, no font and no image from elsewhere.

One jinja2 template renders them all, with autoescaping, so that no text of a model, a dataset or a
config can become markup.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence

import jinja2

from poise_jax.reports import svg

HEATS = 12  # shades of a token's entropy


@dataclasses.dataclass(frozen=True)
class Card:
  """A figure with its title, the labels of its curves and a note."""

  title: str
  figure: svg.Figure
  labels: Sequence[str] | None = None  # None: the page has a legend for all of its figures
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of text."""

  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  numbers: Collection[int] = ()  # right-aligned columns


@dataclasses.dataclass(frozen=True)
class Token:
  """A token of a response and its entropy in nats; heat is its shade, 0 to HEATS - 1."""

  text: str
  entropy: float
  heat: int


@dataclasses.dataclass(frozen=True)
class Answer:
  """A response of a training step. Numbers are formatted."""

  question: str
  answer: str
  difficulty: str
  unusual: Sequence[str]  # how it earns without the usual form: "short", "repeated"
  response: str
  reward: str
  baseline: str
  advantage: str
  tokens: Sequence[Token] | None  # None: the run did not log them, `response` is shown
  hidden_tokens: int  # number of tokens after those shown


@dataclasses.dataclass(frozen=True)
class Step:
  """Answers of a training step, folded under a summary."""

  summary: str
  answers: Sequence[Answer]


@dataclasses.dataclass(frozen=True)
class Page:
  """Content of a page, in its order. Empty parts are left out."""

  title: str  # of the browser's tab
  heading: str
  about: str
  tiles: Mapping[str, str] = dataclasses.field(default_factory=dict)  # name -> value
  warnings: Sequence[str] = ()  # sentences on why the run does not learn
  legend: Sequence[str] = ()  # labels of the curves of all figures
  figures: Mapping[str, Sequence[Card]] = dataclasses.field(default_factory=dict)  # by heading
  tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)  # by heading
  max_entropy: float | None = None  # entropy of the deepest shade in nats
  steps: Sequence[Step] = ()  # answers of training steps; the last step is unfolded
  problems: Mapping[str, Table] = dataclasses.field(default_factory=dict)  # folded, by summary
  commands: Sequence[str] = ()
  origin: Sequence[str] = ()  # sentences about commits and machines
  config: str = ""


def render(page: Page) -> str:
  """The page as a document."""
  return _template().render(page=page)


@functools.cache
def _template() -> jinja2.Template:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("poise_jax.reports", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters["visible"] = visible
  environment.globals |= dict(
    colors=len(svg.COLORS),
    heats=HEATS,
    light=svg.variables(dark=False),
    dark=svg.variables(dark=True),
    figure_style=svg.STYLE,
  )
  return environment.get_template("template.html.j2")


def visible(text: str) -> str:
  """The text with symbols for control characters and line ends."""
  text = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)
  return text.replace("\n", "↵\n").replace("\x7f", "␡")
