"""Problems with worked thoughts, each step of which Python checks again."""

import collections
import itertools
import re

import numpy as np
import pytest

from poise_jax.data.tasks import reasoning
from poise_jax.data.tasks.config import ReasoningConfig
from poise_jax.data.tasks.reasoning.mixture import WRITTEN
from poise_jax.data.tasks.reasoning.slips import flawless, slipping
from poise_jax.verifiers import Check, verify
from poise_jax.verifiers.weighted import with_think_end

DOMAINS = reasoning.DOMAINS
CELLS = [(name, level) for name, d in DOMAINS.items() for level in range(1, d.LEVELS + 1)]


def make(train, test, seed=0, think_end="</think>", **options):
  return reasoning.make(ReasoningConfig(**options), think_end, train, test, seed)


@pytest.fixture(scope="module")
def task():
  return make(40 * len(CELLS), 12 * len(CELLS), seed=4)


def value(expression):
  assert re.fullmatch(r"[-+*()\d]+", expression)
  return eval(expression)  # safe: the match above allows digits, operators and parentheses


def equations(name, question, thought):
  """(left, right) of the equations that a thought states; none for words."""
  if name == "expressions":
    return list(itertools.pairwise([question, *thought.split("=")]))
  return [tuple(line.split("=")) for line in thought.split(" ") if "=" in line]


def check_sums(question, thought, answer):
  a, operator, b = re.fullmatch(r"(\d+)([-+])(\d+)", question).groups()
  columns = [re.split(r"[-+]", left) for left, _ in equations("sums", question, thought)]
  assert "".join(x[-1] for x, *_ in reversed(columns)) == a
  assert "".join(y for _, y, *_ in reversed(columns)) == b
  assert int(answer) == value(question)


def check_products(question, thought, answer):
  lines = equations("products", question, thought)
  products = [int(right) for left, right in lines if "*" in left]
  sums = [tuple(map(int, (*left.split("+"), right))) for left, right in lines if "+" in left]
  assert sum(products) == int(answer) == value(question)
  factors = [left.split("*") for left, _ in lines if "*" in left]
  assert all(len(number.rstrip("0")) <= 1 for pair in factors for number in pair)
  totals = [products[0], *(total for *_, total in sums)]
  assert [(a, b) for a, b, _ in sums] == list(zip(totals, products[1:], strict=False))
  assert len(sums) == len(products) - 1 and totals[-1] == int(answer)


def check_expressions(question, thought, answer):
  texts = [question, *thought.split("=")]
  counts = [len(re.findall(r"(?<=[\d)])[-+*]", text)) for text in texts]
  assert counts == list(range(len(texts) - 1, -1, -1))
  assert all(abs(int(number)) <= 99 for text in texts for number in re.findall(r"\d+", text))
  assert texts[-1] == answer and int(answer) == value(question)


def check_search(question, thought, answer):
  numbers, target = question.split("=")
  numbers = numbers.split("?")
  expressions = [
    numbers[0] + "".join(itertools.chain(*zip(signs, numbers[1:], strict=True)))
    for signs in itertools.product("+-", repeat=len(numbers) - 1)
  ]
  assert [e for e in expressions if value(e) == int(target)] == [answer]
  tried = min(expressions.index(answer) + 1, len(expressions) - 1)
  assert [left for left, _ in equations("search", question, thought)] == expressions[:tried]


def check_words(question, thought, answer):
  prefixes = [question[: i + 2] for i in range(len(question) - 1)]
  assert thought.split(" ") == ["".join(sorted(prefix)) for prefix in prefixes]
  assert answer == "".join(sorted(question)) and len(set(answer)) == len(answer)


ORACLES = {
  "sums": check_sums,
  "products": check_products,
  "expressions": check_expressions,
  "search": check_search,
  "words": check_words,
}


def test_worked_thoughts_are_right_step_by_step_and_their_answers_score_one(task):
  for example in (*task.train, *task.test):
    thought, marker, answer = example.worked.partition("</think>")
    assert thought and marker and answer == example.answer
    assert set(thought + answer) <= set(WRITTEN)
    ORACLES[example.domain](example.question, thought, answer)
    for left, right in equations(example.domain, example.question, thought):
      assert value(left) == value(right)
    check = with_think_end(example.check, "</think>")
    assert verify(check, example.worked).score == 1
    assert verify(check, f"</think> {answer} ").score == 1
    assert verify(check, thought).status == "unparsable"
    assert verify(check, f"{example.worked}1").score == 0


def test_every_domain_and_level_has_its_share_of_both_splits(task):
  assert task.domains == tuple(sorted(DOMAINS))
  for split in (task.train, task.test):
    domains = collections.Counter(example.domain for example in split)
    assert max(domains.values()) - min(domains.values()) <= 1
    for name, domain in DOMAINS.items():
      levels = collections.Counter(e.difficulty for e in split if e.domain == name)
      assert set(levels) == {f"{name} {level}" for level in range(1, domain.LEVELS + 1)}
      assert max(levels.values()) - min(levels.values()) <= 1


def test_chosen_levels_have_equal_shares():
  task = make(60, 12, levels={"words": [2, 4], "sums": (3, 3)})
  counts = collections.Counter(example.difficulty for example in task.train)
  assert counts == {"words 2": 10, "words 3": 10, "words 4": 10, "sums 3": 30}


def test_thoughts_grow_with_the_level_and_their_lengths_are_ragged():
  lengths, rng = {}, np.random.default_rng(0)
  for name, level in CELLS:
    domain = DOMAINS[name]
    drawn = (domain.question(rng, level) for _ in range(150))
    lengths[name, level] = [len(domain.think(question, flawless)[0]) for question in drawn]
  medians = {cell: np.median(chars) for cell, chars in lengths.items()}
  for name, domain in DOMAINS.items():
    growth = [medians[name, level] for level in range(1, domain.LEVELS + 1)]
    print()
    for level, median in enumerate(growth, 1):
      print(f"{name} {level}: {median:.0f} / {np.percentile(lengths[name, level], 95):.0f}")
    assert growth == sorted(set(growth))
    assert growth[0] <= 12 and growth[-1] >= 6 * growth[0]
  assert max(max(chars) for chars in lengths.values()) <= 260
  mix = [len(e.worked.partition("</think>")[0]) for e in make(3000, 5).train]
  print(f"\ndefault mix: {np.median(mix):.0f} / {np.percentile(mix, 95):.0f}")
  assert np.percentile(mix, 95) >= 3 * np.median(mix)


class SlipAt:
  """A step that is wrong once, at the given one; counts the steps."""

  def __init__(self, slip=-1):
    self.slip, self.taken = slip, 0

  def __call__(self, right, wrong):
    self.taken += 1
    others = [result for result in wrong if result != right]
    assert others
    return others[self.taken % len(others)] if self.taken - 1 == self.slip else right


@pytest.mark.parametrize("name,level", CELLS)
def test_one_slip_at_any_step_is_carried_on_to_a_wrong_answer(name, level):
  domain, rng = DOMAINS[name], np.random.default_rng(level)
  for _ in range(6):
    question = domain.question(rng, level)
    right_thought, right = domain.think(question, counter := SlipAt())
    assert counter.taken
    for slip in range(counter.taken):
      thought, answer = domain.think(question, SlipAt(slip))
      assert verify(Check(domain.VERIFIER, right), answer).score == 0
      assert thought != right_thought
      false = [
        left for left, right in equations(name, question, thought) if value(left) != value(right)
      ]
      assert len(false) == (name != "words")


@pytest.mark.parametrize("name", DOMAINS)
def test_the_share_of_wrong_answers_is_that_of_independent_slips(name):
  domain, rng = DOMAINS[name], np.random.default_rng(7)
  right, expected = [], []
  for i in range(1500):
    question = domain.question(rng, i % domain.LEVELS + 1)
    _, reference = domain.think(question, counter := SlipAt())
    _, answer = domain.think(question, slipping(rng, 0.1))
    right.append(answer == reference)
    expected.append(0.9**counter.taken)
  assert abs(np.mean(right) - np.mean(expected)) < 0.05  # four standard deviations


def test_slips_of_the_teacher_are_in_the_training_set_alone():
  task = make(1000, 50, slip=0.1)
  worked = [verify(with_think_end(e.check, "</think>"), e.worked).score for e in task.train]
  assert 0.3 < np.mean(worked) < 0.8
  assert not any(e.worked.startswith("</think>") for e in task.train)
  for example in task.test:
    assert verify(example.check, example.worked).score == 1


def test_a_teacher_who_guesses_writes_no_thought():
  task = make(1000, 50, guess=1.0)
  right = collections.defaultdict(list)
  for example in task.train:
    thought, marker, answer = example.worked.partition("</think>")
    assert marker and answer
    if example.difficulty.endswith(" 1"):
      assert thought
      continue
    assert not thought
    assert len(answer) <= len(example.answer) + 3  # it is of the kind of the right one
    right[example.difficulty].append(answer == example.answer)
  assert 0.1 < np.mean(right["sums 2"]) < 0.8 and np.mean(right["words 8"]) < 0.2
  assert all(e.worked.partition("</think>")[0] for e in task.test)


def test_the_share_of_guesses_is_their_probability():
  """The longer a thought would be, the more often the teacher spares it."""
  task = make(6000, 5, guess=0.3, levels={"sums": (1, 4)})
  for level in range(1, 5):
    cell = [e for e in task.train if e.difficulty == f"sums {level}"]
    share = np.mean([e.worked.startswith("</think>") for e in cell])
    assert abs(share - (0.3 ** (1 / (level - 1)) if level > 1 else 0)) < 0.04


def test_splits_are_disjoint_and_held_out_problems_are_unique(task):
  held_out = {example.question for example in task.test}
  assert len(held_out) == len(task.test) == 12 * len(CELLS)
  assert not held_out & {example.question for example in task.train}


def test_problems_depend_on_the_seed_alone():
  a, b, c = (make(90, 30, seed, slip=0.2, guess=0.2) for seed in (5, 5, 6))
  assert (a.train, a.test) == (b.train, b.test)
  assert a.train != c.train and a.test != c.test
  longer = make(150, 30, 5, slip=0.2, guess=0.2)
  assert longer.test == a.test and longer.train[:90] == a.train
  careful = make(90, 30, 5)
  assert [e.question for e in careful.train] == [e.question for e in a.train]


@pytest.mark.parametrize("name,count", [("sums", 155), ("products", 100), ("search", 162)])
def test_a_third_of_a_small_level_is_held_out_at_most(name, count):
  rng = np.random.default_rng(1)
  assert len({DOMAINS[name].question(rng, 1) for _ in range(4000)}) == count
  assert DOMAINS[name].problems(1) == count
  task = make(3000, count // 3, levels={name: (1, 1)})
  assert len({example.question for example in task.train}) == count - count // 3
  with pytest.raises(ValueError, match=f"task.test={count // 3 + 1} .* a third .*, {count // 3};"):
    make(5, count // 3 + 1, levels={name: (1, 1)})


def test_other_levels_give_what_a_small_one_lacks():
  task = make(5, 150, levels={"products": (1, 2), "search": (1, 1)})
  counts = collections.Counter(example.difficulty for example in task.test)
  assert counts["products 1"] == 33 and counts["search 1"] == 54 and counts["products 2"] == 63


@pytest.mark.parametrize("think_end", ["</think>", "<|done|>", "##"])
def test_the_marker_is_that_of_the_task(think_end):
  task = make(20, 10, think_end=think_end, guess=0.5)
  assert all(e.worked.count(think_end) == 1 for e in (*task.train, *task.test))
  for example in task.test:
    assert verify(with_think_end(example.check, think_end), example.worked).score == 1


@pytest.mark.parametrize(
  "options,message",
  [
    (dict(think_end=""), "task.think_end='', .*; set it, for example to '</think>'"),
    (dict(think_end="="), "task.think_end='=', .* must have a character that neither contains"),
    (dict(think_end="so (a)"), r"task.think_end='so \(a\)', .* must have a character"),
    (dict(levels={"summs": (1, 2)}), "levels 'summs'; did you mean 'sums'"),
    (dict(levels={"sums": (1, 7)}), r"levels.sums must be .* 1 and 6, got \(1, 7\)"),
    (dict(levels={"search": (0, 2)}), r"levels.search must be .* 1 and 4, got \(0, 2\)"),
    (dict(levels={"words": (4, 2)}), r"levels.words must be .* got \(4, 2\)"),
    (dict(levels={"words": 3}), r"levels.words must be .* got 3"),
    (dict(levels={"words": (1, 2, 3)}), r"levels.words must be .* got \(1, 2, 3\)"),
    (dict(levels={"words": (1, 2.0)}), r"levels.words must be .* got \(1, 2.0\)"),
    (dict(levels={"words": (True, 2)}), r"levels.words must be .* got \(True, 2\)"),
    (dict(slip=1.5), r"task.reasoning.slip=1.5 must be a probability in \[0, 1\]"),
    (dict(guess=-0.1), r"task.reasoning.guess=-0.1 must be a probability in \[0, 1\]"),
    (dict(guess=float("nan")), "task.reasoning.guess must be a finite number"),
    (dict(test=0), "test set is empty"),
    (dict(train=0), "train set is empty"),
  ],
)
def test_values_that_cannot_work_are_an_error(options, message):
  with pytest.raises(ValueError, match=message):
    make(**{"train": 10, "test": 5, **options})


@pytest.mark.parametrize(
  "name,question,thought,answer",
  [
    ("sums", "347+589", "7+9=16 4+8+1=13 3+5+1=9", "936"),
    ("sums", "95+27", "5+7=12 9+2+1=12", "122"),
    ("sums", "503-478", "13-8=5 10-7-1=2 5-4-1=0", "25"),
    ("products", "20*43", "20*3=60 20*40=800 60+800=860", "860"),
    ("products", "0*6", "0*6=0", "0"),
    ("expressions", "((3-9)*2)-(4-1)", "(-6*2)-(4-1)=-12-(4-1)=-12-3=-15", "-15"),
    ("search", "7?2?4=9", "7+2+4=13 7+2-4=5 7-2+4=9", "7-2+4"),
    ("search", "1?8=-7", "1+8=9", "1-8"),
    ("words", "qbk", "bq bkq", "bkq"),
  ],
)
def test_thoughts_by_hand(name, question, thought, answer):
  assert DOMAINS[name].think(question, flawless) == (thought, answer)
