"""Our own scores of reasoning-gym's answers: attacks that the library pays, and honest answers."""

import json

import pytest
import reasoning_gym
from reasoning_gym.arithmetic.calendar_arithmetic import CalendarTask

from poise_jax.verifiers import Check, UnusableError, verify
from poise_jax.verifiers.gym_scores import REFUSED, SCORERS

RECURRING = CalendarTask.RECURRING_EVENT_CALCULATIONS.value


def score(name, entry, answer):
  check = Check("reasoning_gym", {"dataset": name, "entry": entry}, {"extract": "auto"})
  return verify(check, f"<answer>{answer}</answer>").score


def entries(name, **settings):
  return reasoning_gym.create_dataset(name, size=12, seed=3, **settings)


def library(name, entry, answer):
  return reasoning_gym.get_score_answer_fn(name)(answer, entry)


def longer_board(answer):
  return json.dumps([[*row, 1, 0] for row in json.loads(answer)] + [[1]])


ATTACKS = {  # generator -> answers without the work that the library gives full marks
  "complex_arithmetic": [lambda _: "nan", lambda _: "nan+nanj", lambda _: "NaN"],
  "game_of_life_halting": [lambda entry: "False" if entry["answer"] == "True" else "True"],
  "coin_flip": [lambda _: "0"],
  "number_sorting": [
    lambda entry: json.dumps([float("nan")] * len(json.loads(entry["answer"].replace("'", '"')))),
    lambda entry: json.dumps(
      [str(round(float(x))) for x in json.loads(entry["answer"].replace("'", '"'))]
    ),
  ],
  "game_of_life": [lambda entry: longer_board(entry["answer"])],
  "figlet_font": [lambda entry: entry["answer"] + "abcdefghij"],
}


@pytest.mark.parametrize("name", ATTACKS)
def test_answers_without_the_work_earn_nothing(name):
  settings = {"min_word_len": 10, "max_word_len": 12} if name == "figlet_font" else {}
  for attack in ATTACKS[name]:
    paid = 0
    for entry in entries(name, **settings):
      answer = attack(entry)
      if name == "coin_flip" and float(entry["answer"]) < 1e-9:
        continue
      if answer != entry["answer"]:
        paid += library(name, entry, answer) >= 1
        assert score(name, entry, answer) == 0, (answer, entry["answer"])
    assert paid, "the library does not pay for this: no need for a score of our own"


def test_a_date_that_does_not_exist_is_not_any_number():
  entry = {"answer": "-1", "question": "", "metadata": {"task": RECURRING}}
  assert library("calendar_arithmetic", entry, "12") >= 1
  assert [score("calendar_arithmetic", entry, x) for x in ("12", "0", "-1", " -1 ")] == [0, 0, 1, 1]


@pytest.mark.parametrize("name", SCORERS)
def test_honest_answers_are_right(name):
  for entry in entries(name):
    answer = entry["answer"] or entry["metadata"].get("expression")
    if answer is not None and "Integral" not in answer:
      assert score(name, entry, answer) == 1, answer


@pytest.mark.parametrize(
  "name,answer,others,wrong",
  [
    (
      "complex_arithmetic",
      (3.0, -4.0),
      ["3 - 4i", "3-4j", "(3.0-4.0i)"],
      ["3+4i", "3", "", "i", "3*1-4i"],
    ),
    ("complex_arithmetic", (0.0, 1.0), ["i", "0+1i", "1j"], ["1", "-i", "infi"]),
    (
      "coin_flip",
      "0.1171875",
      ["0.1172", "15/128", ".1171875", "+0.1171875", "1.171875E-01"],
      ["0.12", "0", "1e-9", "1/0"],
    ),
    ("coin_flip", "3.051757812e-05", ["1/32768", "0.0000305"], ["0", "0.0000001", "1e99999999"]),
    ("number_sorting", "['-3.5', '2', '10']", ["[-3.5, 2, 10]"], ["[-3, 2, 10]", "{}", "[[]]"]),
    ("game_of_life", "[[0, 1], [1, 0]]", ["[[0,1],[1,0]]"], ["[[0,1],[1,0],[1,1]]", "{}", "x"]),
    ("figlet_font", "WALRUS", ["walrus", "W A L R U S"], ["walruses", ""]),
    ("game_of_life_halting", "False", ["false", " False"], ["True", "Falsely", "no"]),
    ("calendar_arithmetic", "Monday", ["monday"], ["Tuesday", "1"]),
  ],
)
def test_other_forms_of_an_answer(name, answer, others, wrong):
  entry = {"question": "", "answer": str(answer), "metadata": {"result": answer}}
  assert [score(name, entry, text) for text in others] == [1] * len(others)
  assert [score(name, entry, text) for text in wrong] == [0] * len(wrong)


@pytest.mark.parametrize("name", REFUSED)
def test_a_generator_that_cannot_be_a_reward_is_refused(name):
  with pytest.raises(UnusableError, match=f"{name} cannot be a reward: "):
    score(name, entries(name)[0], "P")


def test_the_library_pays_one_plan_for_every_grid_of_boxnet():
  """It tries each colour's box on every square, forth and back: no look at the grid is needed."""
  paid = []
  for entry in entries("boxnet", max_box_num=3):
    squares = [key.split("_") for key in entry["metadata"]["initial_state"]]
    squares.sort(
      key=lambda square: (float(square[0]), float(square[1]) * (-1) ** int(float(square[0])))
    )
    plan = []
    for colour in ("red", "blue", "green", "purple", "orange"):
      for path in (squares, squares[::-1]) * 4:
        for (x, y), (u, v) in zip(path, [*path[1:], path[-1]], strict=True):
          plan.append({f"Agent[{x}, {y}]": f"move(box_{colour}, target_{colour})"})
          plan.append({f"Agent[{x}, {y}]": f"move(box_{colour}, square[{u}, {v}])"})
    paid.append(library("boxnet", entry, json.dumps(plan)))
  assert min(paid) >= 1


def test_the_library_pays_for_a_premise():
  paid = []
  for entry in entries("propositional_logic"):
    premises = entry["metadata"]["premises"]
    paid.append(max(library("propositional_logic", entry, premise) for premise in premises))
  assert min(paid) >= 1
