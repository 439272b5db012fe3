"""Brings mathematical answers into one notation: LaTeX without boxes, Unicode and decoration."""

import itertools
import re
import unicodedata

from poise_jax.verifiers.extract import last_box

DEEPEST_BOX = 10  # boxes in boxes that are opened
LONGEST_FORMULA = 1200  # characters of an answer that is more than a text
_GREEK = dict(
  zip(
    "αβγδεζηθικλμνξπρστυφχψωϕΓΔΘΛΞΠΣΦΨΩ",
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega phi Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split(),
    strict=True,
  )
)
_COMMANDS = {
  "∞": "infty", "∪": "cup", "∩": "cap", "∈": "in", "∉": "notin", "∅": "emptyset", "⊂": "subset",
  "⊆": "subseteq", "≤": "le", "⩽": "le", "≦": "le", "≥": "ge", "⩾": "ge", "≧": "ge", "≠": "ne",
  "≈": "approx", "≡": "equiv", "≅": "cong", "±": "pm", "∓": "mp", "×": "times", "·": "cdot",
  "⋅": "cdot", "∙": "cdot", "∨": "lor", "∧": "land", "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil",
  "⌉": "rceil", "⟨": "langle", "⟩": "rangle", "→": "to", "∑": "sum", "∏": "prod", "∫": "int",
  "∠": "angle", "∣": "mid", "¬": "neg", "ℝ": "mathbb{R}", "ℤ": "mathbb{Z}", "ℕ": "mathbb{N}",
  "ℚ": "mathbb{Q}", "ℂ": "mathbb{C}",
}  # fmt: skip
_SYMBOLS = {c: f"\\{name} " for c, name in (_GREEK | _COMMANDS).items()} | {
  "−": "-", "–": "-", "‐": "-", "‒": "-", "÷": "/", "∕": "/", "∶": ":", "。": ".", "、": ",",
  "°": r"^\circ ", "º": r"^\circ ", "˚": r"^\circ ", "′": "'", "’": "'", "‘": "'",
  "“": '"', "”": '"',
}  # fmt: skip
_WIDTHS = ("wide", "narrow", "small", "noBreak")  # tags of characters that differ in width only
_RADICAL = re.compile(r"([√∛∜])\s*(?:(\d+(?:\.\d+)?|[a-zA-Z]|\\[a-zA-Z]+)|(?=[({]))")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_SPACE = re.compile(
  r"(?<!\\)\\[,;:! ()\[\]]|\\q?quad\b|~"
  r"|\\(?:left|right|middle|displaystyle|big|Big|bigl|bigr)(?![a-zA-Z])"
)
_ROMAN = re.compile(
  r"\\(?:mathrm|mathit|mathbf|mathsf|text|rm)(?:\s*\{\s*([ei])\s*\}|\s+([ei])(?![a-zA-Z]))"
)
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d|\s*/|\s*\\frac)")
_EXPONENT = re.compile(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?\d{1,4})(?!\w)")
_REWRITES = [
  (re.compile(r"\\[dtc]frac"), r"\\frac"),
  (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
  (re.compile(r"\\varnothing"), r"\\emptyset"),
  (re.compile(r"\\log_\s*(?:\{\s*e\s*\}|e)"), r"\\ln "),
  (re.compile(r"\\lg(?![a-zA-Z])"), r"\\log_{10} "),
  (re.compile(r"\\langle"), "("),
  (re.compile(r"\\rangle"), ")"),
  (re.compile(r"\\(?:degree|degrees)(?![a-zA-Z])"), r"^\\circ "),
  (re.compile(r"(?<![\w)}])\*\*(.+?)\*\*(?![\w({])"), r"\1"),
  (re.compile(r"(?<=[\w)}])\s?\*\*\s?(?=[\w({\\-])"), "^"),
  # Which integers a letter stands for: "x = k\pi, k \in \mathbb{Z}".
  (re.compile(r"\s*[,;(]\s*[a-z]\s*\\in\s*\\(?:mathbb\s*\{?)?[ZN]\}?\s*\)?\s*$"), ""),
  (re.compile(r"(?<=\d)\s*\b([ap])\.?m\b\.?", re.I), lambda m: f" {m[1].upper()}M"),
  (re.compile(r"(?<=\d)\s*\b([ap])\.\s?m\.?(?!\w)", re.I), lambda m: f" {m[1].upper()}M"),
]


def clean(text: str) -> str:
  """An answer in LaTeX, without what does not matter: boxes, dollar signs, spacing, a full stop.

  An escaped dollar sign stays, as the unit of an amount of money.
  """
  for _ in range(DEEPEST_BOX):
    if (box := last_box(text)) is None:
      break
    text = box[1]
  if not text.isascii():
    text = _from_unicode(text)
  text = re.sub(r"(?<!\\)\$", " ", text)
  text = " ".join(_SPACE.sub(" ", text).split())
  text = _ROMAN.sub(lambda m: " " + (m[1] or m[2]), text)
  for pattern, replacement in _REWRITES:
    text = pattern.sub(replacement, text)
  text = _EXPONENT.sub(
    r"\1 \\times 10^{\2}", _braced_roots(text) if len(text) < LONGEST_FORMULA else text
  )
  text = re.sub(r"\s+", " ", text).strip().rstrip(".,;:* ")
  text = _GROUPED.sub(lambda m: m[0].replace(" ", ""), text)
  quoted = re.fullmatch(r"([`'\"])([^`'\"]*)\1", text)
  return quoted[2].strip() if quoted else text


def plain_width(text: str) -> str:
  """The text with full-width letters, digits, brackets and signs in their usual width."""
  if text.isascii():
    return text
  return "".join(unicodedata.normalize("NFKC", c) if _tag(c) in _WIDTHS else c for c in text)


def _tag(character):
  """How a character's compatibility decomposition differs from it: super, sub, wide; "" if none."""
  decomposition = "" if character < "\x80" else unicodedata.decomposition(character)
  return decomposition[1:].partition(">")[0] if decomposition.startswith("<") else ""


def _from_unicode(text):
  """Unicode mathematics as LaTeX. Decoration such as emoji and invisible characters disappears."""
  parts = []
  # Compatibility normalization alone would make x2 of x², so runs of superscripts become powers.
  for tag, run in itertools.groupby(text, lambda c: "" if c in _SYMBOLS else _tag(c)):
    run = "".join(run)
    plain = unicodedata.normalize("NFKC", run)
    if tag in ("super", "sub"):
      parts.append(("^" if tag == "super" else "_") + "{" + plain.replace("−", "-") + "}")
    elif tag == "fraction":  # "⁄" is not the solidus of 1/2
      plain = "".join(unicodedata.normalize("NFKC", c) + " " for c in run)
      parts.append(re.sub(r"(\d+)⁄(\d*) ", r"\\frac{\1}{\2}", plain))
    else:
      run = plain if tag else run
      parts += [c if c < "\x80" else _SYMBOLS.get(c, "" if _decoration(c) else c) for c in run]
  text = "".join(parts)
  text = re.sub(r"\^\{(\d+)\}⁄_\{(\d+)\}", r"\\frac{\1}{\2}", text).replace("⁄", "/")
  return _RADICAL.sub(lambda m: _ROOTS[m[1]] + (f"{{{m[2]}}}" if m[2] else ""), text)


def _decoration(character):
  return unicodedata.category(character) in ("So", "Cf", "Mn", "Cc", "Co", "Cn")


def _braced_roots(text):
  r"""Replaces the parentheses of \sqrt(...), which is no LaTeX, by braces."""
  start = 0
  while m := re.compile(r"\\sqrt(?:\[\d+\])?\s*\(").search(text, start):
    depth, start = 1, m.end()
    for place in range(m.end(), len(text)):
      depth += {"(": 1, ")": -1}.get(text[place], 0)
      if not depth:
        text = f"{text[: m.end() - 1]}{{{text[m.end() : place]}}}{text[place + 1 :]}"
        break
  return text
