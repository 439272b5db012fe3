"""Memory and FLOPs of a step by arithmetic, for chips that are not compiled for."""

from poise_jax.distributed import sharding
from poise_jax.learner.losses import chunk_of
from poise_jax.planning.flops import device_bytes
from poise_jax.planning.memory import ProgramMemory, cache_bytes
from poise_jax.planning.roofline import FlopCount, model_flops
from poise_jax.planning.step import StepShapes, recomputes_logprobs, samples_per_pass
from poise_jax.training.train import Programs


def estimated_programs(run: Programs, shapes: StepShapes) -> dict[str, ProgramMemory]:
  """Temporary memory: caches or saved activations, the work of one layer, logits."""
  model, tensor = run.model, run.mesh.shape["tensor"]
  shards = sharding.batch_shards(run.mesh)
  prompt, response = run.config.task.max_prompt_length, run.rollout.max_new_tokens
  itemsize = 2  # bfloat16
  # Numbers per position in the activations of one layer.
  width = (3 * model.intermediate_size + 4 * model.num_attention_heads * model.head_dim) // tensor
  width += 4 * model.hidden_size

  prompts = run.config.rollouts // run.rollout.n // shards
  logits = 4 * 4 * run.config.rollouts // shards * model.vocab_size // tensor
  chunk = run.rollout.prefill_chunk or prompt
  sampler = cache_bytes(run) + max(prompts * chunk * width * itemsize, logits)

  rows = run.update.microbatch_size // shards
  passes = rows // samples_per_pass(run)  # over prompts
  positions = rows * response + passes * prompt
  saved = {
    "none": model.num_hidden_layers * width,
    "dots": model.num_hidden_layers * (width - 2 * model.hidden_size),
    "full": model.num_hidden_layers * model.hidden_size,
  }[run.update.remat]
  learner = 2 * device_bytes(shapes.params) + positions * itemsize * (saved + 3 * width)
  chunk = run.update.logprob_chunk or chunk_of(model.vocab_size // tensor)
  learner += 3 * 4 * chunk * model.vocab_size // tensor
  return {
    "the sampler": ProgramMemory(0, 0, sampler, 0.0),
    "the update": ProgramMemory(0, 0, learner, 0.0),
  }


def estimated_flops(run: Programs, shapes: StepShapes) -> dict[str, FlopCount]:
  """The model's own FLOPs per chip, plus those that rematerialisation adds."""
  needed = model_flops(run)
  remat = 4 / 3 if run.update.remat == "full" else 1.0
  counts = {"the update": FlopCount(needed["the update"] * remat, needed["the update"])}
  if recomputes_logprobs(run, shapes):
    counts["log-probs"] = FlopCount(needed["log-probs"], needed["log-probs"])
  return counts
