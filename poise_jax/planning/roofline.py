"""The model's own FLOPs and bytes in a step, and the time that a roofline gives for them."""

import dataclasses

from poise_jax.planning import flops
from poise_jax.planning.chips import Chip
from poise_jax.planning.memory import cache_bytes
from poise_jax.planning.step import StepShapes, samples_per_pass
from poise_jax.rollout.sampler import stages
from poise_jax.training.train import Programs


@dataclasses.dataclass(frozen=True)
class FlopCount:
  """FLOPs of a program on one chip."""

  program: float  # of the compiled program, or an estimate
  model: float  # needed by the model itself
  collective_bytes: dict[str, float] | None = None  # sent to the chip, by opcode; if compiled


@dataclasses.dataclass(frozen=True)
class DecodeStage:
  """Decode steps that share one size of the caches, on one chip."""

  positions: int  # response positions that the caches hold
  steps: int  # decode steps at full response length
  least_bytes: float  # per step: weights and caches read once
  bytes: float | None = None  # per step of the compiled program: moved between chip and memory
  flops: float | None = None  # per step of the compiled program
  collective_bytes: dict[str, float] | None = None  # per step, sent to the chip, by opcode


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Least time of a step, on all chips together."""

  sampling_seconds: float
  updating_seconds: float
  sampled_tokens_per_second: float
  trained_tokens_per_second: float
  step_tokens_per_second: float


def model_flops(run: Programs) -> dict[str, float]:
  """FLOPs per chip that the model itself needs, by program."""
  prompt, response = run.config.task.max_prompt_length, run.rollout.max_new_tokens
  n, together = run.rollout.n, samples_per_pass(run)
  sequence = flops.training_flops(run.model, prompt, together, response) / together
  group = flops.sampling_flops(run.model, prompt, n, response)
  return {
    "the sampler": group * run.config.rollouts / n / run.mesh.size,
    "log-probs": sequence / 3 * run.config.rollouts / run.mesh.size,
    "the update": sequence * run.update.minibatch_size / run.mesh.size,
  }


def prefill_flops(run: Programs) -> float:
  """FLOPs per chip to read all prompts of a step."""
  prompt = flops.forward_flops(run.model, run.config.task.max_prompt_length, 1)
  return prompt * run.config.rollouts / run.rollout.n / run.mesh.size


def decode_stages(run: Programs, shapes: StepShapes) -> list[DecodeStage]:
  """The sampler's stages, whose caches grow, with the least bytes that a step of each reads."""
  n, length, width = run.rollout.n, run.rollout.max_new_tokens, run.config.task.max_prompt_length
  position_bytes = cache_bytes(run) / (n * length + width)
  decode_stages, last = [], 0
  for size in stages(length):
    caches = position_bytes * width + position_bytes * n * size
    least = flops.decode_bytes(shapes.sampling_params, run.model.tie_word_embeddings, caches)
    decode_stages.append(DecodeStage(size, size - last, least))
    last = size
  return decode_stages


def roofline(
  run: Programs,
  shapes: StepShapes,
  chip: Chip,
  flop_counts: dict[str, FlopCount],
  decoding: list[DecodeStage],
) -> Roofline:
  """Time of a step at full length if products ran at the chip's peak and memory at its bandwidth,
  and communication took no time. No run is faster.

  Args:
    run: describes the step.
    shapes: from `step_shapes(run)`.
    chip: the hardware.
    flop_counts: by program: "the update", and "log-probs" if the step computes them. An update
      that is missing, as the compiler rejected it, counts with the model's own FLOPs.
    decoding: from `decode_stages`, with the bytes and FLOPs of the compiled program if known.
  """

  sampling = prefill_flops(run) / chip.flops
  for stage in decoding:
    moved = stage.least_bytes if stage.bytes is None else stage.bytes
    sampling += stage.steps * max(moved / chip.bandwidth, (stage.flops or 0.0) / chip.flops)
  work = {"the update": model_flops(run)["the update"], "log-probs": 0.0}
  work |= {name: count.program for name, count in flop_counts.items()}
  updating = (work["log-probs"] + shapes.optimizer_steps * work["the update"]) / chip.flops
  tokens = run.config.rollouts * run.rollout.max_new_tokens
  return Roofline(
    sampling_seconds=sampling,
    updating_seconds=updating,
    sampled_tokens_per_second=tokens / sampling,
    trained_tokens_per_second=tokens / updating,
    step_tokens_per_second=tokens / (sampling + updating),
  )
