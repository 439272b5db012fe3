"""Examples -> Prompts: text, chat template, tokens, left padding."""

from collections.abc import Sequence

import numpy as np

from poise_jax.tasks import Example
from poise_jax.types import Prompts


class PromptEncoder:
  """Wraps questions in a template, tokenises and pads them to a fixed length."""

  def __init__(self, tokenizer, template: str, chat: bool, system: str, max_length: int):
    """Args:
    tokenizer: encodes text or chat messages.
    template: contains {question}.
    chat: whether the filled template is the user's turn of a chat, or plain text.
    system: what the chat's system turn says; empty: whatever the chat template does without one.
    max_length: Tp, in tokens.
    """
    if "{question}" not in template:
      raise ValueError(f"task.template={template!r} does not contain {{question}}")
    if system and not chat:
      raise ValueError("task.system is a turn of a chat, but task.chat is off")
    self.tokenizer, self.template, self.chat, self.system = tokenizer, template, chat, system
    self.max_length = max_length

  def encode(self, example: Example) -> list[int]:
    """Token ids of one prompt.

    Raises:
      ValueError: it is longer than the limit; a truncated question would be another question.
    """
    text = self.template.replace("{question}", example.question)
    if self.chat:
      turns = [("system", self.system)] if self.system else []
      turns = [{"role": role, "content": content} for role, content in [*turns, ("user", text)]]
      ids = self.tokenizer.apply_chat_template(turns)
    else:
      ids = self.tokenizer.encode(text)
    if len(ids) > self.max_length:
      raise ValueError(
        f"a prompt has {len(ids)} tokens, more than task.max_prompt_length={self.max_length}: "
        f"{text[:60]!r}"
      )
    return list(ids)

  def __call__(self, examples: Sequence[Example]) -> Prompts:
    """Prompts of NumPy arrays, [P, max_length], padded on the left."""
    shape = (len(examples), self.max_length)
    tokens, mask = np.full(shape, self.tokenizer.pad_id, np.int32), np.zeros(shape, bool)
    for i, example in enumerate(examples):
      ids = self.encode(example)
      tokens[i, self.max_length - len(ids) :] = ids
      mask[i, self.max_length - len(ids) :] = True
    return Prompts(tokens=tokens, mask=mask)
