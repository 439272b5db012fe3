"""Reward functions of the user's own: where they are found, what they get, what they may return."""

import pytest

from poise_jax.own_functions import source_of
from poise_jax.verifiers import Check, UnusableError, load, verify
from poise_jax.verifiers.pool import Pool
from poise_jax.verifiers.pool.messages import verdict_from_data, verdict_to_data

SOURCE = """
from helper_beside import WORTH

def first_two(expected, text):
  return float(expected == text)

def by_name(question, response, level, reference):
  return (question, response, level, reference) == ("6 x 7?", "42", "hard", 42)

def some(reference, response, *, level="none"):
  return len(level) / 10

def everything(reference, response, **others):
  return float(sorted(others) == ["answer", "level", "limit", "question"])

def option_first(reference, response, level, limit):
  return limit / 10

def same_name(response, answer):
  return float((response, answer) == (42, "42"))

def points(reference, response):
  return float(response)
"""
ROW = {"answer": 42, "level": "hard", "question": "the row's own", "response": "no", "reference": 0}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  folder = tmp_path_factory.mktemp("far from every import path")
  (folder / "rewards.py").write_text(SOURCE.replace("from helper_beside import WORTH", ""))
  return folder / "rewards.py"


@pytest.mark.parametrize(
  "function,options,score",
  [
    ("first_two", {}, 0.0),  # "42" is not 42
    ("by_name", {}, 1.0),
    ("some", {}, 0.4),
    ("some", {"level": "a"}, 0.1),  # an option replaces a column
    ("everything", {"limit": 3}, 1.0),
    ("option_first", {"limit": 3}, 0.3),
    ("points", {}, 42.0),
  ],
)
def test_a_function_gets_what_it_names(path, function, options, score):
  check = Check(f"{path}:{function}", 42, options, question="6 x 7?", row=ROW)
  assert verify(check, "42").score == pytest.approx(score)


def test_first_parameters_may_have_the_names_of_columns(path):
  check = Check(f"{path}:same_name", 42, row={"answer": 7, "response": 8})
  assert verify(check, "42").score == 1.0


def test_files_are_found_from_the_folder_of_the_command(path, monkeypatch):
  monkeypatch.chdir(path.parent)
  assert load("rewards.py:points")(0, "3") == 3.0
  assert source_of("rewards.py:points").samefile(path)
  assert source_of("user_rewards:odd").name == "user_rewards.py"
  assert source_of("no_such_module_anywhere:odd") is None
  with pytest.raises(UnusableError, match="there is no file elsewhere/rewards.py in "):
    load("elsewhere/rewards.py:points")
  with pytest.raises(UnusableError, match="'rewards.py:absent': rewards.py has no function 'a"):
    load("rewards.py:absent")


@pytest.mark.parametrize(
  "source,message",
  [
    ("def score(reference, response)\n  return 1\n", "SyntaxError: expected ':' .*, line 1"),
    ("THRESHOLD = 1 / 0\n", "ZeroDivisionError: division by zero$"),
    ("import no_such_library\n", "No module named 'no_such_library'; install its package"),
    ("from math import sqrt\n", "has no function 'scor'; it defines none$"),
    ("def other(a, b): ...\ndef score(a, b): ...\n", "no function 'scor'.* are score, other$"),
  ],
)
def test_a_file_that_gives_no_function_is_told_why(tmp_path, source, message):
  (tmp_path / "mine.py").write_text(source)
  with pytest.raises(UnusableError, match=f"verifier '.*mine.py:scor': .*{message}"):
    load(f"{tmp_path}/mine.py:scor")


def test_rewards_may_be_any_finite_number(path):
  with Pool(1, 20.0) as pool:
    texts = ["-2.5", "0.25", "7", "nan", "inf"]
    verdicts = pool.score([Check(f"{path}:points", None)] * 5, texts)
  assert [v.score for v in verdicts] == [-2.5, 0.25, 7.0, 0.0, 0.0]
  assert [v.status for v in verdicts] == ["ok", "ok", "ok", "crashed", "crashed"]
  with pytest.raises(ValueError, match="not a verdict"):
    verdict_from_data({**verdict_to_data(verdicts[0]), "score": float("nan")})


def test_weighted_rewards_are_not_cut_off(path):
  parts = {"points": (0.5, Check(f"{path}:points", None)), "exact": (0.5, Check("exact", "5"))}
  assert verify(Check("weighted", parts), "5").score == 3.0
