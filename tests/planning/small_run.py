"""A model and a config small enough to compile in a moment, with a complete model.shape."""

from tiny_run import tiny

from poise_jax import models

SHAPE = dict(
  model_type="qwen3",
  vocab_size=512,
  hidden_size=256,
  intermediate_size=512,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=64,
  tie_word_embeddings=True,
  qk_norm=True,
)
MODEL = models.ModelConfig(**SHAPE)


def small(algorithm="poise", **changes):
  """The tiny run with this model; a change of `a__b` sets a.b."""
  config = tiny(algorithm, **changes)
  config.model.shape = SHAPE
  config.train.minibatch_size = config.train.microbatch_size = config.eval_batch = config.rollouts
  return config
