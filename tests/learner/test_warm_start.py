"""A warm start computes the tokens of worked answers, not the limit of a response."""

import jax
import numpy as np
import pytest

from poise_jax import models
from poise_jax.data.prompts import PromptEncoder
from poise_jax.data.tasks import Example
from poise_jax.learner import batching, warm_start
from poise_jax.learner.warm_start import WarmStartConfig
from poise_jax.models import Tokenizer
from poise_jax.types import Prompts

MODEL = models.ModelConfig("qwen3", 40, 32, 48, 1, 2, 1, 16, qk_norm=True, tie_word_embeddings=True)
LIMIT, WIDTH, BATCH = 200, 6, 16


def encode(text):
  return [ord(c) - ord("a") + 3 for c in text]


class Encoder(PromptEncoder):
  """Prompts of letters, padded on the left."""

  def __init__(self):
    pass

  tokenizer = Tokenizer(encode, str, list, eos_ids=(1,), pad_id=0, vocab_size=40)

  def __call__(self, examples, width=0):
    tokens = np.zeros((len(examples), WIDTH), np.int32)
    for row, example in zip(tokens, examples, strict=True):
      row[WIDTH - len(example.question) :] = encode(example.question)
    return Prompts(tokens, tokens > 0)


@pytest.fixture
def examples():
  rng = np.random.default_rng(0)
  words = ["".join(rng.choice(list("abcdefgh"), size)) for size in rng.integers(1, 30, 40)]
  return [Example(w[:5], w, worked=w[::-1], domain="", difficulty="", check=None) for w in words]


def test_the_first_loss_is_the_mean_over_the_tokens_of_the_answers(examples, monkeypatch):
  params = models.init(MODEL, jax.random.key(0))
  drawn = np.random.default_rng(7).integers(len(examples), size=BATCH)
  prompts = [encode(examples[i].question) for i in drawn]
  answers = [[*encode(examples[i].worked), 1] for i in drawn]
  tokens = np.zeros((BATCH, 40), np.int32)
  for row, prompt, answer in zip(tokens, prompts, answers, strict=True):
    row[: len(prompt) + len(answer)] = prompt + answer
  logits = models.forward(MODEL, params, tokens, tokens > 0).logits
  log_p, total = np.asarray(jax.nn.log_softmax(logits)), 0.0
  for row, prompt, answer in zip(log_p, prompts, answers, strict=True):
    total -= sum(row[len(prompt) - 1 + t, token] for t, token in enumerate(answer))
  count = sum(map(len, answers))
  made, useful = batching.minibatches, []

  def recorded(*args):
    parts = made(*args)
    useful.append(batching.useful_positions(parts))
    return parts

  monkeypatch.setattr(warm_start, "minibatches", recorded)
  reports = []
  warm_start.warm_start(
    MODEL,
    params,
    Encoder(),
    examples,
    LIMIT,
    WarmStartConfig(steps=1, batch_size=BATCH),
    7,
    lambda step, loss: reports.append((step, loss)),
  )
  ((step, loss),) = reports
  assert step == 1 and loss == pytest.approx(total / count, rel=1e-5)
  padded = (count + sum(map(len, prompts))) / (BATCH * (WIDTH + LIMIT))
  assert useful[0] > 3 * padded
