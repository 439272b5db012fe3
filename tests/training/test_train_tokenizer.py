"""The tokenizer of models from scratch: characters, and one token for the end of a thought."""

import types

import numpy as np
import pytest
from tiny_run import tiny

from poise_jax.data import tasks
from poise_jax.data.prompts import PromptEncoder
from poise_jax.models.io.tokenizers import load_tokenizer, save_tokenizer
from poise_jax.rollout.features import marker_ends, until_last
from poise_jax.training import build
from poise_jax.verifiers import verify

REASONING = dict(task__name="reasoning", task__max_prompt_length=48, rollout__max_new_tokens=300)


def config(think_end, **changes):
  return tiny(**REASONING, task__think_end=think_end, task__reasoning__guess=0.2, **changes)


@pytest.mark.parametrize(
  "think_end", ["</think>", "<|end of thought|>", " <so>", "[a,  b]", "</t>\n", "##", "§"]
)
def test_the_marker_is_one_token_that_decodes_to_its_text(think_end, tmp_path):
  experiment = build.build(config(think_end))
  (tmp_path / "tokenizer.model").write_bytes(experiment.made_tokenizer)
  (tmp_path / "copy").mkdir()
  save_tokenizer(tmp_path / "tokenizer.model", tmp_path / "copy")
  for tokenizer in (experiment.encoder.tokenizer, load_tokenizer(tmp_path / "copy")):
    (marker,) = tokenizer.encode(think_end)
    assert experiment.rollout.think_end == (marker,) and tokenizer.decode([marker]) == think_end
    encoder = PromptEncoder.from_config(experiment.config.task, tokenizer)
    for example in (*experiment.task.train, *experiment.task.test):
      ids = tokenizer.encode(example.worked)
      thought, _, answer = example.worked.partition(think_end)
      assert len(ids) == len(thought) + 1 + len(answer) and ids.index(marker) == len(thought)
      assert encoder.response(ids) == example.worked
    for example in experiment.task.test:
      assert example.check.think_end == think_end
      response = encoder.response(tokenizer.encode(example.worked))
      assert verify(example.check, response).score == 1
      assert verify(example.check, response.replace(think_end, " ")).status == "unparsable"


def test_the_sampler_finds_the_marker_of_a_worked_answer():
  experiment = build.build(config("</think>"))
  tokenizer = experiment.encoder.tokenizer
  ids = np.array(tokenizer.encode("7+9=16 4+8+1=13</think>136"))
  ends = marker_ends(ids[None], np.ones((1, len(ids)), bool), experiment.rollout.think_end)
  assert np.flatnonzero(ends[0]).tolist() == [15]
  assert until_last(ends, np.ones((1, len(ids)), bool)).sum() == 16


def test_every_character_of_the_default_mixture_has_a_token(tmp_path):
  """A rare one would become an unknown token in worked answers."""
  options = config("</think>", task__train=3000).task
  task = tasks.make(options, 1)
  path = tmp_path / "tokenizer.model"
  path.write_bytes(build.train_tokenizer(task, "{question}:", "</think>"))
  tokenizer = load_tokenizer(path)
  for example in (*task.train, *task.test):
    text = f"{example.question}:{example.worked}"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_characters_of_the_last_of_a_sorted_training_set_have_tokens(tmp_path):
  """Also those of a single example among thousands."""
  questions = ["1+2"] * 30_000 + ["x*y", "ab", "abü"]
  task = types.SimpleNamespace(
    train=[types.SimpleNamespace(question=question, worked="3") for question in questions]
  )
  path = tmp_path / "tokenizer.model"
  path.write_bytes(build.train_tokenizer(task, "{question} :"))
  tokenizer = load_tokenizer(path)
  for question in set(questions):
    assert tokenizer.decode(tokenizer.encode(question)) == question


def test_without_a_marker_the_tokenizer_has_characters_alone(tmp_path):
  task = tasks.make(tiny().task, 0)
  path = tmp_path / "tokenizer.model"
  path.write_bytes(build.train_tokenizer(task, "{question} :"))
  tokenizer = load_tokenizer(path)
  texts = [tokenizer.decode([i]) for i in range(3, tokenizer.vocab_size)]
  assert max(map(len, texts)) == 1
  assert len(tokenizer.encode("1 + 2")) == 6  # a space comes first
