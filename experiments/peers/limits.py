"""Lengths of responses that peers are made to have; for environments with torch alone."""

import torch
from transformers import LogitsProcessor


class Limits(LogitsProcessor):
  """Lets every response end with its EOS at a given length, and not earlier."""

  def __init__(self, limits, prompt, eos):
    """
    Args:
      limits: tokens of the response of each row, with its EOS.
      prompt: tokens of the prompt, with its padding.
      eos: id of the end-of-sequence token.
    """
    self.limits, self.prompt, self.eos = torch.tensor(limits), prompt, eos

  def __call__(self, input_ids, scores):
    """Scores of the next token [rows, V]."""
    last = input_ids.shape[1] - self.prompt + 1 >= self.limits
    scores = scores.masked_fill(last[:, None], -torch.inf)
    scores[:, self.eos] = torch.where(last, 0.0, -torch.inf)
    return scores
