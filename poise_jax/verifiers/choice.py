"""Multiple choice: which letter does the response settle on?"""

import re
from collections.abc import Mapping

from poise_jax.verifiers.base import UnusableError, Verdict
from poise_jax.verifiers.extract import EXTRACTORS, LONGEST
from poise_jax.verifiers.notation import plain_width
from poise_jax.verifiers.thought import judges_answer

_WRAP = re.compile(
  r"\\(?:text|textbf|mathrm|mathbf|mathsf|rm|bf)\s*\{([^{}]*)\}|[$*_`{}()\[\]]|\\[(),!\]\[]"
)
_PHRASE = re.compile(
  r"\b(?:answer|choice|option|correct answer)(?:\s+(?:is|would be|should be))?\s*:?\s*"
  r"(?:option\s+|choice\s+)?[*_$(\[{`]{0,4}\s*([A-Z])\b(?!['’]|\s+[a-z])",
  re.IGNORECASE,
)
_ALONE = re.compile(r"^[ \t*_$(\[{`]*([A-Z])[ \t*_$)\]}`.:]*$", re.MULTILINE)  # within a line
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@judges_answer
def choice(reference: str, response: str, choices: Mapping[str, str] | None = None) -> Verdict:
  """1 if the response chooses the reference's letter, else 0; see `chosen_letter`.

  Args:
    reference: a letter, A to Z.
    response: the text to judge.
    choices: letter -> text of each option.
  """
  letters = "".join(choices) if choices else LETTERS
  if reference not in letters or len(reference) != 1:
    raise UnusableError(
      f"the reference of verifier choice must be one of {', '.join(letters)}, got {reference!r}"
    )
  letter = chosen_letter(response, choices)
  if not letter:
    return Verdict(0.0, "unparsable", "no letter is chosen")
  return Verdict(float(letter == reference), answer=letter)


def chosen_letter(response: str, choices: Mapping[str, str] | None = None) -> str | None:
  """The letter that a response chooses, None if it chooses none.

  The last box, answer line or answer tag decides; without any, the last "the answer is (B)"; else
  the last line that consists of a letter. A word that happens to be a letter ("A dog") is not a
  choice.

  Args:
    response: only its last extract.LONGEST characters are read.
    choices: letter -> text of each option. An answer may then be a text instead of its letter, and
      no other letter is a choice.
  """
  letters = "".join(choices) if choices else LETTERS
  text = plain_width(response[-LONGEST:])
  answers = [answer for extractor in EXTRACTORS.values() if (answer := extractor(text))]
  if answers:
    return _letter(max(answers)[1], letters, choices)
  candidates = [m.group(1).upper() for m in _PHRASE.finditer(text)] or _ALONE.findall(text)
  return candidates[-1] if candidates and candidates[-1] in letters else None


def _letter(answer, letters, choices):
  """The letter that an extracted answer chooses: "B", "(b)", "B. Paris", "option B", "Paris"."""
  plain = answer
  for _ in range(2):  # \text{(B)}
    plain = _WRAP.sub(lambda m: m.group(1) or " ", plain).strip()
  if m := re.fullmatch(
    r"(?:the\s+)?(?:answer|option|choice)?\s*(?:is\s+)?([A-Za-z])\s*[.:,]?", plain, re.I
  ):
    letter = m.group(1).upper()
    return letter if letter in letters else None
  if choices:
    matches = [letter for letter, text in choices.items() if _words(text) == _words(plain)]
    if len(matches) == 1:
      return matches[0]
  # The option's text may follow the letter, after a mark or after parentheses removed above.
  m = re.match(r"\s*[(\[]?\s*([A-Z])\s*[)\].:]\s*\S", answer) or re.match(r"([A-Z])[.:)]\s", plain)
  if not m or m.group(1) not in letters:
    return None
  rest = _words(plain[1:].lstrip(" .:)"))
  matches = choices and [letter for letter, text in choices.items() if _words(text) == rest]
  if matches and m.group(1) not in matches:
    return None  # "B. <text of C>" is neither
  return m.group(1)


def _words(text):
  return " ".join(text.split()).casefold().strip(" .")
