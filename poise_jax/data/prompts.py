"""Examples -> Prompts: text, chat template, tokens, left padding."""

from collections.abc import Sequence

import numpy as np

from poise_jax.data.tasks import Example
from poise_jax.data.templates import resolve
from poise_jax.errors import UserError
from poise_jax.types import Prompts


class PromptEncoder:
  """Wraps questions in a template, tokenises and pads them to a fixed length."""

  def __init__(self, tokenizer, template: str, chat: bool, system: str, max_length: int):
    """Args:
    tokenizer: encodes text or chat messages.
    template: contains {question}, or a name of templates.TEMPLATES.
    chat: whether the filled template is the user's turn of a chat, or plain text.
    system: what the chat's system turn says; empty: whatever the chat template does without one.
    max_length: Tp, in tokens.
    """
    if system and not chat:
      raise UserError("task.system is a turn of a chat, but task.chat is off")
    self.tokenizer, self.chat, self.system = tokenizer, chat, system
    self.template = resolve(template)
    self.max_length = max_length

  def text(self, example: Example) -> str:
    """The template with the question in it."""
    return self.template.replace("{question}", example.question)

  def ids(self, example: Example) -> list[int]:
    """Token ids of one prompt, however many."""
    text = self.text(example)
    if not self.chat:
      return list(self.tokenizer.encode(text))
    turns = [("system", self.system)] if self.system else []
    turns = [{"role": role, "content": content} for role, content in [*turns, ("user", text)]]
    return list(self.tokenizer.apply_chat_template(turns))

  @classmethod
  def of(cls, task, tokenizer) -> "PromptEncoder":
    """The encoder that the fields of config.task ask for."""
    return cls(tokenizer, task.template, task.chat, task.system, task.max_prompt_length)

  def encode(self, example: Example) -> list[int]:
    """Token ids of one prompt.

    Raises:
      UserError: it is longer than the limit; a truncated question would be another question.
    """
    ids = self.ids(example)
    if len(ids) > self.max_length:
      raise UserError(
        f"a prompt has {len(ids)} tokens, more than task.max_prompt_length={self.max_length}; "
        f"raise it, or set task.drop_long to leave such prompts out: {self.text(example)[:60]!r}"
      )
    return ids

  def __call__(self, examples: Sequence[Example], width: int = 0) -> Prompts:
    """Prompts of NumPy arrays, [P, width or max_length], padded on the left."""
    shape = (len(examples), width or self.max_length)
    tokens, mask = np.full(shape, self.tokenizer.pad_id, np.int32), np.zeros(shape, bool)
    for i, example in enumerate(examples):
      ids = self.encode(example)
      tokens[i, shape[1] - len(ids) :] = ids
      mask[i, shape[1] - len(ids) :] = True
    return Prompts(tokens=tokens, mask=mask)
