"""The model's own FLOPs and bytes in a step, and the time that a roofline gives for them."""

import dataclasses

from poise_jax.planning import flops
from poise_jax.planning.chips import Chip
from poise_jax.planning.memory import cache_bytes
from poise_jax.planning.step import StepShapes
from poise_jax.rollout.sampler import stages
from poise_jax.training.build import StepConfig


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


def model_flops(step: StepConfig, shapes: StepShapes) -> dict[str, float]:
  """FLOPs per chip that the model itself needs, by program."""
  prompt, response = step.config.task.max_prompt_length, step.rollout.max_new_tokens
  n, m = step.rollout.n, shapes.responses_per_row
  sequence = flops.training_flops(step.model, prompt, m, response) / m
  group = flops.sampling_flops(step.model, prompt, n, response)
  return {
    "the sampler": group * step.config.rollouts / n / step.mesh.size,
    "log-probs": sequence / 3 * step.config.rollouts / step.mesh.size,
    "the update": sequence * step.update.minibatch_size / step.mesh.size,
  }


def prefill_flops(step: StepConfig) -> float:
  """FLOPs per chip to read all prompts of a step."""
  prompt = flops.forward_flops(step.model, step.config.task.max_prompt_length, 1)
  return prompt * step.config.rollouts / step.rollout.n / step.mesh.size


def decode_stages(step: StepConfig, shapes: StepShapes) -> list[DecodeStage]:
  """The sampler's stages, whose caches grow, with the least bytes that a step of each reads."""
  n, length, width = step.rollout.n, step.rollout.max_new_tokens, step.config.task.max_prompt_length
  position_bytes = cache_bytes(step) / (n * length + width)
  decode_stages, last = [], 0
  for size in stages(length):
    caches = position_bytes * width + position_bytes * n * size
    least = flops.decode_bytes(shapes.sampling_params, step.model.tie_word_embeddings, caches)
    decode_stages.append(DecodeStage(size, size - last, least))
    last = size
  return decode_stages


def roofline(
  step: StepConfig,
  shapes: StepShapes,
  chip: Chip,
  flop_counts: dict[str, FlopCount],
  decoding: list[DecodeStage],
) -> Roofline:
  """Time of a step at full length if products ran at the chip's peak and memory at its bandwidth,
  and communication took no time. No run is faster.

  Args:
    step: describes the step.
    shapes: from `step_shapes(step)`.
    chip: the hardware.
    flop_counts: by program: "the update", and "log-probs" if the step computes them. An update
      that is missing, as the compiler rejected it, counts with the model's own FLOPs.
    decoding: from `decode_stages`, with the bytes and FLOPs of the compiled program if known.
  """

  sampling = prefill_flops(step) / chip.flops
  for stage in decoding:
    moved = stage.least_bytes if stage.bytes is None else stage.bytes
    sampling += stage.steps * max(moved / chip.bandwidth, (stage.flops or 0.0) / chip.flops)
  work = {"the update": model_flops(step, shapes)["the update"], "log-probs": 0.0}
  work |= {name: count.program for name, count in flop_counts.items()}
  updating = (work["log-probs"] + shapes.optimizer_steps * work["the update"]) / chip.flops
  tokens = step.config.rollouts * step.rollout.max_new_tokens
  return Roofline(
    sampling_seconds=sampling,
    updating_seconds=updating,
    sampled_tokens_per_second=tokens / sampling,
    trained_tokens_per_second=tokens / updating,
    step_tokens_per_second=tokens / (sampling + updating),
  )
