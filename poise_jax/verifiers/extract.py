"""Where in a response the answer stands."""

import re

from poise_jax.errors import unknown_name
from poise_jax.verifiers.base import UnusableError

LONGEST = 20_000  # characters of a response that are read, counted from its end
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# A box without braces, which TeX ends after one character, and writers after the number.
_BARE_BOX = re.compile(
  r"\\(?:boxed|fbox)\s*([-+]?\d[\d.,]*(?<![.,])|[A-Za-z](?<=\s.))(?=[.,;:!?]?\s*(?:\$|\\[)\]]|\n|$))"
)
_NAME = r"(?:(?:the|my|our|so|thus|hence|therefore|final|correct)[ ,]+){0,3}answer|(?:最终)?答案"
_DECORATION = r"[^\w\n\\$]{0,12}"  # of a line's beginning: list marks, headings, bold face, emoji
# Behind the colon, or in the next line that is not empty, where it may be a displayed formula.
VALUE = (
  r"(?:\n[ \t]*){0,3}(?:\$\$(?P<dollars>[^$]{1,2000})\$\$"
  r"|\\\[(?P<brackets>(?:(?!\\\]).){1,2000})\\\]|(?P<line>\S[^\n]*))"
)
_LINE = re.compile(
  rf"(?:^{_DECORATION}|(?<=[.,;!?] ))(?:{_NAME})[*_ \t]{{0,4}}[:：=→][*_]{{0,3}}[ \t]*{VALUE}",
  re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_HEADING = re.compile(
  rf"^(?=[^\w\n]){_DECORATION}(?:final[ ]+)?answer[*_ \t]*\n[ \t]*{VALUE}",
  re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.IGNORECASE | re.DOTALL)


def last_box(text: str) -> tuple[int, str] | None:
  r"""Start and contents of the last \boxed{...} with balanced braces, or \boxed 12 without any."""
  last, open_braces = None, []  # (start, start of the contents) of a box, None for another brace
  for match in _BRACE.finditer(text):
    token = match.group()
    if token == "}":
      box = open_braces.pop() if open_braces else None
      if box:
        last = box[0], text[box[1] : match.start()].strip()
    elif token[-1] == "{" and token != r"\{":
      open_braces.append(None if token == "{" else (match.start(), match.end()))
  bare = [(m.start(), m.group(1)) for m in list(_BARE_BOX.finditer(text))[-1:]]
  return max([last, *bare] if last else bare, default=None)


def last_line(text: str) -> tuple[int, str] | None:
  """Start of the last line "Answer: ...", and what it gives as the answer.

  The answer stands after the colon or in the next line, also if "Answer" is a heading there.
  """
  return max(last_values(_LINE, text) + last_values(_HEADING, text), default=None)


def last_values(pattern: re.Pattern, text: str) -> list[tuple[int, str]]:
  """Start and VALUE of a pattern's last match, if there is one."""
  return [
    (m.start(), (m["dollars"] or m["brackets"] or m["line"]).strip(" \t\n*_"))
    for m in list(pattern.finditer(text))[-1:]
  ]


def last_tag(text: str) -> tuple[int, str] | None:
  """Start and contents of the last <answer>...</answer>."""
  tags = list(_TAG.finditer(text))
  return (tags[-1].start(), tags[-1].group(1).strip()) if tags else None


EXTRACTORS = {"boxed": last_box, "answer_line": last_line, "answer_tag": last_tag}


def find_answer(response: str, extract: str = "auto") -> str | None:
  """The answer that a response gives in one of the usual forms, None if it uses none of them.

  Args:
    response: only its last LONGEST characters are read.
    extract: "boxed", "answer_line" or "answer_tag" reads the last answer in that form; "auto" reads
      the last answer in any of the three forms, and a box inside an answer line or a tag counts as
      the answer; "all" reads the whole response.

  Raises:
    UnusableError: `extract` is none of these.
  """
  text = response[-LONGEST:]
  if extract == "all":
    return text.strip()
  if extract != "auto" and extract not in EXTRACTORS:
    raise UnusableError(str(unknown_name("extract", extract, ["auto", "all", *EXTRACTORS])))
  forms = EXTRACTORS if extract == "auto" else [extract]
  answers = [answer for form in forms if (answer := EXTRACTORS[form](text))]
  return max(answers)[1] if answers else None


def answer_or_response(response: str, extract: str = "auto") -> str | None:
  """As `find_answer`, but with "auto" a response in none of the forms is an answer as a whole."""
  answer = find_answer(response, extract)
  return find_answer(response, "all") if answer is None and extract == "auto" else answer
