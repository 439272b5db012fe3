"""Memory and FLOPs of a step by arithmetic, for chips that are not compiled for."""

from poise_jax.distributed import sharding
from poise_jax.learner.logprobs import chunk_of
from poise_jax.models.kv_cache import row_bytes
from poise_jax.planning.flops import device_bytes
from poise_jax.planning.memory import ProgramMemory, cache_bytes
from poise_jax.planning.roofline import FlopCount, model_flops
from poise_jax.planning.step import StepShapes, pass_shape, recomputes_logprobs
from poise_jax.rollout import queue, slots
from poise_jax.training.build import StepConfig


def estimated_programs(step: StepConfig, shapes: StepShapes) -> dict[str, ProgramMemory]:
  """Temporary memory: caches or saved activations, the work of one layer, logits."""
  model, tensor = step.model, step.mesh.shape["tensor"]
  shards = sharding.batch_shards(step.mesh)
  itemsize = 2  # bfloat16
  # Numbers per position in the activations of one layer.
  width = (3 * model.intermediate_size + 4 * model.num_attention_heads * model.head_dim) // tensor
  width += 4 * model.hidden_size

  sampler = cache_bytes(step) + _rest_of_sampling(step, width)

  micro, _ = shapes.passes[0]
  positions = micro.positions // shards
  saved = {
    "none": model.num_hidden_layers * width,
    "dots": model.num_hidden_layers * (width - 2 * model.hidden_size),
    "full": model.num_hidden_layers * model.hidden_size,
  }[step.update.remat]
  # The gradient of a pass, before it is added to the others.
  learner = device_bytes(shapes.params) + positions * itemsize * (saved + 3 * width)
  chunk = step.update.logprob_chunk or chunk_of(model.vocab_size // tensor)
  learner += 3 * 4 * chunk * model.vocab_size // tensor
  return {
    "the sampler": ProgramMemory(0, 0, sampler, 0.0),
    f"the update, {pass_shape(micro)}": ProgramMemory(0, 0, learner, 0.0),
  }


def _rest_of_sampling(step: StepConfig, width: int) -> int:
  """Bytes beside the slots' caches; `width`: numbers per position in a layer's activations.

  The caches of the prompts that are prefilled lie beside those of the slots, and while responses
  wait for a slot, those of the prompts before. Compiled for TPUs, a prefill at once holds the
  larger one of caches and activations, and a prefill in chunks the caches in two layouts.
  """
  tensor, shards = step.mesh.shape["tensor"], sharding.batch_shards(step.mesh)
  n, prompt = step.rollout.n, step.config.task.max_prompt_length
  prompts = step.config.rollouts // n // shards
  rows = slots.count(step.rollout.slots, step.config.rollouts, shards)
  count, chunk = queue.batch(prompts, prompt, n, rows), step.rollout.prefill_chunk or prompt
  dtype = step.rollout.cache_dtype or step.config.model.dtype
  caches = row_bytes(step.model, prompt, dtype) * count // tensor
  activations = 2 * count * min(chunk, prompt) * width  # bfloat16
  prefill = 2 * caches + activations if chunk < prompt else max(caches, activations)
  logits = 4 * 4 * rows * step.model.vocab_size // tensor
  return caches * (rows < prompts * n) + max(prefill, logits)


def estimated_flops(step: StepConfig, shapes: StepShapes) -> dict[str, FlopCount]:
  """The model's own FLOPs per chip, plus those that padding and rematerialisation add."""
  needed = model_flops(step, shapes)
  remat = 4 / 3 if step.update.remat == "full" else 1.0
  padding = sum(p.positions for p in shapes.plans) / sum(p.tokens for p in shapes.plans)
  counts = {"the update": FlopCount(needed["the update"] * remat * padding, needed["the update"])}
  if recomputes_logprobs(step, shapes):
    counts["log-probs"] = FlopCount(needed["log-probs"] * padding, needed["log-probs"])
  return counts
