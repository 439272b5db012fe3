"""What a run would take, without running it: sizes, memory, and the programs of a step compiled.

Memory is per device. The arrays of a step are counted from their shapes and shardings; what XLA
needs beside them is what it says of the compiled programs. On a CPU all devices share the machine's
memory, and so does this process.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from poise_jax import rollout
from poise_jax.distributed import sharding
from poise_jax.learner import update
from poise_jax.models.kv_cache import token_bytes
from poise_jax.planning.flops import device_bytes
from poise_jax.training.train import Programs
from poise_jax.types import Experience, Prompts, Rollouts, TrainState

GIB = 2**30
# A process grows while it runs: freed pages stay, evaluation compiles a sampler of its own. The
# SmolLM2 run on a CPU peaked at 4.99 GiB, a quarter above its plan; arrays and XLA's part were as
# planned.
SPARE = 0.25


@dataclasses.dataclass(frozen=True)
class Program:
  """XLA's account of a compiled program, in bytes on one device."""

  arguments: int
  outputs: int  # without those that take an argument's place
  temporary: int
  seconds: float  # to trace and compile


@dataclasses.dataclass(frozen=True)
class Plan:
  """What `plan` found out. All memory is in bytes on one device."""

  sizes: dict[str, Any]  # what one may want to know -> how many
  always: dict[str, int]  # arrays that exist all the time
  sampling: dict[str, int]  # what comes on top of them while sampling
  updating: dict[str, int]  # and while updating
  programs: dict[str, Program]
  process: int  # the host process without any of the arrays; counts on a CPU only
  limit: int  # what the device has
  sharing: int  # devices that share this limit

  @property
  def peak(self) -> int:
    """The greatest need of a step, of all that share the limit."""
    more = max(sum(self.sampling.values()), sum(self.updating.values()))
    return self.sharing * (sum(self.always.values()) + more) + self.process

  @property
  def fits(self) -> bool:
    """Whether a step's peak is within the limit."""
    return self.peak <= self.limit

  @property
  def verdict(self) -> str:
    """One sentence: whether it fits, and if not, what to lower."""
    need = f"about {self.peak / GIB:.2f} GiB of the {self.limit / GIB:.2f} GiB that there are"
    if self.process:
      need += f" ({self.process / GIB:.2f} GiB for libraries, programs and the task)"
    if self.fits and self.process and self.peak * (1 + SPARE) > self.limit:
      return f"hardly fits: a step needs {need}, and a long run up to a quarter more"
    if self.fits:
      return f"fits: a step needs {need}"
    always = self.sharing * sum(self.always.values()) + self.process
    if always > self.limit:
      lower = "train a smaller model, or share it between more devices (mesh.fsdp)"
    elif sum(self.sampling.values()) > sum(self.updating.values()):
      lower = "lower rollouts or rollout.max_new_tokens, set model.dtype=bfloat16 or "
      lower += "rollout.cache_dtype=int8, or raise mesh.tensor"
    else:
      lower = "lower train.microbatch_size, set train.remat=full, or raise mesh.tensor"
    return f"does not fit: a step needs {need}; {lower}"


@dataclasses.dataclass(frozen=True)
class Arrays:
  """What a step holds and passes on: trees of jax.ShapeDtypeStruct with their shardings."""

  params: Any
  state: TrainState
  estimator: Any
  reference: Any  # () if no copy of the policy is kept
  decoding: Any  # the parameters in the sampler's layout and dtype
  prompts: Prompts
  rollouts: Rollouts
  rows: dict[str, Any]  # of update.learning_batch
  count: int  # optimizer steps a batch


def arrays(run: Programs) -> Arrays:
  """The arrays of a step of `run`, whose mesh may be one that is imagined only."""
  config, model, mesh = run.config, run.model, run.mesh
  groups, n, length = config.rollouts // run.rollout.n, run.rollout.n, run.rollout.max_new_tokens
  batch = sharding.batch_sharding(mesh)

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch)

  def spread(tree):
    return jax.tree.map(lambda x: array(x.dtype, *x.shape), tree)

  params = jax.tree.map(_shape, run.params)
  state = placed_like(params, jax.eval_shape(lambda p: update.init(p, run.update), params))
  estimator = placed_like(params, jax.eval_shape(run.estimator.init, params))
  reference = params if run.keeps_reference else ()
  decoding = jax.eval_shape(run.sampling_params, params)
  width = config.task.max_prompt_length
  prompts = Prompts(array(np.int32, groups, width), array(bool, groups, width))
  key = jax.eval_shape(lambda: jax.random.key(0))
  sample = functools.partial(rollout.sample, model, rollout=run.rollout)
  rollouts = spread(jax.eval_shape(sample, decoding, prompts, key))

  score, ids = array(np.float32, groups, n), array(np.int32, groups)
  told = array(np.float32, groups, run.estimator.reference_n) if run.estimator.reference_n else ()
  earned = array(np.float32, groups, n, length)
  experience = Experience(rollouts, score, earned, ids, ids, ids, told)
  advantages = jax.eval_shape(run.estimator.estimate, estimator, experience)[0]
  age = ids if run.collect.dynamic_sampling else None
  count = 0

  def learning_batch(params, rollouts, advantages, reference, age):
    nonlocal count
    rows, count = update.learning_batch(
      model, params, rollouts, advantages, run.update, reference, age
    )
    return rows

  rows = spread(jax.eval_shape(learning_batch, params, rollouts, advantages, reference, age))
  return Arrays(params, state, estimator, reference, decoding, prompts, rollouts, rows, count)


def plan(
  run: Programs,
  phase: Callable[[str], None] = lambda _: None,
  limit: int | None = None,
  look: Callable[[str, Any], None] = lambda name, compiled: None,
) -> Plan:
  """Compiles the sampler and the update of `run`, whose parameters may be shapes only.

  Args:
    run: of `train.setup`, or `train.programs`.
    phase: told what is going on.
    limit: bytes of memory a device has; None: what it says.
    look: called with the name of each program and the jax.stages.Compiled.
  """
  model, mesh, n = run.model, run.mesh, run.rollout.n
  on_chip = mesh.devices.flat[0].platform != "cpu"  # programs lie in the device's own memory
  programs = {}

  def compiled(name, function, *args):
    phase(f"compiling {name}")
    start = time.perf_counter()
    lowered = function.lower(*args)
    try:
      program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:  # of a device that the compiler knows the memory of
      used = re.search(r"Used ([\d.]+)([MG]) of", str(error))
      if not used:
        raise
      held = device_bytes([x for x in jax.tree.leaves(args) if isinstance(x, jax.ShapeDtypeStruct)])
      need = int(float(used[1]) * {"M": 2**20, "G": GIB}[used[2]])
      programs[name] = Program(held, 0, max(need - held, 0), time.perf_counter() - start)
      return
    seconds, said = time.perf_counter() - start, program.memory_analysis()
    programs[name] = Program(
      said.argument_size_in_bytes,
      said.output_size_in_bytes - said.alias_size_in_bytes,
      said.temp_size_in_bytes + on_chip * said.generated_code_size_in_bytes,
      seconds,
    )
    look(name, program)

  with jax.set_mesh(mesh):
    step = arrays(run)
    compiled("the sampler's layout", run.sampling_params, step.params)
    sample = jax.jit(rollout.sample, static_argnums=(0, 4))
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled("the sampler", sample, model, step.decoding, step.prompts, key, run.rollout)
    needed = {"old_logprobs", "reference_logprobs"} & set(step.rows)
    if needed - ({"old_logprobs"} if run.update.old_logprobs == "sampler" else set()):
      fresh = jax.eval_shape(update.response_batch, step.rollouts)
      fresh = {name: step.rows[name] for name in fresh}
      compiled("log-probs", update.recompute, model, step.params, fresh, run.update, n)
    size = run.update.minibatch_size
    minibatch = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype, sharding=x.sharding), step.rows
    )
    compiled("the update", update.minibatch_step, model, run.update, step.state, minibatch, n)
  return accounted(run, step, programs, limit)


def accounted(
  run: Programs, step: Arrays, programs: dict[str, Program], limit: int | None = None
) -> Plan:
  """What `plan` returns, of programs that are compiled or only estimated."""
  config, mesh, n, length = run.config, run.mesh, run.rollout.n, run.rollout.max_new_tokens
  groups, width = config.rollouts // n, config.task.max_prompt_length
  passes = config.rollouts // update.samples_together(n, run.update, mesh)  # over prompts
  parameters, caches = device_bytes(step.params), cache_bytes(run)
  sampler, learning = programs["the sampler"], programs["the update"]
  logprobs = programs.get("log-probs", Program(0, 0, 0, 0.0))
  said = device_bytes(step.rollouts)
  devices = [] if isinstance(mesh, jax.sharding.AbstractMesh) else list(mesh.devices.flat)
  shared = bool(devices) and devices[0].platform == "cpu"
  real = sum(x.nbytes for x in jax.tree.leaves(run.params) if isinstance(x, jax.Array))
  return Plan(
    sizes={
      "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(step.params)),
      "devices": mesh.size,
      "prompts a step": groups,
      "rollouts a step": config.rollouts,
      "tokens sampled a step, at most": config.rollouts * length,
      "tokens trained on a step, prompts and padding included": config.rollouts * length
      + passes * width,
      "optimizer steps a batch": step.count,
      "micro-batches an optimizer step": run.update.minibatch_size // run.update.microbatch_size,
      "warm-start steps": run.warm_start.steps,
      "steps": config.steps,
      "rollouts in all": config.steps * config.rollouts,
      "tokens sampled in all, at most": config.steps * config.rollouts * length,
    },
    always={
      "parameters": parameters,
      "optimizer": device_bytes(step.state.opt_state),
      "estimator's memory (probe and buffer, critic, tracker)": device_bytes(step.estimator),
      **({"reference policy": device_bytes(step.reference)} if step.reference else {}),
    },
    sampling={
      "sampling copy of the parameters": device_bytes(step.decoding),
      "caches": min(caches, sampler.temporary),
      "activations and logits": max(sampler.temporary - caches, 0),
      "rollouts": said,
    },
    updating={
      "rollouts and their batch": said + device_bytes(step.rows),
      "gradients": min(parameters, learning.temporary),
      "activations and logits": max(learning.temporary - parameters, logprobs.temporary),
      "results": learning.outputs,
    },
    programs=programs,
    process=max(_resident() - real, 0) if shared else 0,
    limit=_memory(devices[0]) if limit is None else limit,
    sharing=len(jax.local_devices()) if shared else 1,
  )


def cache_bytes(run: Programs) -> int:
  """Keys and values of all prompts and, at their full length, of all responses, on one device."""
  n, dtype = run.rollout.n, run.rollout.cache_dtype or run.config.model.dtype
  positions = n * run.rollout.max_new_tokens + run.config.task.max_prompt_length
  caches = token_bytes(run.model, dtype) * run.config.rollouts // n * positions
  return caches // (sharding.batch_shards(run.mesh) * run.mesh.shape["tensor"])


def placed_like(params: Any, tree: Any) -> Any:
  """`tree`, of shapes, with the shardings of `params` on what is made from them: optimizer moments
  and critics keep a parameter's path and shape. Everything else is whole on each device."""
  known = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(params)}
  mesh = next(iter(known.values())).sharding.mesh
  whole = NamedSharding(mesh, PartitionSpec())

  def one(path, x):
    for start in range(len(path)):
      like = known.get(jax.tree_util.keystr(path[start:]))
      if like is not None and like.shape == x.shape:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=like.sharding)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

  return jax.tree_util.tree_map_with_path(one, tree)


def _shape(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _resident() -> int:
  """Bytes of memory that this process has now; 0 where that is not told."""
  try:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  except OSError:
    return 0
  return pages * os.sysconf("SC_PAGE_SIZE")


def _memory(device) -> int:
  """Bytes that a device can allocate; of a CPU, the machine's or its container's memory."""
  stats = device.memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  try:
    return min(total, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
  except (OSError, ValueError):  # no limit, or one that says "max"
    return total
