"""Constraints on the form of a response."""

import pytest

from poise_jax.verifiers import Check, UnusableError, verify
from poise_jax.verifiers.constraints import KINDS


@pytest.mark.parametrize(
  "kind,arguments,yes,no",
  [
    ("words", {"at_least": 3, "at_most": 4}, "it's a well-known fact", "two words"),
    ("sentences", {"exactly": 2}, "Dr. No came. He left!", "One. Two. Three."),
    ("paragraphs", {"exactly": 2}, "a\n\n\nb", "a\nb"),
    ("paragraphs", {"exactly": 2, "separator": r"\*{3}"}, "a\n***\nb", "a\n\nb"),
    ("lines", {"at_most": 2}, "a\n\nb", "a\nb\nc"),
    ("bullets", {"exactly": 2}, "* a\n- b", "* a\n**b**"),
    ("characters", {"at_most": 3}, "abc", "abcd"),
    ("placeholders", {"at_least": 1}, "Dear [name],", "Dear you,"),
    ("highlights", {"exactly": 1}, "a *b c* d", "a b"),
    ("sections", {"mark": "SECTION", "exactly": 2}, "SECTION 1\nx\nSECTION 2\ny", "SECTION 1"),
    ("letter", {"letter": "a", "at_least": 2}, "A cat", "a dog"),
    ("capital_words", {"at_most": 1}, "the NASA I know", "NASA and BBC"),
    ("contains", {"text": "tea"}, "Tea, please", "steam"),
    ("contains", {"text": "tea", "exactly": 2}, "tea and TEA", "tea"),
    ("contains", {"text": "tea", "at_most": 0}, "coffee", "tea"),
    ("forbidden", {"words": ["tea"]}, "steam", "my Tea"),
    ("starts_with", {"text": "Dear"}, "dear all", "My dear"),
    ("ends_with", {"text": "Done."}, "All done.", "Done. Not."),
    ("case", {"case": "upper"}, "ALL 3!", "All"),
    ("case", {"case": "lower"}, "all 3!", "All"),
    ("case", {"case": "title"}, "A Good Day", "A good Day"),
    ("no_commas", {}, "a b", "a, b"),
    ("json", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("json", {}, '~~~JSON title="a"\r\n{"a": 1}\r\n~~~', '```json\n{"a": 1}\n~~~'),
    ("json", {"keys": ["a"]}, '{"a": 1}', '{"b": 1}'),
    ("quoted", {}, '"hello"', 'he said "hello"'),
    ("title", {}, "<<A title>>\ntext", "<< >>"),
    ("postscript", {}, "text\nP.S. more", "text"),
    ("one_of", {"texts": ["yes", "no"]}, "yes", "yes!"),
    ("repeats", {"text": "Say hi."}, "Say hi. Hi!", "Say hi."),
    ("matches", {"pattern": "<think>.*</think>.+"}, "<think>a\nb</think>c", "a<think></think>b"),
    ("finds", {"pattern": r"^\d+$"}, "a\n12\nb", "a12"),
  ],
)
def test_each_kind(kind, arguments, yes, no):
  check = Check("constraints", [{"kind": kind, **arguments}])
  assert verify(check, yes).score == 1
  assert verify(check, no).score == 0


def test_every_kind_is_tested():
  tested = {parameters[0] for parameters in test_each_kind.pytestmark[0].args[1]}
  assert tested == set(KINDS)


def test_partial_scores_the_fraction():
  both = [{"kind": "no_commas"}, {"kind": "words", "at_most": 1}]
  assert verify(Check("constraints", both), "a b").score == 0
  verdict = verify(Check("constraints", both, {"partial": True}), "a b")
  assert verdict.score == 0.5
  assert verdict.note == "broken: words"


@pytest.mark.parametrize(
  "reference,message",
  [
    ([], "at least one"),
    ([{"kind": "word"}], "unknown constraint 'word'; did you mean 'words'\\? choose from"),
    ([{"kind": "words"}], "set at_least, at_most or exactly"),
    ([{"kind": "words", "at_lest": 1}], "malformed"),
    ([{"kind": "matches", "pattern": "("}], "malformed"),
  ],
)
def test_malformed_constraints(reference, message):
  with pytest.raises(UnusableError, match=message):
    verify(Check("constraints", reference), "a b")


@pytest.mark.parametrize(
  "text,sentences",
  [
    ("He moved to the U.S. army base. He stayed.", 2),
    ("They live in the U.K. They like it.", 2),
    ("J. R. Brown wrote it at 5 p.m. on Monday.", 1),
    ("Bring cups, plates, etc. and e.g. Mr. Lee's knives vs. forks!", 1),
    ("1. Boil water.\n2. Add tea.\n3) Wait", 3),
    ("She came in at number 1. Then we left.", 2),
    ("It costs 3.50 in all. Right?", 2),
    ("我喜欢茶。你呢？好！", 3),
    ('"Stop." He did. (Really!) Then… nothing', 5),
    ("Plan B. We tried it.", 2),
    ("no full stop", 1),
    ("", 0),
  ],
)
def test_full_stops_that_end_a_sentence(text, sentences):
  for count, score in ((sentences, 1), (sentences + 1, 0)):
    check = Check("constraints", [{"kind": "sentences", "exactly": count}])
    assert verify(check, text).score == score
