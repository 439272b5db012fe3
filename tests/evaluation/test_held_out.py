"""Held-out sets: which questions are asked, and in which batches."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from configs import quickstart
from poise_jax import models
from poise_jax.data import tasks
from poise_jax.data.prompts import PromptEncoder
from poise_jax.evaluation.held_out import HELD_OUT, EvalSet, batch_by_length, make_sets
from poise_jax.training import build
from poise_jax.verifiers import verify

CONFIG = quickstart.get_config()
CONFIG.task.update(name="arithmetic", think_end="", train=60, test=10, max_prompt_length=8)
CONFIG.task.arithmetic.update(kinds=("1+", "1-"), careless=0.35)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  path.write_bytes(build.train_tokenizer(tasks.make(CONFIG.task, 0), CONFIG.task.template))
  return models.load_tokenizer(path)


def with_tasks(**sections):
  config = CONFIG.copy_and_resolve_references()
  config.eval.tasks = ConfigDict(sections)
  return config


def test_batches_hold_prompts_of_similar_length():
  lengths = [5, 130, 64, 65, 2, 128, 1]
  batches = batch_by_length(lengths, 3)
  assert batches == [([6, 4, 0], 64), ([2, 3, 5], 128), ([1], 192)]
  assert sorted(index for batch, _ in batches for index in batch) == list(range(7))


def test_without_sections_the_set_is_that_of_the_task(tokenizer):
  (test_set,) = make_sets(CONFIG, tokenizer)
  assert test_set.name == HELD_OUT
  expected = [
    dataclasses.replace(e, check=dataclasses.replace(e.check, question=e.question))
    for e in tasks.make(CONFIG.task, CONFIG.seed).test
  ]
  assert list(test_set.examples) == expected


def test_sets_change_the_fields_they_name(tokenizer):
  sums = dict(arithmetic=dict(kinds=("1+",)))
  differences = dict(arithmetic=dict(kinds=("1-",)), test=4, template="{question}")
  first, second = make_sets(with_tasks(a=sums, b=differences), tokenizer)
  assert (first.name, second.name) == ("a", "b")
  assert (len(first.examples), len(second.examples)) == (10, 4)
  assert {e.difficulty for e in first.examples} == {"1+"}
  assert (first.encoder.template, second.encoder.template) == ("{question} :", "{question}")
  assert second.config["arithmetic"] == {"kinds": ("1-",), "careless": 0.35}
  assert second.config["train"] == 60


def test_sets_know_how_a_thought_ends(tokenizer):
  plain, marked = make_sets(with_tasks(a={"test": 3}, b={"test": 3, "think_end": "="}), tokenizer)
  assert {e.check.think_end for e in plain.examples} == {""}
  assert {e.check.think_end for e in marked.examples} == {"="}
  check, sum_of = marked.examples[0].check, marked.examples[0].answer
  assert verify(check, f"{sum_of}5 = {sum_of}").score == 1
  assert verify(check, f"{sum_of}").status == "unparsable"


def test_left_out_counts_held_out_prompts_only(tokenizer):
  fields = dict(arithmetic=dict(kinds=("1+", "2+")), max_prompt_length=8, drop_long=True)
  (test_set,) = make_sets(with_tasks(short=fields), tokenizer)
  assert len(test_set.examples) == 5
  assert test_set.left_out == {"arithmetic, test: longer than 8 tokens": 5}


@pytest.mark.parametrize(
  "section,message",
  [
    (dict(kinds=("1+",)), "eval.tasks.x.kinds is now eval.tasks.x.arithmetic.kinds"),
    (dict(tests=3), "unknown field of eval.tasks.x 'tests'; did you mean 'test'"),
    (dict(test=0), "test set is empty"),
    (dict(max_prompt_length=3), "a prompt has . tokens"),
  ],
)
def test_invalid_sets_are_an_error(tokenizer, section, message):
  with pytest.raises(ValueError, match=message):
    make_sets(with_tasks(x=section), tokenizer)


def test_a_held_out_question_in_the_training_set_is_an_error(tokenizer):
  task = tasks.make(CONFIG.task, 0)
  encoder = PromptEncoder.from_config(CONFIG.task, tokenizer)
  build.check_held_out(task, (EvalSet("disjoint", task.test, encoder, {}),))
  leaked = EvalSet("leaked", [*task.test, task.train[3]], encoder, {})
  with pytest.raises(ValueError, match="eval.tasks.leaked: 1 of its 11 questions are in the train"):
    build.check_held_out(task, (leaked,))
