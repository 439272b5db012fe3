"""Prompts: templates, chat turns, length limit, left padding, no truncation."""

import numpy as np
import pytest

from poise_jax.data.prompts import PromptEncoder, limit_lengths
from poise_jax.data.tasks import Example, Task
from poise_jax.models import Tokenizer
from poise_jax.verifiers import Check

PAD = 7


def encode(text):
  return [ord(c) for c in text]


def apply_chat_template(turns):
  return encode("".join(f"<{turn['role']}>{turn['content']}" for turn in turns))


def decode(ids):
  return "".join(chr(i) for i in ids)


# One token a character.
TOKENIZER = Tokenizer(encode, decode, apply_chat_template, eos_ids=(PAD,), pad_id=PAD, vocab_size=0)


def example(question, domain="math"):
  return Example(question, "0", "0", domain, "1+", Check("last_integer", "0"))


def encoder(template="{question}", chat=False, system="", max_length=12):
  return PromptEncoder(TOKENIZER, template, chat, system, max_length)


def test_prompts_are_padded_on_the_left():
  questions = ["1 + 2", "", "123456 + 789"]
  prompts = encoder()([example(q) for q in questions])
  assert prompts.tokens.shape == prompts.mask.shape == (3, 12)
  assert prompts.tokens.dtype == np.int32 and prompts.mask.dtype == bool
  for tokens, mask, question in zip(prompts.tokens, prompts.mask, questions, strict=True):
    assert mask.tolist() == [False] * (12 - len(question)) + [True] * len(question)
    assert decode(tokens[mask]) == question
    assert (tokens[~mask] == PAD).all()


def test_the_template_is_filled_literally():
  special_characters = encoder("{x} {question} %s =", max_length=40)
  assert decode(special_characters.encode(example("1{y}"))) == "{x} 1{y} %s ="
  assert decode(encoder("{question}/{question}").encode(example("1"))) == "1/1"


def test_chat_turns():
  user_only = encoder("say {question}", chat=True, max_length=40)
  assert decode(user_only.encode(example("5"))) == "<user>say 5"
  with_system = encoder("say {question}", chat=True, system="Be brief.", max_length=40)
  assert decode(with_system.encode(example("5"))) == "<system>Be brief.<user>say 5"


def test_a_prompt_that_is_too_long_is_an_error():
  assert len(encoder(max_length=5).encode(example("1 + 2"))) == 5
  with pytest.raises(ValueError, match="5 tokens, more than task.max_prompt_length=4; .*'1 [+] 2'"):
    encoder(max_length=4)([example("1 + 2")])


def test_a_template_without_question_is_an_error():
  with pytest.raises(ValueError, match="task.template='What is it\\?'.*{question}"):
    encoder("What is it?")


def test_a_system_turn_without_chat_is_an_error():
  with pytest.raises(ValueError, match="task.system.*task.chat"):
    encoder(system="Be brief.")


def test_a_template_may_be_named():
  dapo = decode(encoder("dapo", max_length=400).encode(example("What is $1$?")))
  assert dapo.startswith("Solve the following math problem step by step.")
  assert "\n\nWhat is $1$?\n\nRemember" in dapo and dapo.endswith('line after "Answer:".')
  assert r"\boxed{}" in decode(encoder("boxed", max_length=400).encode(example("?")))
  with pytest.raises(ValueError, match="unknown task.template 'dap'; did you mean 'dapo'"):
    encoder("dap")


def test_long_prompts_are_left_out_and_counted():
  task = Task([example("abcde"), example("abc"), example("abcd")], [example("a")], {"repeated": 2})
  limited = limit_lengths(task, encoder(max_length=4), drop_long=True)
  assert [e.question for e in limited.train] == ["abc", "abcd"] and limited.test == task.test
  assert limited.left_out == {"repeated": 2, "math, train: longer than 4 tokens": 1}
  assert limit_lengths(task, encoder(max_length=5), drop_long=True).left_out == {"repeated": 2}


def test_long_prompts_are_an_error_without_drop_long():
  task = Task([example("abcde")], [example("a")])
  with pytest.raises(ValueError, match="5 tokens.*max_prompt_length=4.*task.drop_long.*'abcde'"):
    limit_lengths(task, encoder(max_length=4), drop_long=False)
  with pytest.raises(ValueError, match="5 tokens"):
    limit_lengths(Task(task.test, task.train), encoder(max_length=4), drop_long=False)
  assert limit_lengths(task, encoder(max_length=5), drop_long=False) == task


def test_a_domain_with_long_prompts_only_is_an_error():
  task = Task([example("a"), example("b", "x")], [example("a"), example("abcde", "x")])
  message = "every test prompt of domain x is longer than task.max_prompt_length=4"
  with pytest.raises(ValueError, match=message):
    limit_lengths(task, encoder(max_length=4), drop_long=True)
