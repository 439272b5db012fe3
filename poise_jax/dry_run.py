"""What a run would take, without running it: sizes, memory, and the programs of a step compiled.

Memory is per device. The arrays of a step are counted from their shapes and shardings; what XLA
needs beside them is what it says of the compiled programs. On a CPU all devices share the machine's
memory, and so does this process.
"""

import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from poise_jax import rollout, sharding, update
from poise_jax.models.cache import token_bytes
from poise_jax.train import Run
from poise_jax.types import Experience, Prompts

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
      lower = "lower rollouts or rollout.max_new_tokens, or set model.dtype=bfloat16"
    else:
      lower = "lower train.microbatch_size, or set train.remat=full"
    return f"does not fit: a step needs {need}; {lower}"


def plan(run: Run, phase: Callable[[str], None] = lambda _: None) -> Plan:
  """Compiles the sampler and the update of `run`, whose parameters may be shapes only.

  Args:
    run: of `train.setup`.
    phase: told what is going on.
  """
  config, model, mesh = run.config, run.model, run.mesh
  groups, n, length = config.rollouts // run.rollout.n, run.rollout.n, run.rollout.max_new_tokens
  programs = {}

  def compiled(name, function, *args):
    phase(f"compiling {name}")
    start = time.perf_counter()
    program = function.lower(*args).compile()
    seconds, said = time.perf_counter() - start, program.memory_analysis()
    programs[name] = Program(
      said.argument_size_in_bytes,
      said.output_size_in_bytes - said.alias_size_in_bytes,
      said.temp_size_in_bytes,
      seconds,
    )
    return program.out_info  # shapes with the shardings that XLA chose

  with jax.set_mesh(mesh):
    batch = sharding.batch_sharding(mesh)

    def array(dtype, *shape):
      return jax.ShapeDtypeStruct(shape, dtype, sharding=batch)

    params = jax.tree.map(_shape, run.params)
    state = compiled("the optimizer's state", jax.jit(_init, static_argnums=1), params, run.update)
    estimator_state = jax.eval_shape(run.estimator.init, params)
    reference = params if run.keeps_reference else ()
    decoding = compiled("the sampler's layout", run.sampling_params, params)
    width = config.task.max_prompt_length
    prompts = Prompts(array(np.int32, groups, width), array(bool, groups, width))
    sample = jax.jit(rollout.sample, static_argnums=(0, 4))
    key = jax.eval_shape(lambda: jax.random.key(0))
    rollouts = compiled("the sampler", sample, model, decoding, prompts, key, run.rollout)

    score, ids = array(np.float32, groups, n), array(np.int32, groups)
    told = array(np.float32, groups, run.estimator.reference_n) if run.estimator.reference_n else ()
    earned = array(np.float32, groups, n, length)
    experience = Experience(rollouts, score, earned, ids, ids, ids, told)
    advantages = jax.eval_shape(run.estimator.estimate, estimator_state, experience)[0]
    age = ids if run.collect.dynamic_sampling else None

    count = 0

    def learning_batch(params, rollouts, advantages, reference, age):
      nonlocal count
      rows, count = update.learning_batch(
        model, params, rollouts, advantages, run.update, reference, age
      )
      return rows

    rows = jax.eval_shape(learning_batch, params, rollouts, advantages, reference, age)
    needed = {"old_logprobs", "reference_logprobs"} & set(rows)
    if needed - ({"old_logprobs"} if run.update.old_logprobs == "sampler" else set()):
      fresh = jax.eval_shape(update.response_batch, rollouts)
      compiled("log-probs", update.recompute, model, params, fresh, run.update)
    size = run.update.minibatch_size
    minibatch = jax.tree.map(lambda x: array(x.dtype, size, *x.shape[1:]), rows)
    compiled("the update", update.minibatch_step, model, run.update, state, minibatch)

  parameters = _bytes(params)
  caches = token_bytes(model, run.rollout.cache_dtype or config.model.dtype)
  caches *= groups * (n * length + width)
  caches //= sharding.batch_shards(mesh) * mesh.shape["tensor"]
  sampler, learning = programs["the sampler"], programs["the update"]
  logprobs = programs.get("log-probs", Program(0, 0, 0, 0.0))
  said = _bytes(rollouts)
  devices = jax.devices()
  shared = devices[0].platform == "cpu"
  real = sum(x.nbytes for x in jax.tree.leaves(run.params) if isinstance(x, jax.Array))
  return Plan(
    sizes={
      "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(params)),
      "devices": len(devices),
      "prompts a step": groups,
      "rollouts a step": config.rollouts,
      "tokens sampled a step, at most": config.rollouts * length,
      "tokens trained on a step, prompts and padding included": config.rollouts * (width + length),
      "optimizer steps a batch": count,
      "micro-batches an optimizer step": size // run.update.microbatch_size,
      "warm-start steps": run.warm_start.steps,
      "steps": config.steps,
      "rollouts in all": config.steps * config.rollouts,
      "tokens sampled in all, at most": config.steps * config.rollouts * length,
    },
    always={
      "parameters": parameters,
      "optimizer": _bytes(state.opt_state),
      "estimator's memory (probe and buffer, critic, tracker)": _bytes(estimator_state),
      **({"reference policy": _bytes(reference)} if reference else {}),
    },
    sampling={
      "sampling copy of the parameters": _bytes(decoding),
      "caches": min(caches, sampler.temporary),
      "activations and logits": max(sampler.temporary - caches, 0),
      "rollouts": said,
    },
    updating={
      "rollouts and their batch": said + _bytes(rows),
      "gradients": min(parameters, learning.temporary),
      "activations and logits": max(learning.temporary - parameters, logprobs.temporary),
      "results": learning.outputs,
    },
    programs=programs,
    process=max(_resident() - real, 0) if shared else 0,
    limit=_memory(devices[0]),
    sharing=len(jax.local_devices()) if shared else 1,
  )


def _init(params, config):
  return update.init(params, config)


def _shape(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _bytes(tree: Any) -> int:
  """What a tree of arrays or shapes takes on one device."""

  def one(x):
    shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    return math.prod(shape) * x.dtype.itemsize

  return sum(one(x) for x in jax.tree.leaves(tree))


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
