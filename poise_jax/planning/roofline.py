"""The model's own FLOPs and bytes in a step, and the time that a roofline gives for them."""

import dataclasses
from collections import Counter

import numpy as np

from poise_jax.distributed import sharding
from poise_jax.models.kv_cache import position_bytes
from poise_jax.planning import flops, ragged
from poise_jax.planning.chips import Chip
from poise_jax.planning.memory import cache_bytes
from poise_jax.planning.step import StepShapes
from poise_jax.rollout import slots
from poise_jax.training.build import StepConfig


@dataclasses.dataclass(frozen=True)
class FlopCount:
  """FLOPs of a program on one chip."""

  program: float  # of the compiled program, or an estimate
  model: float  # needed by the model itself
  collective_bytes: dict[str, float] | None = None  # sent to the chip, by opcode; if compiled


@dataclasses.dataclass(frozen=True)
class DecodeStep:
  """A decode step with full caches, on one chip."""

  positions: int  # response positions that the caches hold
  least_bytes: float  # weights and caches read once
  bytes: float | None = None  # of the compiled program: moved between chip and memory
  flops: float | None = None  # of the compiled program
  collective_bytes: dict[str, float] | None = None  # sent to the chip, by opcode


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Least time of a step, on all chips together."""

  sampling_seconds: float
  updating_seconds: float
  sampled_tokens_per_second: float
  trained_tokens_per_second: float
  step_tokens_per_second: float


def model_flops(step: StepConfig, shapes: StepShapes) -> dict[str, float]:
  """FLOPs per chip that the model itself needs for the tokens that exist, by program.

  "the update" is one optimizer step. A prompt counts as often as its passes hold it.
  """
  size = step.update.minibatch_size
  trained = sum(
    _training_flops(step, shapes.lengths.part(i * size, (i + 1) * size), made)
    for i, made in enumerate(shapes.plans)
  )
  return {
    "log-probs": trained / 3 / step.mesh.size,
    "the update": trained / shapes.optimizer_steps / step.mesh.size,
  }


def _training_flops(step, lengths, made):
  """FLOPs of the passes of a mini-batch, over all chips."""
  total = 0.0
  for micro in made.micro_batches:
    held = set()  # prompts of this pass
    for i in np.flatnonzero(micro.row >= 0):
      prompt, response = int(lengths.prompts[i]), int(lengths.responses[i])
      row = micro.row[i] // micro.responses
      if micro.responses == 1 or row not in held:
        total += 3 * flops.forward_flops(step.model, prompt, 0)
      held.add(row)
      total += 3 * flops.forward_flops(step.model, prompt + response, response, start=prompt)
  return total


def prefill_flops(step: StepConfig, shapes: StepShapes) -> float:
  """FLOPs per chip to read all prompts of a step."""
  prompts = shapes.lengths.prompts[:: step.rollout.n]
  return sum(flops.forward_flops(step.model, int(p), 1) for p in prompts) / step.mesh.size


def decode_step(step: StepConfig, shapes: StepShapes) -> DecodeStep:
  """The sampler's decode step, with the least bytes that it can read."""
  tied = step.model.tie_word_embeddings
  least = flops.decode_bytes(shapes.sampling_params, tied, cache_bytes(step))
  return DecodeStep(step.rollout.max_new_tokens, least)


def rounds(step: StepConfig) -> int:
  """How often a step fills all slots, if responses are equally long."""
  rollouts = step.config.rollouts
  return -(-rollouts // min(step.rollout.slots or rollouts, rollouts))


def lockstep_steps(step: StepConfig, shapes: StepShapes) -> int:
  """Decode steps if the slots of a round wait for the longest response of all."""
  return int(shapes.lengths.responses.max()) * rounds(step)


def roofline(
  step: StepConfig,
  shapes: StepShapes,
  chip: Chip,
  flop_counts: dict[str, FlopCount],
  decoding: DecodeStep,
) -> Roofline:
  """Time of a step if products ran at the chip's peak and memory at its bandwidth, and
  communication took no time. No run is faster.

  Args:
    step: describes the step.
    shapes: from `step_shapes(step)`.
    chip: the hardware.
    flop_counts: by program: "the update", and "log-probs" if the step computes them. An update
      that is missing, as the compiler rejected it, counts with the model's own FLOPs.
    decoding: from `decode_step`, with the bytes and FLOPs of the compiled program if known.
  """
  moved = decoding.least_bytes if decoding.bytes is None else decoding.bytes
  seconds = max(moved / chip.bandwidth, (decoding.flops or 0.0) / chip.flops)
  sampling = prefill_flops(step, shapes) / chip.flops + lockstep_steps(step, shapes) * seconds
  work = {"the update": model_flops(step, shapes)["the update"], "log-probs": 0.0}
  work |= {name: count.program for name, count in flop_counts.items()}
  updates = step.update.epochs * shapes.optimizer_steps
  updating = (work["log-probs"] + updates * work["the update"]) / chip.flops
  tokens = int(shapes.lengths.responses.sum())
  return Roofline(
    sampling_seconds=sampling,
    updating_seconds=updating,
    sampled_tokens_per_second=tokens / sampling,
    trained_tokens_per_second=tokens / updating,
    step_tokens_per_second=tokens / (sampling + updating),
  )


def decode_cost(step: StepConfig, shapes: StepShapes) -> ragged.DecodeCost:
  """What a decode step reads on one device: the weights, and its heads of each position."""
  dtype = step.rollout.cache_dtype or step.config.model.dtype
  layer = position_bytes(step.model, dtype) / step.mesh.shape["tensor"]
  windows = Counter(spec.window for spec in step.model.layers)
  return ragged.DecodeCost(
    weights=flops.decode_bytes(shapes.sampling_params, step.model.tie_word_embeddings, 0),
    position={window: count * layer for window, count in windows.items()},
  )


@dataclasses.dataclass(frozen=True)
class RaggedDecoding:
  """Time that decoding responses of the given lengths takes by its bytes, on all chips together."""

  least_seconds: float  # see ragged.least; devices have equal shares
  lockstep_seconds: float  # every row reads a whole cache until the longest response ends
  resident_seconds: float  # all rows at once, each reading its own positions
  slots: int  # of a device: the config's, or a quarter of the rows if each has one there
  slots_seconds: float  # so many rows at once, refilled from a queue
  useful_rows: float  # share of a lock-step loop's rows that are alive
  useful_slots: float  # the same for the slots
  step_tokens_per_second: float  # of prefill, decoding (resident or in slots) and the update


def ragged_decoding(
  step: StepConfig,
  shapes: StepShapes,
  chip: Chip,
  decoding: DecodeStep,
  updating_seconds: float,
) -> RaggedDecoding:
  """What lengths mean for decoding.

  Args:
    step: describes the step.
    shapes: from `step_shapes(step, lengths)`.
    chip: the hardware.
    decoding: from `decode_step`; its least bytes are those of the lock-step loop.
    updating_seconds: of the roofline.
  """
  shards = sharding.batch_shards(step.mesh)
  cost = decode_cost(step, shapes)
  arrays = (np.split(x, shards) for x in (shapes.lengths.prompts, shapes.lengths.responses))
  parts = list(zip(*arrays, strict=True))  # a device's prompts and responses
  rows = len(shapes.lengths) // shards
  own = slots.count(step.rollout.slots, len(shapes.lengths), shards)
  fewer = own if own < rows else max(rows // 4, 1)
  resident = [ragged.resident(*part, cost) for part in parts]
  queued = [ragged.in_slots(*part, cost, fewer, slots.idle(fewer)) for part in parts]
  lengths = shapes.lengths
  least = ragged.least(lengths.prompts, lengths.responses, lengths.groups, cost)
  weights = lengths.responses.max() * cost.weights
  all_rows, in_slots = (ragged.seconds(part, chip.bandwidth) for part in (resident, queued))
  other = prefill_flops(step, shapes) / chip.flops + updating_seconds
  whole = other + (in_slots if own < rows else all_rows)
  return RaggedDecoding(
    least_seconds=(weights + (least - weights) / shards) / chip.bandwidth,
    lockstep_seconds=lockstep_steps(step, shapes) * decoding.least_bytes / chip.bandwidth,
    resident_seconds=all_rows,
    slots=fewer,
    slots_seconds=in_slots,
    useful_rows=_mean(d.busy.sum() for d in resident) / (rows * max(d.steps for d in resident)),
    useful_slots=_mean(d.busy.sum() for d in queued) / (fewer * max(d.steps for d in queued)),
    step_tokens_per_second=int(lengths.responses.sum()) / whole,
  )


def _mean(values):
  return float(np.mean(list(values)))
