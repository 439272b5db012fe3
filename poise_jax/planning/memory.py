"""Dry run: sizes and memory of a run, from its shapes and the compiled programs of one step.

Memory is per device. The arrays of a step are counted from their shapes and shardings; XLA's memory
analysis of the compiled programs says what they need in addition. On a CPU all devices share the
machine's memory with the Python process.
"""

import dataclasses
import math
import os
import pathlib
import re
import time
from collections.abc import Callable

import jax

from poise_jax.distributed import sharding
from poise_jax.models.kv_cache import row_bytes
from poise_jax.planning.flops import device_bytes
from poise_jax.planning.step import StepShapes, pass_shape, step_programs, step_shapes
from poise_jax.training.build import StepConfig

GIB = 2**30
# A process on a CPU grows while it runs: freed pages stay mapped, and evaluation compiles another
# sampler. The SmolLM2 run on a CPU peaked at 4.99 GiB, a quarter above its dry run; arrays and
# XLA's temporary memory were as predicted.
GROWTH = 0.25


@dataclasses.dataclass(frozen=True)
class ProgramMemory:
  """XLA's memory analysis of a compiled program, in bytes on one device."""

  arguments: int
  outputs: int  # without those that reuse an argument's memory
  temporary: int
  seconds: float  # time to trace and compile


@dataclasses.dataclass(frozen=True)
class MemoryReport:
  """Sizes and memory of a step. Memory is in bytes on one device."""

  sizes: dict[str, int]  # parameters, prompts, tokens, steps
  always: dict[str, int]  # arrays that exist all the time
  sampling: dict[str, int]  # in addition while sampling
  updating: dict[str, int]  # in addition while updating
  programs: dict[str, ProgramMemory]
  process: int  # memory of the Python process without arrays; on a CPU only
  limit: int  # memory of the device
  sharing: int  # number of devices that share the limit

  @property
  def peak(self) -> int:
    """Peak memory of a step on all devices that share the limit."""
    phase = max(sum(self.sampling.values()), sum(self.updating.values()))
    return self.sharing * (sum(self.always.values()) + phase) + self.process

  @property
  def fits(self) -> bool:
    """Whether the peak of a step is within the limit."""
    return self.peak <= self.limit

  @property
  def verdict(self) -> str:
    """One sentence: whether the run fits, and if not, which option to change."""
    need = f"about {self.peak / GIB:.2f} GiB of {self.limit / GIB:.2f} GiB"
    if self.process:
      need += f" ({self.process / GIB:.2f} GiB for libraries, programs and the task)"
    if self.fits and self.process and self.peak * (1 + GROWTH) > self.limit:
      return f"barely fits: a step needs {need}, and a long run up to a quarter more"
    if self.fits:
      return f"fits: a step needs {need}"
    always = self.sharing * sum(self.always.values()) + self.process
    if always > self.limit:
      advice = "train a smaller model, or shard it over more devices (mesh.fsdp)"
    elif sum(self.sampling.values()) > sum(self.updating.values()):
      advice = (
        "set a smaller rollout.slots, lower rollouts or rollout.max_new_tokens, choose a smaller "
        "model.dtype or rollout.cache_dtype=int8, or raise mesh.tensor"
      )
    else:
      advice = "lower train.microbatch_size, set train.remat=full, or raise mesh.tensor"
    return f"does not fit: a step needs {need}; {advice}"


def dry_run(step: StepConfig, on_phase: Callable[[str], None] = lambda _: None) -> MemoryReport:
  """Compiles a step for the devices of its mesh; no array is allocated.

  Args:
    step: from `training.build`.
    on_phase: called with what happens next, such as "compiling the sampler".
  """
  shapes = step_shapes(step)
  return memory_report(step, shapes, compile_step(step, shapes, on_phase))


def compile_step(
  step: StepConfig,
  shapes: StepShapes,
  on_phase: Callable[[str], None] = lambda _: None,
  on_compiled: Callable[[str, jax.stages.Compiled], None] = lambda name, compiled: None,
) -> dict[str, ProgramMemory]:
  """Compiles the programs of a step for the devices of its mesh.

  Args:
    step: describes the programs.
    shapes: from `step_shapes(step)`.
    on_phase: called with what happens next.
    on_compiled: called with the name of each program and its compiled form.

  Returns:
    Memory by name of the program, those included that the compiler rejects for their size.
  """
  programs = {}
  with jax.set_mesh(step.mesh):
    for name, (function, args) in step_programs(step, shapes).items():
      on_phase(f"compiling {name}")
      start = time.perf_counter()
      lowered = function.lower(*args)
      try:
        compiled = lowered.compile()
      except jax.errors.JaxRuntimeError as error:
        programs[name] = _rejected(error, args, time.perf_counter() - start)
        continue
      programs[name] = _analysis(compiled, step.mesh, time.perf_counter() - start)
      on_compiled(name, compiled)
  return programs


def _analysis(compiled, mesh, seconds):
  analysis = compiled.memory_analysis()
  # A CPU's programs are part of the process; others take memory of the device.
  code = 0 if _on_cpu(mesh) else analysis.generated_code_size_in_bytes
  return ProgramMemory(
    analysis.argument_size_in_bytes,
    analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
    analysis.temp_size_in_bytes + code,
    seconds,
  )


def _rejected(error, args, seconds):
  """Memory of a program that a compiler rejects, which knows how much its device has."""
  used = re.search(r"Used ([\d.]+)([MG]) of", str(error))
  if not used:
    raise error
  arrays = [x for x in jax.tree.leaves(args) if isinstance(x, jax.ShapeDtypeStruct)]
  arguments = device_bytes(arrays)
  total = int(float(used[1]) * {"M": 2**20, "G": GIB}[used[2]])
  return ProgramMemory(arguments, 0, max(total - arguments, 0), seconds)


def memory_report(
  step: StepConfig, shapes: StepShapes, programs: dict[str, ProgramMemory], limit: int | None = None
) -> MemoryReport:
  """Adds up the memory of a step.

  Args:
    step: describes the step.
    shapes: from `step_shapes(step)`.
    programs: compiled or estimated, by the names of `step_programs`.
    limit: bytes of memory that a device has; None: as the device says.
  """
  parameters, caches = device_bytes(shapes.params), cache_bytes(step)
  sampler = programs["the sampler"]
  learner = [p for name, p in programs.items() if not name.startswith("the sampler")]
  rollouts = device_bytes(shapes.rollouts)
  batch = shapes.optimizer_steps * device_bytes(shapes.minibatch)
  on_cpu = _on_cpu(step.mesh)
  return MemoryReport(
    sizes=_sizes(step, shapes),
    always={
      "parameters": parameters,
      "optimizer": device_bytes(shapes.state.opt_state),
      "estimator (probe and buffer, critic, tracker)": device_bytes(shapes.estimator),
      **({"reference policy": device_bytes(shapes.reference)} if shapes.reference else {}),
    },
    sampling={
      "sampling copy of the parameters": device_bytes(shapes.sampling_params),
      "caches": min(caches, sampler.temporary),
      "activations and logits": max(sampler.temporary - caches, 0),
      "rollouts": rollouts,
    },
    updating={
      "rollouts and their batch": rollouts + batch,
      "gradients": parameters,
      "activations and logits": max(program.temporary for program in learner),
      "results": max(program.outputs for program in learner),
    },
    programs=programs,
    process=_resident_bytes() if on_cpu else 0,
    limit=_device_memory(step.mesh.devices.flat[0]) if limit is None else limit,
    sharing=len(jax.local_devices()) if on_cpu else 1,
  )


def _sizes(step, shapes):
  config, length = step.config, step.rollout.max_new_tokens
  return {
    "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(shapes.params)),
    "devices": step.mesh.size,
    "prompts per step": step.groups,
    "rollouts per step": config.rollouts,
    "tokens sampled per step, at most": config.rollouts * length,
    "positions trained on per step": sum(plan.positions for plan in shapes.plans),
    "positions that hold a token": sum(plan.tokens for plan in shapes.plans),
    "optimizer steps per batch": step.update.epochs * shapes.optimizer_steps,
    **{f"passes of {pass_shape(micro)} positions": count for micro, count in shapes.passes},
    "warm-start steps": step.warm_start.steps,
    "steps": config.steps,
    "rollouts in total": config.steps * config.rollouts,
    "tokens sampled in total, at most": config.steps * config.rollouts * length,
  }


def cache_bytes(step: StepConfig) -> int:
  """Keys and values of all slots at full length, prompts included, on one device."""
  rollouts, dtype = step.config.rollouts, step.rollout.cache_dtype or step.config.model.dtype
  positions = step.rollout.max_new_tokens + step.config.task.max_prompt_length
  slots = min(step.rollout.slots or rollouts, rollouts)
  caches = row_bytes(step.model, positions, dtype) * slots
  return caches // (sharding.batch_shards(step.mesh) * step.mesh.shape["tensor"])


def _on_cpu(mesh):
  if isinstance(mesh, jax.sharding.AbstractMesh):
    return False
  return mesh.devices.flat[0].platform == "cpu"


def _resident_bytes() -> int:
  """Memory of this process; 0 where the system does not report it."""
  try:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  except OSError:
    return 0
  return pages * os.sysconf("SC_PAGE_SIZE")


def _device_memory(device: jax.Device) -> int:
  """Bytes that a device can allocate; on a CPU the memory of the machine or its container."""
  stats = device.memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  try:
    return min(total, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
  except (OSError, ValueError):  # no limit, or "max"
    return total
