"""Prompts: templates, chat turns, length limit, left padding, no truncation."""

import dataclasses

import numpy as np
import pytest

from poise_jax.data.prompts import PromptEncoder, limit_lengths, mark_thoughts
from poise_jax.data.tasks import Example, Task
from poise_jax.errors import UserError
from poise_jax.models import Tokenizer
from poise_jax.verifiers import Check, verify

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
  questions = ["1 + 2", "7", "123456 + 789"]
  prompts = encoder()([example(q) for q in questions])
  assert prompts.tokens.shape == prompts.mask.shape == (3, 12)
  assert prompts.tokens.dtype == np.int32 and prompts.mask.dtype == bool
  for tokens, mask, question in zip(prompts.tokens, prompts.mask, questions, strict=True):
    assert mask.tolist() == [False] * (12 - len(question)) + [True] * len(question)
    assert decode(tokens[mask]) == question
    assert (tokens[~mask] == PAD).all()


@pytest.mark.parametrize(
  "lengths,limit,expected",
  [
    ([3, 1], 300, 64),
    ([64], 300, 64),
    ([5, 65], 300, 128),
    ([200], 300, 256),
    ([257, 2], 300, 300),
  ],
)
def test_widths_are_few_and_at_least_the_longest_prompts(lengths, limit, expected):
  assert encoder(max_length=limit).width([example("1" * n) for n in lengths]) == expected


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


def test_a_prompt_without_tokens_is_an_error():
  with pytest.raises(UserError, match="domain 'sums' has no tokens: its question is ''"):
    encoder().encode(example("", domain="sums"))


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
  task = Task(
    [example("a"), example("b", "x")],
    [example("a"), example("abcdefg", "x"), example("abcde", "x")],
  )
  message = "every test prompt of domain x is longer than task.max_prompt_length=4: .* has 5 tokens"
  with pytest.raises(ValueError, match=message):
    limit_lengths(task, encoder(max_length=4), drop_long=True)


# The end of the thought, and arguments of the chat template.


def chat_tokenizer(end, special=()):
  """One token a character and one a special token; a chat template with `end` after the turns."""

  def encode(text):
    ids = []
    while text:
      marker = next((m for m in special if text.startswith(m)), text[0])
      ids.append(1000 + special.index(marker) if marker in special else ord(marker))
      text = text[len(marker) :]
    return ids

  def chat(turns, thinking=True):
    return encode("".join(turn["content"] for turn in turns) + (end if thinking else "plain"))

  return Tokenizer(
    encode,
    lambda ids: "".join(chr(i) for i in ids if i < 1000),
    chat,
    eos_ids=(PAD,),
    pad_id=PAD,
    vocab_size=0,
    special_ids={marker: 1000 + i for i, marker in enumerate(special)},
  )


@pytest.mark.parametrize("special", [(), ("<think>", "</think>", "[/THINK]")])
@pytest.mark.parametrize(
  "end,configured,expected",
  [
    ("assistant:", "", ""),
    ("assistant:", "</think>", "</think>"),
    ("assistant:<think>", "", "</think>"),
    ("assistant:<think>\n\n", "", "</think>"),
    ("assistant:<think>\n", "[/THINK]", "[/THINK]"),
    ("assistant:<think> no", "", ""),
    ("<think>\n\n</think>\n\n", "", ""),
    ("<think>\n\n</think>\n\n", "</think>", ""),  # the prompt has ended the thought
    ("<think>\n\n</think>\n\n", "[/THINK]", "[/THINK]"),
  ],
)
def test_the_marker_that_a_response_needs(end, configured, expected, special):
  chat = PromptEncoder(chat_tokenizer(end, special), "{question}", True, "", 99, None, configured)
  assert chat.think_end(example("Is <think> a tag? <think>")) == expected
  plain = PromptEncoder(chat_tokenizer("", special), "Q{question}" + end, False, "", 99, None)
  assert plain.think_end(example("1")) == ("</think>" if end.strip().endswith("<think>") else "")


@pytest.mark.parametrize(
  "system,turns,expected",
  [
    ("", (), "<user>5 + 5"),
    ("S", (), "<system>S<user>5 + 5"),
    ("S", (("user", "a"), ("assistant", "b")), "<system>S<user>a<assistant>b<user>5 + 5"),
    ("S", (("system", "own"),), "<system>own<user>5 + 5"),  # the row's own system turn is kept
    ("", (("system", "own"), ("user", "a"), ("assistant", "b")), None),
  ],
)
def test_the_turns_of_an_example_come_first(system, turns, expected):
  asked = dataclasses.replace(example("5 + 5"), turns=turns)
  chat = encoder(chat=True, system=system, max_length=99)
  assert decode(chat.ids(asked)) == (expected or "<system>own<user>a<assistant>b<user>5 + 5")
  assert chat.prompt(asked) == decode(chat.ids(asked))


def test_the_text_of_a_prompt_has_its_special_tokens():
  tokenizer = chat_tokenizer("<|im_start|>assistant", ("<|im_start|>", "<think>"))
  chat = PromptEncoder(tokenizer, "{question} <think>", True, "", 99)
  assert chat.prompt(example("5")) == "5 <think><|im_start|>assistant"


def test_a_question_may_open_the_thought():
  plain = encoder("{question}", max_length=99)
  assert [plain.think_end(example(q)) for q in ("2 + 2\n<think>\n", "2 + 2")] == ["</think>", ""]


def test_a_response_keeps_the_markers_of_its_thought():
  tokenizer = chat_tokenizer("", ("<think>", "</think>", "[/THINK]", "<|end|>"))
  marked = PromptEncoder(tokenizer, "{question}", True, "", 99, None, "[/THINK]")
  ids = tokenizer.encode("<think>a</think>b[/THINK]c<|end|>")
  assert marked.response(ids) == "<think>a</think>b[/THINK]c"
  unmarked = PromptEncoder(tokenizer, "{question}", True, "", 99)
  assert unmarked.response(ids) == "<think>a</think>bc"
  assert unmarked.response([]) == ""


def test_a_marker_that_no_response_can_contain_is_an_error():
  tokenizer = chat_tokenizer("")
  tokenizer = dataclasses.replace(tokenizer, decode=lambda ids: "?" * len(ids))
  with pytest.raises(UserError, match="task.think_end='</t>' occurs in no response"):
    PromptEncoder(tokenizer, "{question}", False, "", 99, None, "</t>")


def test_the_checks_of_a_task_know_the_marker():
  weighted = Check("weighted", {"a": (1.0, Check("math", "5"))})
  task = Task(
    [example("1<think>"), dataclasses.replace(example("2<think>"), check=weighted)], [example("3")]
  )
  marked = mark_thoughts(task, encoder(max_length=99))
  assert [e.check.think_end for e in (*marked.train, *marked.test)] == ["</think>"] * 2 + [""]
  assert marked.train[1].check.reference["a"][1].think_end == "</think>"
  assert verify(marked.train[0].check, "0").status == "unparsable"
  assert verify(marked.train[0].check, "1</think>0").score == 1
  assert verify(marked.train[1].check, "so 5").status == "unparsable"
  assert verify(marked.test[0].check, "0").score == 1


def test_arguments_of_the_chat_template():
  for arguments, end in (
    ({}, "thought:"),
    ({"thinking": True}, "thought:"),
    ({"thinking": 0}, "plain"),
  ):
    chat = PromptEncoder(chat_tokenizer("thought:"), "{question}", True, "", 99, arguments)
    assert decode(chat.ids(example("5"))) == "5" + end
  opens = chat_tokenizer("<think>")
  assert PromptEncoder(opens, "{question}", True, "", 99, {"thinking": False}).think_end(None) == ""
  with pytest.raises(UserError, match="template_args .*but task.chat is off"):
    PromptEncoder(opens, "{question}", False, "", 99, {"thinking": False})
