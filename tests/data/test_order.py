"""The order of examples: epochs, positions, processes; what is left out; batches by length."""

import itertools
import json

import pytest

from poise_jax.data import order as data
from poise_jax.data.prompts import PromptEncoder
from poise_jax.data.tasks import Example, Task
from poise_jax.verifiers import Check


class Letters:
  """One token a character."""

  pad_id = 0

  @staticmethod
  def encode(text):
    return [ord(c) for c in text]


def example(question, domain="math"):
  return Example(question, "0", "0", domain, "easy", Check("last_integer", "0"))


def encoder(limit):
  return PromptEncoder(Letters(), "{question}", False, "", limit)


def elements(stream, position, count):
  return [int(stream[position + i]) for i in range(count)]


def test_every_epoch_has_every_example_once_in_another_order():
  stream = data.order(10, seed=3)
  epochs = [elements(stream, 10 * i, 10) for i in range(5)]
  assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
  assert all(a != b for a, b in itertools.combinations(epochs, 2))
  assert elements(data.order(10, seed=4), 0, 10) != epochs[0]


def test_a_position_resumes_bit_for_bit_across_an_epochs_boundary():
  whole = elements(data.order(10, seed=3), 0, 40)
  for position in (0, 4, 10, 17, 33):  # batches of 7: most of them cross one
    assert elements(data.order(10, seed=3), position, 7) == whole[position : position + 7]


def test_a_run_goes_on_with_the_same_data_alone(tmp_path):
  task = Task([example("a"), example("b")], [example("c")], {"repeated": 3})
  for _ in range(2):
    data.remember(task, tmp_path)
  kept = json.loads((tmp_path / "data.json").read_text())
  assert (kept["train"], kept["test"], kept["left_out"]) == (2, 1, {"repeated": 3})
  for other in (Task(task.train[::-1], task.test), Task(task.train, [example("d")])):
    with pytest.raises(ValueError, match=r"began with \(2 [+] 1 examples.*2 [+] 1 now"):
      data.remember(other, tmp_path)


def test_long_prompts_are_left_out_and_counted():
  task = Task([example("abcde"), example("abc"), example("abcd")], [example("a")], {"so": 2})
  kept = data.fit(task, encoder(4), drop_long=True)
  assert [e.question for e in kept.train] == ["abc", "abcd"] and kept.test == task.test
  assert kept.left_out == {"so": 2, "math, train: longer than 4 tokens": 1}
  assert data.fit(task, encoder(5), drop_long=True).left_out == {"so": 2}


def test_long_prompts_are_refused_without_the_option():
  task = Task([example("abcde")], [example("a")])
  with pytest.raises(ValueError, match="5 tokens.*max_prompt_length=4.*task.drop_long.*'abcde'"):
    data.fit(task, encoder(4), drop_long=False)
  with pytest.raises(ValueError, match="5 tokens"):
    data.fit(Task(task.test, task.train), encoder(4), drop_long=False)
  assert data.fit(task, encoder(5), drop_long=False) == task


def test_a_domain_of_long_prompts_alone_is_refused():
  task = Task([example("a"), example("b", "x")], [example("a"), example("abcde", "x")])
  message = "every test prompt of domain x is longer than task.max_prompt_length=4"
  with pytest.raises(ValueError, match=message):
    data.fit(task, encoder(4), drop_long=True)


def test_the_summary_counts_domains_and_what_was_left_out():
  task = Task([example("a", "x"), example("b", "y"), example("c", "x")], [example("d", "y")])
  assert data.summary(task).splitlines() == [
    "3 training examples (x 2, y 1)",
    "1 held-out examples (x 0, y 1)",
  ]
  one = Task([example("a")], [example("b")], {"repeated": 3})
  assert data.summary(one).splitlines()[0] == "1 training examples"
  assert data.summary(one).splitlines()[-1] == "left out: 3 (repeated)"


def test_batches_of_an_evaluation_hold_prompts_of_similar_length():
  lengths = [5, 130, 64, 65, 2, 128, 1]
  batches = data.by_length(lengths, 3)
  assert batches == [([6, 4, 0], 64), ([2, 3, 5], 128), ([1], 192)]
  assert sorted(place for batch, _ in batches for place in batch) == list(range(7))
  prompts = encoder(200)([example("a" * 60)], width=batches[0][1])
  assert prompts.tokens.shape == (1, 64) and prompts.mask.sum() == 60
