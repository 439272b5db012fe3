"""HTML pages that hold everything they show: no script, no font and no picture from elsewhere."""

import html

from poise_jax.reports import svg as figures

_STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;max-width:1320px;padding:20px 16px 48px;background:var(--page);color:var(--text);
 font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue","Liberation Sans",sans-serif}
h1{font-size:24px;margin:0;overflow-wrap:anywhere}
h2{font-size:18px;margin:32px 0 10px}
h3{font-size:14px;margin:0 0 4px;font-weight:600}
p{margin:4px 0}
.quiet,.note{color:var(--quiet)}
.note{font-size:12.5px;line-height:1.4}
.tiles,.cards{display:grid;gap:12px}
.tiles{grid-template-columns:repeat(auto-fill,minmax(150px,1fr));margin:16px 0}
.cards{grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr))}
.tile,.card,details{background:var(--card);border:1px solid var(--line);border-radius:8px}
.tile{padding:8px 12px}
.tile b{display:block;font-size:18px;line-height:1.35;overflow-wrap:anywhere;
 font-variant-numeric:tabular-nums}
.tile span{font-size:12.5px;color:var(--quiet)}
.card{padding:12px 12px 8px;min-width:0}
.card svg{display:block;width:100%;height:auto}
.legend{font-size:12.5px;line-height:1.5;min-height:19px}
.legend span{display:inline-block;margin-right:12px}
.legend i{display:inline-block;width:15px;margin-right:5px;vertical-align:middle;
 border-top:3px solid}
.legend i.again{border-top-style:dashed}
.sticky{position:sticky;top:0;background:var(--page);padding:8px 0;z-index:1}
details{padding:8px 12px;margin:8px 0}
summary{cursor:pointer;font-weight:600}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;width:100%}
th{text-align:left;color:var(--quiet);font-weight:600;font-size:12.5px;vertical-align:bottom}
th,td{padding:5px 10px 5px 0;border-bottom:1px solid var(--line)}
td{vertical-align:top;font-variant-numeric:tabular-nums}
.number{text-align:right;white-space:nowrap}
pre,code,.text{font:13px/1.6 ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,monospace}
pre{overflow-x:auto;margin:6px 0}
.text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;min-width:16ch}
"""


def page(title: str, body: str, style: str = "") -> str:
  """A whole document around `body` (HTML); `title` is text, `style` more CSS.

  The content policy keeps scripts from running even if some answer's text got in unescaped.
  """
  light = "color-scheme:light;--page:#f6f7f9;--line:#e1e4e8;--text:#1f2328;"
  dark = "color-scheme:dark;--page:#15181d;--line:#31363e;--text:#e3e6ea;"
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<link rel="icon" href="data:,">\n<title>{html.escape(title)}</title>\n<style>\n'
    f":root{{{light}--quiet:#5c646e;{figures.variables(dark=False)}}}\n"
    f"@media(prefers-color-scheme:dark){{:root{{{dark}--quiet:#99a1ab;"
    f"{figures.variables(dark=True)}}}}}\n{_STYLE}{figures.STYLE}{style}</style>\n</head>\n<body>\n{body}\n"
    "</body>\n</html>\n"
  )


def card(title: str, figure: figures.Figure, labels: list[str] | None = None, note="") -> str:
  """A figure with its title, the names of its curves (unless the page has them) and a note."""
  return (
    f'<section class="card"><h3>{html.escape(title)}</h3>'
    + ("" if labels is None else legend(labels))
    + figure.svg(title)
    + (f'<p class="note">{html.escape(note)}</p>' if note else "")
    + "</section>"
  )


def legend(labels: list[str]) -> str:
  """Coloured dashes with names, in the order of COLORS; room for a line even if there are none."""
  count = len(figures.COLORS)
  names = [
    f'<span><i class="{"again" * (i >= count)}" style="color:var(--c{i % count})"></i>'
    f"{html.escape(label)}</span>"
    for i, label in enumerate(labels)
  ]
  return f'<div class="legend">{"".join(names)}</div>'


def tiles(values: dict[str, str]) -> str:
  """A row of figures of merit: what it is -> its value."""
  parts = [
    f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
    for name, value in values.items()
  ]
  return f'<div class="tiles">{"".join(parts)}</div>'


def table(head: list[str], rows: list[list[str]], numbers: set[int] = frozenset()) -> str:
  """A table of HTML cells; `numbers` are the columns that stand to the right."""

  def line(tag, cells):
    kinds = [' class="number"' * (i in numbers) for i in range(len(cells))]
    return (
      f"<tr>{''.join(f'<{tag}{k}>{c}</{tag}>' for k, c in zip(kinds, cells, strict=True))}</tr>"
    )

  body = "\n".join(line("td", row) for row in rows)
  return f'<div class="scroll"><table>{line("th", head)}\n{body}</table></div>'


def folded(summary: str, inside: str, is_open: bool = False) -> str:
  """HTML that a click on `summary` (text) shows."""
  return f"<details{' open' * is_open}><summary>{html.escape(summary)}</summary>{inside}</details>"
