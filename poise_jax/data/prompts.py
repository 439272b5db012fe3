"""From examples to prompts: template, chat template, tokens, length limit, left padding; and from
a response's tokens to its text, with the marker that ends its thought."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.progress import track

from poise_jax.data.tasks import Example, Task
from poise_jax.data.templates import resolve
from poise_jax.errors import UserError
from poise_jax.models.io.tokenizers import Tokenizer
from poise_jax.types import Prompts
from poise_jax.verifiers.thought import END, START
from poise_jax.verifiers.weighted import with_think_end

LEAST_WIDTH = 64  # tokens; a batch of shorter prompts is padded to as many
PROGRESS_FROM = 50_000  # number of prompts from which counting tokens shows a progress bar


class PromptEncoder:
  """Puts questions into a template, tokenizes them and pads them to a fixed length."""

  def __init__(
    self,
    tokenizer: Tokenizer,
    template: str,
    chat: bool,
    system: str,
    max_length: int,
    template_args: Mapping[str, Any] | None = None,
    think_end: str = "",
  ):
    """Args:
      tokenizer: encodes text or chat messages.
      template: text with {question}, or a name of templates.TEMPLATES.
      chat: whether the filled template is the user turn of a chat, or plain text.
      system: system turn of the chat; empty: the chat template's default.
      max_length: Tp, tokens.
      template_args: arguments of the chat template.
      think_end: marker that ends the thought of a response; empty: none, or that of a prompt that
        opens one (see `think_end`).

    Raises:
      UserError: there is a system turn or a template argument but no chat, the template is unknown,
        or no response can contain the marker.
    """
    if system and not chat:
      raise UserError("task.system is the system turn of a chat, but task.chat is off")
    if template_args and not chat:
      raise UserError("task.template_args are arguments of a chat template, but task.chat is off")
    self.tokenizer, self.chat, self.system = tokenizer, chat, system
    self.template_args, self._marker = dict(template_args or {}), think_end
    special = tokenizer.special_ids
    self._kept = {special[m]: m for m in (START, END, think_end) if m in special}
    if think_end not in self.response(tokenizer.encode(think_end) if think_end else []):
      raise UserError(
        f"task.think_end={think_end!r} occurs in no response: the tokenizer makes other text of it"
      )
    self.template = resolve(template)
    self.max_length = max_length

  @classmethod
  def from_config(cls, task: ConfigDict, tokenizer: Tokenizer) -> "PromptEncoder":
    """The encoder for the fields of config.task."""
    return cls(
      tokenizer,
      task.template,
      task.chat,
      task.system,
      task.max_prompt_length,
      task.template_args.to_dict(),
      task.think_end,
    )

  def text(self, example: Example) -> str:
    """The template with the question in it."""
    return self.template.replace("{question}", example.question)

  def ids(self, example: Example) -> list[int]:
    """Token ids of one prompt, of any length.

    Raises:
      UserError: there are none.
    """
    text = self.text(example)
    if self.chat:
      return self._chat_ids(text, example.turns)
    ids = [*self.tokenizer.bos_ids, *self.tokenizer.encode(text)]
    if not ids:
      raise UserError(
        f"a prompt of domain {example.domain!r} has no tokens: its question is "
        f"{example.question!r}, and the template adds nothing; leave the example out, or set "
        "task.template"
      )
    return ids

  def _chat_ids(self, text, turns=()):
    """Token ids of a chat; a system turn in `turns` replaces that of the config."""
    if self.system and not any(role == "system" for role, _ in turns):
      turns = (("system", self.system), *turns)
    turns = [{"role": role, "content": content} for role, content in (*turns, ("user", text))]
    return list(self.tokenizer.apply_chat_template(turns, **self.template_args))

  @functools.cached_property
  def _chat_end(self):
    """The end of every prompt of a chat, after the user's turn."""
    return self.response(self._chat_ids("?")[-64:])

  def think_end(self, example: Example) -> str:
    """The marker that must end the thought of a response to this prompt; "" if none must.

    It is task.think_end or, without one, </think> for a prompt that ends with <think>. A prompt
    that ends with the marker has ended the thought itself.
    """
    end = (self._chat_end if self.chat else self.text(example)).rstrip()
    marker = self._marker or (END if end.endswith(START) else "")
    return "" if marker and end.endswith(marker) else marker

  def response(self, ids: Sequence[int]) -> str:
    """The text of a response without special tokens, but with the markers of its thought."""
    return self._decoded(ids, self._kept)

  def prompt(self, example: Example) -> str:
    """The text of a prompt as the model reads it: with its chat template and special tokens."""
    special = {token: text for text, token in self.tokenizer.special_ids.items()}
    return self._decoded(self.ids(example), special)

  def _decoded(self, ids, kept):
    """The text of tokens, and of special tokens only those in `kept`, {id: text}."""
    texts, start = [], 0
    for i, token in enumerate(ids):
      if token in kept:
        texts += [self.tokenizer.decode(ids[start:i]), kept[token]]
        start = i + 1
    return "".join([*texts, self.tokenizer.decode(ids[start:])])

  def encode(self, example: Example) -> list[int]:
    """Token ids of one prompt.

    Raises:
      UserError: the prompt is longer than the limit; truncation would change the question.
    """
    ids = self.ids(example)
    if len(ids) > self.max_length:
      raise UserError(
        f"a prompt has {len(ids)} tokens, more than task.max_prompt_length={self.max_length}; "
        "raise it, or set task.drop_long to leave longer prompts out: "
        f"{self.text(example)[:60]!r}"
      )
    return ids

  def width(self, examples: Sequence[Example]) -> int:
    """Tokens to pad these prompts to: the longest one's, rounded up to a power of two from
    LEAST_WIDTH on, so that few programs are compiled, and at most max_length."""
    longest = max(len(self.encode(example)) for example in examples)
    return min(max(LEAST_WIDTH, 1 << (longest - 1).bit_length()), self.max_length)

  def __call__(self, examples: Sequence[Example], width: int = 0) -> Prompts:
    """Prompts as NumPy arrays [P, width], padded on the left; width 0: max_length."""
    shape = (len(examples), width or self.max_length)
    tokens, mask = np.full(shape, self.tokenizer.pad_id, np.int32), np.zeros(shape, bool)
    for i, example in enumerate(examples):
      ids = self.encode(example)
      tokens[i, shape[1] - len(ids) :] = ids
      mask[i, shape[1] - len(ids) :] = True
    return Prompts(tokens=tokens, mask=mask)


def limit_lengths(task: Task, encoder: PromptEncoder, drop_long: bool) -> Task:
  """The task with every prompt within the encoder's limit.

  Args:
    task: examples of any length.
    encoder: counts the tokens; holds the limit.
    drop_long: leave longer prompts out and count them in task.left_out.

  Raises:
    UserError: a prompt is too long and drop_long is off, or every prompt of a domain in one split
      is too long.
  """
  sets, left_out = {}, dict(task.left_out)
  for split, examples in (("test", task.test), ("train", task.train)):
    quick = len(examples) < PROGRESS_FROM
    tracked = track(examples, f"measuring {split} prompts", disable=quick, transient=True)
    if not drop_long:
      for example in tracked:
        encoder.encode(example)
      continue
    sets[split] = [e for e in tracked if len(encoder.ids(e)) <= encoder.max_length]
    short_enough = Counter(example.domain for example in sets[split])
    for domain, count in sorted(Counter(example.domain for example in examples).items()):
      if not short_enough[domain]:
        shortest = min(len(encoder.ids(e)) for e in examples if e.domain == domain)
        raise UserError(
          f"every {split} prompt of domain {domain} is longer than "
          f"task.max_prompt_length={encoder.max_length}: raise it, the shortest has {shortest} "
          "tokens"
        )
      if short_enough[domain] < count:
        reason = f"{domain}, {split}: longer than {encoder.max_length} tokens"
        left_out[reason] = count - short_enough[domain]
  return dataclasses.replace(task, **sets, left_out=left_out)


def mark_thoughts(task: Task, encoder: PromptEncoder) -> Task:
  """The task, whose checks know the question and the marker that ends the thought of a response."""

  def marked(example):
    check = dataclasses.replace(example.check, question=example.asked)
    if think_end := encoder.think_end(example):
      check = with_think_end(check, think_end)
    return dataclasses.replace(example, check=check)

  sets = {split: [marked(e) for e in getattr(task, split)] for split in ("train", "test")}
  return dataclasses.replace(task, **sets)
