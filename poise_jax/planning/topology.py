"""What a run takes on hardware you do not have: compiled ahead of time for TPU slices, estimated by
arithmetic for GPUs.

Nothing is loaded: the config's model.shape is enough. libtpu has the compiler for TPUs, which runs
without one.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from poise_jax import models
from poise_jax.distributed import sharding
from poise_jax.models.decode_attention import KERNELS
from poise_jax.planning import hlo, memory
from poise_jax.planning.chips import CHIPS, parse_topology, topology_devices
from poise_jax.planning.estimate import estimated_flops, estimated_programs
from poise_jax.planning.lengths import lengths_of
from poise_jax.planning.memory import MemoryReport, cache_bytes
from poise_jax.planning.roofline import (
  DecodeStep,
  FlopCount,
  RaggedDecoding,
  Roofline,
  decode_step,
  model_flops,
  prefill_flops,
  ragged_decoding,
  roofline,
  rounds,
)
from poise_jax.planning.step import StepShapes, abstract_step, pass_shape, step_shapes
from poise_jax.rollout import slots
from poise_jax.training.build import StepConfig


@dataclasses.dataclass(frozen=True)
class TopologyReport:
  """What a step takes on a topology, per chip."""

  memory: MemoryReport
  compiled: bool  # or estimated
  mesh: dict[str, int]  # size by axis
  flops: dict[str, FlopCount]  # by program
  decode: DecodeStep
  useful_positions: float  # share of the positions of the update's passes that hold a token
  lengths: str  # where they are from; "": all at the limit
  ragged: RaggedDecoding | None  # where lengths are given
  large_arrays: dict[str, list[str]]  # by program: arrays like [B, T, V] or [B, H, T, T]
  roofline: Roofline


def topology_step(config: ConfigDict, topology: str) -> StepConfig:
  """A step of `config` on a mesh of such chips.

  Raises:
    UserError: see `topology_devices` and `abstract_step`.
  """
  mesh = sharding.make_mesh(**config.mesh, devices=topology_devices(topology))
  return abstract_step(config, mesh)


def report(
  config: ConfigDict,
  topology: str,
  on_phase: Callable[[str], None] = lambda _: None,
  lengths: str = "",
) -> TopologyReport:
  """What a step of `config` takes on `topology`.

  Args:
    config: from configs/common.py; its model.shape must be complete.
    topology: CHIP:SHAPE, such as v5p:4x4x4 or h100:8.
    on_phase: called with what happens next, such as "compiling the sampler".
    lengths: of the responses, see `lengths_of`; "": all at the limit.

  Raises:
    UserError: see `topology_devices`, `abstract_step` and `lengths_of`.
  """
  step = topology_step(config, topology)
  shapes = step_shapes(step, lengths_of(step, lengths))
  chip = CHIPS[parse_topology(topology)[0]]
  compiled = isinstance(step.mesh, jax.sharding.Mesh)
  decoding, large = decode_step(step, shapes), {}
  if compiled:
    texts = {}
    program_memory = memory.compile_step(
      step, shapes, on_phase, lambda name, program: texts.update({name: program.as_text()})
    )
    on_phase("counting FLOPs and bytes")
    hlo_programs = {name: hlo.Program(text) for name, text in texts.items()}
    flops, decoding = compiled_work(step, shapes, decoding, hlo_programs)
    limits = (step.config.task.max_prompt_length, step.rollout.max_new_tokens)
    large = {
      name: large_arrays(program, step.model, step.mesh.shape["tensor"], *limits)
      for name, program in hlo_programs.items()
    }
  else:
    program_memory = estimated_programs(step, shapes)
    flops = estimated_flops(step, shapes)
  times = roofline(step, shapes, chip, flops, decoding)
  ragged = None
  if lengths:
    ragged = ragged_decoding(step, shapes, chip, decoding, times.updating_seconds)
  return TopologyReport(
    memory=memory.memory_report(step, shapes, program_memory, chip.memory),
    compiled=compiled,
    mesh=dict(step.mesh.shape),
    flops=flops,
    decode=decoding,
    useful_positions=sum(p.tokens for p in shapes.plans) / sum(p.positions for p in shapes.plans),
    lengths=lengths,
    ragged=ragged,
    large_arrays={name: arrays for name, arrays in large.items() if arrays},
    roofline=times,
  )


def compiled_work(
  step: StepConfig,
  shapes: StepShapes,
  decoding: DecodeStep,
  hlo_programs: dict[str, hlo.Program],
) -> tuple[dict[str, FlopCount], DecodeStep]:
  """FLOPs of the compiled programs, and `decoding` with the work of the compiled decode loop.

  A program that the compiler rejected for its size is not in `hlo_programs`, and not counted.

  Raises:
    ValueError: the sampler has other loops than expected.
  """
  needed, flops = model_flops(step, shapes), {}
  for name, per in (("log-probs", 1), ("the update", shapes.optimizer_steps)):
    programs = [
      (hlo_programs.get(f"{name}, {pass_shape(micro)}"), count / per)
      for micro, count in shapes.passes
    ]
    if all(program for program, _ in programs):
      flops[name] = FlopCount(
        sum(count * program.flops() for program, count in programs),
        needed[name],
        _summed((program.collective_bytes(), count) for program, count in programs),
      )
  sampler = hlo_programs.get("the sampler")
  if sampler is None:
    return flops, decoding
  loops = [
    (computation, loop.attribute("body"))
    for computation, loop in sampler.loops()
    if not sampler.trip_count(loop)
  ]
  bodies = [body for computation, body in loops if computation == sampler.entry]
  if rounds(step) > 1:  # decoding is a loop inside of the first one, which refills the slots
    refill, *drains = bodies
    bodies = [body for computation, body in loops if computation == refill] + drains
  if not bodies:
    raise ValueError("the sampler has no decode loop")
  with jax.set_mesh(step.mesh):
    dtype = jnp.dtype(step.config.model.dtype)
    reads_in_loops = slots.implementation(step.model, dtype, step.rollout) not in KERNELS
  decoding = dataclasses.replace(  # others decode what is left at the end in fewer rows
    decoding,
    # Without a kernel, attention reads the caches in loops over blocks, which `traffic` leaves out.
    bytes=sampler.traffic(bodies[0]) + reads_in_loops * cache_bytes(step),
    flops=sampler.flops(bodies[0]),
    collective_bytes=sampler.collective_bytes(bodies[0]),
  )
  # Each decode loop has an unknown trip count and so counts once in the sampler's total; so does
  # the refill, which prefills once for every round of the slots.
  prefill = sampler.flops() - sum(sampler.flops(body) for body in bodies)
  prefill *= rounds(step)
  flops["prefill"] = FlopCount(prefill, prefill_flops(step, shapes))
  return flops, decoding


def _summed(collectives):
  """Bytes by opcode, from (bytes by opcode, number of times)."""
  total = {}
  for parts, count in collectives:
    for name, size in parts.items():
      total[name] = total.get(name, 0.0) + count * size
  return total


def large_arrays(
  program: hlo.Program,
  model: models.ModelConfig,
  tensor: int,
  prompt_length: int,
  response_length: int,
) -> list[str]:
  """Describes arrays like [B, T, V] or [B, H, T, T]: with a vocabulary axis and at least T other
  elements, or with two axes of a sequence's length.

  A length that equals one of the model's widths cannot be distinguished from it and is skipped.

  Args:
    program: compiled.
    model: shape of the decoder.
    tensor: size of the mesh axis that splits vocabulary and widths.
    prompt_length: positions of a prompt.
    response_length: positions of a response, T.
  """
  vocabulary = {model.vocab_size, model.vocab_size // tensor}
  widths = {model.hidden_size, model.intermediate_size, *vocabulary}
  widths |= {model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim}
  widths |= {x // tensor for x in widths}
  lengths = {prompt_length, response_length, prompt_length + response_length}
  lengths |= {-(-x // unit) * unit for x in lengths for unit in (128, 512)}  # padded
  lengths -= widths
  descriptions = set()
  for instruction, array in program.buffers():
    shape = list(array.shape)
    for size in vocabulary & set(shape):
      if math.prod(shape) // size >= response_length:
        descriptions.add(f"{array.dtype}{shape} with a vocabulary axis ({instruction.opcode})")
    if sum(size in lengths for size in shape) > 1:
      descriptions.add(f"{array.dtype}{shape} with two sequence axes ({instruction.opcode})")
  return sorted(descriptions)
