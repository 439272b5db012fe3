"""FLOPs and bytes that a model itself needs: by hand, and against its compiled program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import MODEL

from poise_jax import models
from poise_jax.learner import update
from poise_jax.learner.batching import Batch
from poise_jax.learner.config import UpdateConfig
from poise_jax.learner.plan import Lengths, plan
from poise_jax.planning import flops, hlo
from poise_jax.types import Prompts


def test_parameters_are_those_that_multiply_tokens():
  params = models.abstract_params(dataclasses.replace(MODEL, tie_word_embeddings=False))
  leaves = jax.tree_util.tree_leaves_with_path(params["layers"])
  layers = sum(x.size for path, x in leaves if "kernel" in jax.tree_util.keystr(path))
  assert flops.matmul_parameters(MODEL) == (layers, params["lm_head"]["kernel"].size)


def test_flops_by_hand():
  model = models.ModelConfig("llama", 10, 4, 6, 1, 2, 1, 2)
  layer = 4 * (4 + 2 + 2 + 4) + 3 * 4 * 6  # q, k, v, o and the MLP
  assert flops.matmul_parameters(model) == (layer, 40)
  pairs = 1 + 2 + 3  # three positions
  assert flops.forward_flops(model, 3, 2) == 2 * (3 * layer + 2 * 40) + 4 * pairs * 4
  prefill = flops.forward_flops(model, 2, 1)
  assert prefill + flops.forward_flops(model, 3, 1, start=2) == flops.forward_flops(model, 3, 2)
  assert flops.training_flops(model, 1, 1, 2) == 3 * flops.forward_flops(model, 3, 2)
  prompt = flops.forward_flops(model, 1, 0)
  response = flops.forward_flops(model, 3, 2) - prompt
  assert flops.training_flops(model, 1, 5, 2) == 3 * (prompt + 5 * response)
  assert flops.sampling_flops(model, 1, 2, 2) == flops.forward_flops(model, 1, 1) + 2 * response


def test_decoding_reads_an_untied_embedding_at_a_few_rows_only():
  params = {name: jax.ShapeDtypeStruct((4, 8), jnp.bfloat16) for name in ("embed_tokens", "layers")}
  assert flops.decode_bytes(params, tied=True, cache_bytes=5.0) == 2 * 64 + 5
  assert flops.decode_bytes(params, tied=False, cache_bytes=5.0) == 64 + 5


def test_flops_of_a_forward_pass_are_those_of_its_program(optimized):
  def logits(params, tokens):
    hidden, _ = models.hidden_states(MODEL, params, models.Rows(tokens, tokens >= 0))
    return hidden @ models.unembedding(MODEL, params)

  shapes = models.abstract_params(MODEL), jax.ShapeDtypeStruct((4, 32), jnp.int32)
  compiled = jax.jit(logits).lower(*shapes).compile()
  needed = 4 * flops.forward_flops(MODEL, 32, 32)
  assert needed < hlo.Program(compiled.as_text()).flops() < 1.05 * needed
  # XLA's analysis counts one of the three layers: the reason to multiply by trip counts.
  assert compiled.cost_analysis()["flops"] < 0.6 * needed


@pytest.mark.parametrize("n", [1, 2])
def test_rematerialised_training_needs_up_to_a_third_more(n, optimized):
  config = UpdateConfig(minibatch_size=4, microbatch_size=2, remat="full", logprob_chunk=32)
  length, rows = 64, 4 // n

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct((*shape, length), dtype)

  names = ("advantages", "old_logprobs", "sampler_logprobs", "weights")
  batch = Batch(
    prompts=Prompts(array(jnp.int32, rows), array(bool, rows)),
    group=np.arange(4) // n,
    tokens=array(jnp.int32, 4),
    mask=array(bool, 4),
    fields={name: array(jnp.float32, 4) for name in names},
  )
  full = Lengths(np.full(4, length), np.full(4, length), batch.group, (length, length))
  micros = plan(full, config.microbatch_size, 1).micro_batches
  assert {micro.responses for micro in micros} == {n}
  params = models.abstract_params(MODEL)
  arguments = MODEL, config, params, params, batch, micros[0]
  compiled = update.microbatch_gradient.lower(*arguments).compile()
  program = hlo.Program(compiled.as_text())
  needed = rows * flops.training_flops(MODEL, length, n, length)
  ratio = len(micros) * program.flops() / needed
  # A fourth forward product for three, except for the last one of each layer, which the backward
  # pass does not need; in addition scores above the diagonal, and logits of packed prompts.
  assert 1.25 < ratio < 1.4
  trip_counts = {program.trip_count(loop) for _, loop in program.loops()}
  assert 3 in trip_counts  # layers


@pytest.mark.parametrize("length,start", [(9, 0), (9, 7), (3, 0), (4, 2)])
def test_a_window_bounds_the_pairs_of_attention(length, start):
  """Counted one by one: one layer with a window of 4 keys, and one without."""
  kinds = ("sliding_attention", "full_attention")
  sizes = dict(num_hidden_layers=2, layer_types=kinds, sliding_window=4)
  model = dataclasses.replace(MODEL, **sizes)
  layers, _ = flops.matmul_parameters(model)
  pairs = sum(min(t + 1, 4) + t + 1 for t in range(start, length))
  width = model.num_attention_heads * model.head_dim
  expected = 2 * layers * (length - start) + 4 * width * pairs
  assert flops.forward_flops(model, length, 0, start) == expected
