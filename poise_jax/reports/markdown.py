"""Markdown tables."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Formats a table in Markdown, without a final newline.

  Cells are written with `str`. A `|` or a newline in one would end it, so both are escaped.

  Args:
    header: column titles.
    rows: cells of every line, as many as there are titles.

  Raises:
    ValueError: a row has more or fewer cells than the header.
  """
  lines = [header, ["---"] * len(header)]
  for row in rows:
    if len(row) != len(header):
      raise ValueError(f"a row of {len(row)} cells in a table of {len(header)} columns: {row}")
    lines.append(row)
  return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
  return str(value).replace("|", "\\|").replace("\n", "<br>")
