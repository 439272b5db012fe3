"""Prompts: templates, chat turns, left padding, and no silent truncation."""

import numpy as np
import pytest

from poise_jax.data.prompts import PromptEncoder
from poise_jax.data.tasks import Example
from poise_jax.verifiers import Check


class FakeTokenizer:
  """One token a character; remembers the turns of the last chat."""

  pad_id = 7
  eos_ids = (7,)

  def __init__(self):
    self.turns = None

  def encode(self, text):
    return [ord(c) for c in text]

  def apply_chat_template(self, turns):
    self.turns = turns
    return self.encode("".join(f"<{turn['role']}>{turn['content']}" for turn in turns))


def example(question):
  return Example(question, "0", "0", "arithmetic", "1+", Check("last_integer", "0"))


def encoder(template="{question}", chat=False, system="", max_length=12):
  return PromptEncoder(FakeTokenizer(), template, chat, system, max_length)


def text(ids):
  return "".join(chr(i) for i in ids)


def test_prompts_are_padded_on_the_left():
  questions = ["1 + 2", "", "123456 + 789"]
  prompts = encoder()([example(q) for q in questions])
  assert prompts.tokens.shape == prompts.mask.shape == (3, 12)
  assert prompts.tokens.dtype == np.int32 and prompts.mask.dtype == bool
  for tokens, mask, question in zip(prompts.tokens, prompts.mask, questions, strict=True):
    assert mask.tolist() == [False] * (12 - len(question)) + [True] * len(question)
    assert text(tokens[mask]) == question
    assert (tokens[~mask] == FakeTokenizer.pad_id).all()


def test_the_template_is_filled_literally():
  odd = encoder("{x} {question} %s =", max_length=40)
  assert text(odd.encode(example("1{y}"))) == "{x} 1{y} %s ="
  assert text(encoder("{question}/{question}").encode(example("1"))) == "1/1"


def test_chat_turns():
  plain = encoder("say {question}", chat=True, max_length=40)
  assert text(plain.encode(example("5"))) == "<user>say 5"
  assert plain.tokenizer.turns == [{"role": "user", "content": "say 5"}]
  told = encoder("say {question}", chat=True, system="Be brief.", max_length=40)
  assert text(told.encode(example("5"))) == "<system>Be brief.<user>say 5"
  assert [turn["role"] for turn in told.tokenizer.turns] == ["system", "user"]


def test_a_prompt_that_is_too_long_is_refused():
  assert len(encoder(max_length=5).encode(example("1 + 2"))) == 5
  with pytest.raises(ValueError, match="5 tokens, more than task.max_prompt_length=4; .*'1 [+] 2'"):
    encoder(max_length=4)([example("1 + 2")])


def test_a_template_without_a_place_for_the_question_is_refused():
  with pytest.raises(ValueError, match="task.template='What is it\\?'.*{question}"):
    encoder("What is it?")


def test_a_system_turn_without_a_chat_is_refused():
  with pytest.raises(ValueError, match="task.system.*task.chat"):
    encoder(system="Be brief.")


def test_a_template_may_be_one_that_has_a_name():
  told = text(encoder("dapo", max_length=400).encode(example("What is $1$?")))
  assert told.startswith("Solve the following math problem step by step.")
  assert "\n\nWhat is $1$?\n\nRemember" in told and told.endswith('line after "Answer:".')
  assert r"\boxed{}" in text(encoder("boxed", max_length=400).encode(example("?")))
  with pytest.raises(ValueError, match="task.template 'dap' is unknown; did you mean 'dapo'"):
    encoder("dap")
