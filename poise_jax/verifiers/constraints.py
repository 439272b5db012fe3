"""Does the response follow instructions on its form? IFEval-style checks (arXiv 2311.07911)."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from poise_jax.errors import unknown_name
from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.thought import after_thought, takes_think_end, unfinished

_ABBREVIATION = re.compile(
  r"\b(?:(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Mt|No|Nos|Fig|Gen|Sen|Rep|vs|approx|cf)\.(?=\s)"
  r"|(?:Inc|Ltd|Co|Corp|etc|al|(?:[A-Za-z]\.)*[A-Za-z])\.(?=,|\s+(?!(?:"
  r"A|After|Also|An|And|As|At|Before|But|For|From|He|Her|His|However|I|If|In|It|Its|My|No|Not|Now|"
  r"On|Our|She|So|Some|That|The|Their|Then|There|These|They|This|Those|To|We|What|When|Yes|You|Your"
  r")\b)))"
)
_FENCED = re.compile(r"(```+|~~~+)[^\n`]*\n(.*)\n[ \t]*\1", re.DOTALL)


@takes_think_end
def constraints(
  reference: Sequence[Mapping[str, Any]],
  response: str,
  partial: bool = False,
  think_end: str = "",
) -> Verdict:
  """1 if every constraint holds, else 0; with `partial` the fraction of constraints that hold.

  Args:
    reference: constraints, each {"kind": a name in KINDS} and the arguments of that kind, such as
      {"kind": "words", "at_least": 10} or {"kind": "contains", "text": "tea", "at_most": 2}.
    response: the text to judge, without its thought; "matches" judges the thought, too.
    partial: whether to score the fraction.
    think_end: see thought.after_thought.
  """
  if not reference:
    raise UnusableError("the reference of verifier constraints needs at least one constraint")
  answer, broken = after_thought(response, think_end), []
  for constraint in reference:
    arguments = dict(constraint)
    kind = arguments.pop("kind", None)
    if kind not in KINDS:
      raise UnusableError(str(unknown_name("constraint", str(kind), KINDS)))
    text = response if kind == "matches" else answer
    if text is None:
      return unfinished(think_end)
    try:
      holds = KINDS[kind](text.strip(), **arguments)
    except (TypeError, AttributeError, re.error) as error:
      raise UnusableError(f"constraint {constraint} is malformed: {error}") from error
    if not holds:
      broken.append(kind)
  fraction = (len(reference) - len(broken)) / len(reference)
  score = fraction if partial else float(not broken)
  return Verdict(score, note=f"broken: {', '.join(broken)}" if broken else "")


def _counted(count):
  """A check that count(response) is exactly, at_least or at_most a number."""

  def check(response, *, at_least=None, at_most=None, exactly=None, **arguments):
    if at_least is None and at_most is None and exactly is None:
      raise TypeError("set at_least, at_most or exactly")
    lowest = max(0 if x is None else x for x in (at_least, exactly))
    highest = min(math.inf if x is None else x for x in (at_most, exactly))
    if lowest > highest:
      raise TypeError(f"no count is at least {lowest:g} and at most {highest:g}")
    n = count(response, **arguments)
    return (
      (at_least is None or n >= at_least)
      and (at_most is None or n <= at_most)
      and (exactly is None or n == exactly)
    )

  return check


def _words(response):
  return len(re.findall(r"\w+(?:['’\-]\w+)*", response))


def _sentences(response):
  """Sentences end at . ! ? or … before white space, at 。！？ anywhere, and at the end of a line.

  The full stops of list numbers ("1. Tea"), abbreviations and initials end none, unless one of
  the words follows that often begin a sentence ("in the U.S. He left").
  """
  text = re.sub(r"(?m)^\s*(?:\d+|[a-zA-Z])[.)]\s+", "", response)
  text = _ABBREVIATION.sub("", re.sub(r"([。！？][」』”）]*)", r"\1\n", text))
  return len([s for s in re.split(r"(?<=[.!?…])[\"')\]”’]*\s+|\n+", text) if re.search(r"\w", s)])


def _paragraphs(response, separator=r"\n\s*\n"):
  return len([p for p in re.split(separator, response) if p.strip()])


def _lines(response):
  return len([line for line in response.splitlines() if line.strip()])


def _bullets(response):
  return len(re.findall(r"(?m)^[^\S\n]*(?:[*•+-])\s+\S", response))


def _occurrences(response, text, ignore_case=True, whole_word=True):
  pattern = rf"(?<!\w){re.escape(text)}(?!\w)" if whole_word else re.escape(text)
  return len(re.findall(pattern, response, re.IGNORECASE if ignore_case else 0))


def _contains(response, text, at_least=None, at_most=None, exactly=None, **how):
  if at_least is None and at_most is None and exactly is None:
    at_least = 1
  bounds = dict(at_least=at_least, at_most=at_most, exactly=exactly)
  return _counted(_occurrences)(response, text=text, **bounds, **how)


def _forbidden(response, words):
  if isinstance(words, str):
    raise TypeError("words must be a list")
  return not any(_occurrences(response, word) for word in words)


def _capital_words(response):
  return len(re.findall(r"\b[A-Z]{2,}(?:['’-][A-Z]+)*\b", response))


def _case(response, case):
  cased = [c for c in response if c.lower() != c.upper()]
  if case == "title":
    words = re.findall(r"[^\W\d_][\w'’]*", response)
    return bool(words) and all(word[0].isupper() for word in words)
  if case not in ("upper", "lower"):
    raise TypeError(f"case must be upper, lower or title, got {case!r}")
  return bool(cased) and all(c == getattr(c, case)() for c in cased)


def _json(response, keys=()):
  if isinstance(keys, str):
    raise TypeError("keys must be a list")
  fenced = _FENCED.fullmatch(response.replace("\r\n", "\n"))
  try:
    value = json.loads(fenced.group(2) if fenced else response)
  except (ValueError, RecursionError):
    return False
  return isinstance(value, dict) and set(keys) <= set(value) if keys else True


def _one_of(response, texts):
  if isinstance(texts, str) or not texts:
    raise TypeError("texts must be a list")
  return response in texts


def _quoted(response):
  return len(response) > 1 and response[0] in '"“' and response[-1] in '"”'


# Kind -> function (response, **arguments) -> bool. A count takes at_least, at_most or exactly.
KINDS = {
  "words": _counted(_words),
  "sentences": _counted(_sentences),
  "paragraphs": _counted(_paragraphs),  # separator: a regular expression, by default an empty line
  "lines": _counted(_lines),  # not counting empty lines
  "bullets": _counted(_bullets),
  "characters": _counted(len),
  "placeholders": _counted(lambda r: len(re.findall(r"\[[^\[\]\n]+\]", r))),  # [name]
  "highlights": _counted(lambda r: len(re.findall(r"(?<!\*)\*{1,2}[^*\s][^*\n]*\*{1,2}", r))),
  "sections": _counted(
    lambda r, mark: len(re.findall(rf"(?m)^[^\w\n]*{re.escape(mark)}\s*\d+", r))
  ),
  "letter": _counted(lambda r, letter: r.lower().count(letter.lower())),
  "capital_words": _counted(_capital_words),  # words of two or more capitals
  "contains": _contains,  # text; ignore_case=True, whole_word=True; at least once by default
  "forbidden": _forbidden,  # words: none may occur, whatever their case
  "starts_with": lambda r, text: r.casefold().startswith(text.casefold()),
  "ends_with": lambda r, text: r.casefold().endswith(text.casefold()),
  "case": _case,  # case: upper, lower or title
  "no_commas": lambda r: "," not in r,
  "json": _json,  # keys: required in the object; a fence around the JSON is allowed
  "quoted": _quoted,
  "title": lambda r: bool(re.search(r"<<[^<>\n]*\S[^<>\n]*>>", r)),  # <<a title>>
  "postscript": lambda r, mark="P.S.": bool(re.search(rf"(?im)^[^\S\n]*{re.escape(mark)}\s*\S", r)),
  "one_of": _one_of,  # texts
  "repeats": lambda r, text: r.casefold().startswith(text.strip().casefold()) and r != text.strip(),
  "matches": lambda r, pattern: bool(re.fullmatch(pattern, r, re.DOTALL)),
  "finds": lambda r, pattern: bool(re.search(pattern, r, re.MULTILINE)),
}
