"""What a run would take on chips that are not here: compiled ahead of time for a slice of TPUs,
estimated by arithmetic for GPUs.

Nothing is loaded: the config's model.shape says all that counts. The compiler for TPUs comes with
libtpu, which needs no TPU to compile for one.
"""

import dataclasses
import importlib.metadata
import json
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from poise_jax import models
from poise_jax.distributed import sharding
from poise_jax.errors import UserError, unknown_name
from poise_jax.files import write_whole
from poise_jax.learner.losses import chunk_of
from poise_jax.learner.update import samples_together
from poise_jax.planning import flops as costs
from poise_jax.planning import hlo
from poise_jax.planning import memory as dry_run
from poise_jax.provenance import describe, provenance
from poise_jax.rollout.sampler import stages
from poise_jax.training import train


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip can do."""

  memory: int  # bytes that a program can have
  flops: float  # a second, bfloat16 products, without sparsity
  bandwidth: float  # bytes a second between the chip and its memory


GIB = 2**30
CHIPS = {
  # cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e: peak and bandwidth. Memory: what libtpu's
  # compiler says it may use of 32, 16, 95 and 32 GiB.
  "v4": Chip(int(31.75 * GIB), 275e12, 1228e9),
  "v5e": Chip(int(15.75 * GIB), 197e12, 819e9),
  "v5p": Chip(int(95.74 * GIB), 459e12, 2765e9),
  "v6e": Chip(int(31.25 * GIB), 918e12, 1640e9),
  # NVIDIA's H100 data sheet, SXM5; nine tenths of 80 GB, as a process cannot have all of it.
  "h100": Chip(int(72e9), 989e12, 3350e9),
}


def parse(topology: str) -> tuple[str, int]:
  """Name and number of the chips of a topology such as v5p:4x4x4 or h100:8.

  Raises:
    UserError: it is none that is known.
  """
  found = re.fullmatch(r"([a-z]\w*):(\d+(?:x\d+)*)", topology)
  if not found:
    raise UserError(
      f"--topology={topology!r} is no topology; write CHIP:SHAPE, such as v5e:8x8, v5p:4x4x4 or "
      f"h100:8, with a chip out of {', '.join(CHIPS)}"
    )
  chip, shape = found.groups()
  if chip not in CHIPS:
    raise unknown_name("chip in --topology", chip, CHIPS)
  return chip, math.prod(map(int, shape.split("x")))


def devices(topology: str) -> list | int:
  """jax.Devices to compile for, one a chip; of GPUs, which are not compiled for, their number.

  Raises:
    UserError: there is no such topology, or libtpu is not installed.
  """
  chip, count = parse(topology)
  if chip == "h100":
    return count
  try:
    # Two cores of a v4 or v5p chip are one device ("megacore"), as they are where programs run.
    how = {"chip_config_name": "megacore"} if chip == "v4" else {}
    found = topologies.get_topology_desc(topology, platform="tpu", **how).devices
  except Exception as error:  # which one depends on what is missing
    text = " ".join(str(error).split())
    if "opology" in text and "layout" in text:
      raise UserError(
        f"--topology={topology}: there is no such slice ({text}); v4 and v5p have three sizes, "
        "such as v5p:2x2x4, v5e and v6e two, such as v5e:4x8"
      ) from error
    raise UserError(
      "compiling for TPUs needs libtpu, which needs no TPU: pip install "
      f"'jax[tpu]=={jax.__version__}' into an environment of its own ({text[:200]})"
    ) from error
  if len(found) != count:
    raise UserError(f"--topology={topology} has {len(found)} devices instead of {count}")
  return list(found)


def programs(config: ConfigDict, topology: str) -> train.Programs:
  """The programs of a step of `config` on a mesh of such chips, not compiled yet.

  Tokens that a tokenizer would name are made up, and a task is taken to have config.task.train
  prompts: neither changes a shape that matters.

  Raises:
    UserError: config.model.shape is not whole, or something does not fit the mesh.
  """
  needed = {"model_type", "vocab_size", "hidden_size", "num_hidden_layers"}
  if missing := needed - set(config.model.shape):
    raise UserError(
      f"config.model.shape lacks {', '.join(sorted(missing))}; compiling needs the whole shape, as "
      "configs/qwen3_4b_dapo_math.py has it, and no weights"
    )
  config = config.copy_and_resolve_references()
  mesh = sharding.make_mesh(**config.mesh, devices=devices(topology))
  model = models.ModelConfig(**config.model.shape)
  return train.programs(
    config,
    mesh,
    model,
    train.abstract_params(mesh, model),
    eos_ids=(1,),
    think_end=(2,) if config.task.think_end else (),
    prompts=config.task.train,
  )


def report(
  config: ConfigDict, topology: str, phase: Callable[[str], None] = lambda _: None
) -> tuple[dry_run.Plan, dict[str, Any]]:
  """What a step of `config` takes on `topology`.

  Returns:
    The memory, and the rest as data: FLOPs and bytes a chip against the model's own, what a
    roofline says of time, and arrays that should not be there.

  Raises:
    UserError: see `devices` and `programs`.
  """
  run = programs(config, topology)
  name, _ = parse(topology)
  chip = CHIPS[name]
  compiled = not isinstance(run.mesh, jax.sharding.AbstractMesh)
  step = dry_run.arrays(run)
  if compiled:
    texts = {}
    plan = dry_run.plan(
      run, phase, chip.memory, lambda name, program: texts.update({name: program.as_text()})
    )
    phase("counting FLOPs and bytes")
    read = {name: hlo.Program(text) for name, text in texts.items()}
    work = measured(run, step, read)
  else:
    plan = dry_run.accounted(run, step, estimated_programs(run, step), chip.memory)
    work = estimated_work(run, step)
  work["roofline"] = roofline(run, step, chip, work)
  return plan, {"compiled": compiled, "mesh": dict(run.mesh.shape), **work}


def own(run: train.Programs, step: dry_run.Arrays) -> dict[str, float]:
  """FLOPs a chip that the model itself needs, by program."""
  prompt, response = run.config.task.max_prompt_length, run.rollout.max_new_tokens
  rows, chips = run.config.rollouts, run.mesh.size
  together = samples_together(run.rollout.n, run.update, run.mesh)
  sequence = costs.training_flops(run.model, prompt, together, response) / together
  of_prompt = costs.sampling_flops(run.model, prompt, run.rollout.n, response)
  return {
    "the sampler": of_prompt * rows / run.rollout.n / chips,
    "log-probs": sequence / 3 * rows / chips,
    "the update": sequence * run.update.minibatch_size / chips,
  }


def caches(run: train.Programs, positions: int) -> tuple[float, float]:
  """Bytes on a chip of the prompts' caches, and of responses of so many positions."""
  n, length, width = run.rollout.n, run.rollout.max_new_tokens, run.config.task.max_prompt_length
  whole = dry_run.cache_bytes(run) / (n * length + width)
  return whole * width, whole * n * positions


def decode(run: train.Programs, step: dry_run.Arrays) -> list[dict[str, float]]:
  """By stage of the sampler's caches: how many steps it has at most, and the least they read."""
  found, before = [], 0
  for size in stages(run.rollout.max_new_tokens):
    least = costs.decode_bytes(step.decoding, run.model.tie_word_embeddings, *caches(run, size))
    found.append({"positions": size, "steps": size - before, "least_bytes": least})
    before = size
  return found


def measured(run, step, read: dict[str, hlo.Program]) -> dict[str, Any]:
  """FLOPs and bytes of the compiled programs, and arrays that should not be in them."""
  needs = own(run, step)
  flops = {
    name: {"xla": program.flops(), "own": needs[name], "sent_bytes": program.sent()}
    for name, program in read.items()
    if name in ("log-probs", "the update")
  }
  decoding = decode(run, step)
  lengths = (run.config.task.max_prompt_length, run.rollout.max_new_tokens)
  too_large = {
    name: too_large_arrays(program, run.model, run.mesh.shape["tensor"], *lengths)
    for name, program in read.items()
  }
  found = {
    "flops": flops,
    "decode": decoding,
    "too_large": {k: v for k, v in too_large.items() if v},
  }
  if "the sampler" not in read:  # it did not fit
    return found
  sampler = read["the sampler"]
  loops = [x for where, x in sampler.loops() if where == sampler.entry and not sampler.trips(x)]
  if len(loops) != len(decoding):
    raise UserError(f"the sampler has {len(loops)} decode loops instead of {len(decoding)}")
  for stage, loop in zip(decoding, loops, strict=True):
    body = loop.attribute("body")
    stage |= {"bytes": sampler.traffic(body), "flops": sampler.flops(body)}
    stage["sent_bytes"] = sampler.sent(body)
  once = sum(stage["flops"] for stage in decoding)
  flops["prefill"] = {
    "xla": sampler.flops() - once,
    "own": costs.forward_flops(run.model, run.config.task.max_prompt_length, 1)
    * run.config.rollouts
    / run.rollout.n
    / run.mesh.size,
  }
  return found


def too_large_arrays(
  program: hlo.Program, model: models.ModelConfig, tensor: int, prompt: int, response: int
) -> list[str]:
  """Arrays like [B, T, V] or [B, H, T, T]: with a vocabulary axis beside at least T elements, or
  with two axes of a sequence's length. A length that is also one of the model's widths cannot be
  told from it and is not looked for."""
  c = model
  vocabulary = {c.vocab_size, c.vocab_size // tensor}
  widths = {c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim}
  widths |= {c.num_key_value_heads * c.head_dim, *vocabulary}
  widths |= {x // tensor for x in widths}
  lengths = {prompt, response, prompt + response}
  lengths |= {-(-x // unit) * unit for x in lengths for unit in (128, 512)}
  lengths -= widths
  found = set()
  for instruction, array in program.buffers():
    rest = list(array.shape)
    for size in vocabulary & set(rest):
      if math.prod(rest) // size >= response:
        found.add(f"{array.dtype}{rest} with a vocabulary axis ({instruction.opcode})")
    if sum(x in lengths for x in rest) > 1:
      found.add(f"{array.dtype}{rest} with two sequence axes ({instruction.opcode})")
  return sorted(found)


def estimated_programs(run, step) -> dict[str, dry_run.Program]:
  """Temporary memory by arithmetic: caches or saved activations, one layer's work, logits."""
  c, tensor = run.model, run.mesh.shape["tensor"]
  shards, size = sharding.batch_shards(run.mesh), 2
  prompt, response = run.config.task.max_prompt_length, run.rollout.max_new_tokens
  width = (3 * c.intermediate_size + 4 * c.num_attention_heads * c.head_dim) // tensor
  width += 4 * c.hidden_size  # of one layer's activations, a position

  prompts = run.config.rollouts // run.rollout.n // shards
  logits = 4 * 4 * run.config.rollouts // shards * c.vocab_size // tensor
  chunk = run.rollout.prefill_chunk or prompt
  sampler = dry_run.cache_bytes(run) + max(prompts * chunk * width * size, logits)

  rows = run.update.microbatch_size // shards
  kept = {"none": c.num_hidden_layers * width, "full": c.num_hidden_layers * c.hidden_size}
  kept["dots"] = c.num_hidden_layers * (width - 2 * c.hidden_size)
  passes = rows // samples_together(run.rollout.n, run.update, run.mesh)  # over prompts
  positions = rows * response + passes * prompt
  activations = positions * size * (kept[run.update.remat] + 3 * width)
  learning = 2 * costs.device_bytes(step.params) + activations
  chunk = run.update.logprob_chunk or chunk_of(c.vocab_size // tensor)
  learning += 3 * 4 * chunk * c.vocab_size // tensor
  return {
    "the sampler": dry_run.Program(0, 0, sampler, 0.0),
    "the update": dry_run.Program(0, 0, learning, 0.0),
  }


def estimated_work(run, step) -> dict[str, Any]:
  """The model's own FLOPs, with what rematerialisation adds, and the least bytes of decoding."""
  needs = own(run, step)
  again = 4 / 3 if run.update.remat == "full" else 1.0
  flops = {"the update": {"estimate": needs["the update"] * again, "own": needs["the update"]}}
  if "old_logprobs" in step.rows and run.update.old_logprobs == "recompute":
    flops["log-probs"] = {"estimate": needs["log-probs"], "own": needs["log-probs"]}
  return {"flops": flops, "decode": decode(run, step), "too_large": {}}


def roofline(run, step, chip: Chip, work: dict[str, Any]) -> dict[str, float]:
  """Seconds of a step, and tokens a second, if products ran at their peak and memory at its
  bandwidth, and sending between chips took no time. No run is as fast."""

  def at_peak(name):
    counted = work["flops"].get(name, {})
    return counted.get("xla", counted.get("estimate", 0.0)) / chip.flops

  prefill = costs.forward_flops(run.model, run.config.task.max_prompt_length, 1)
  prefill *= run.config.rollouts / run.rollout.n / run.mesh.size / chip.flops
  sampling = prefill + sum(
    stage["steps"]
    * max(
      stage.get("bytes", stage["least_bytes"]) / chip.bandwidth,
      stage.get("flops", 0.0) / chip.flops,
    )
    for stage in work["decode"]
  )
  updating = at_peak("log-probs") + step.count * at_peak("the update")
  tokens = run.config.rollouts * run.rollout.max_new_tokens
  return {
    "sampling_seconds": sampling,
    "updating_seconds": updating,
    "sampled_tokens_per_second": tokens / sampling,
    "trained_tokens_per_second": tokens / updating,
    "step_tokens_per_second": tokens / (sampling + updating),
  }


def text(plan: dry_run.Plan, work: dict[str, Any]) -> str:
  """FLOPs, bytes and the roofline in words."""
  how = "compiled" if work["compiled"] else "by arithmetic, nothing was compiled"
  mesh = " x ".join(f"{axis} {size}" for axis, size in work["mesh"].items())
  lines = [f"{how}; mesh {mesh}"]
  for name, counted in work["flops"].items():
    done = counted.get("xla", counted.get("estimate"))
    lines.append(
      f"FLOPs a chip, {name}: {done:.3e}, the model's own {counted['own']:.3e}: "
      f"{done / counted['own']:.2f} x"
    )
  for stage in work["decode"]:
    least = stage["least_bytes"]
    said = f"caches of {stage['positions']} response positions: "
    if "bytes" in stage:
      said += f"{stage['bytes'] / 1e9:.2f} GB a step, {stage['bytes'] / least:.2f} x the least, "
    lines.append(f"{said}{least / 1e9:.2f} GB (weights and caches read once)")
  said = work["roofline"]
  lines.append(
    f"roofline: sampling {said['sampling_seconds']:.0f} s a step at full length "
    f"({said['sampled_tokens_per_second']:,.0f} tokens/s), updating "
    f"{said['updating_seconds']:.0f} s ({said['trained_tokens_per_second']:,.0f} tokens/s), "
    f"both together {said['step_tokens_per_second']:,.0f} tokens/s"
  )
  for name, arrays in work["too_large"].items():
    lines += [f"{name} holds {array}" for array in arrays]
  if work["compiled"] and not work["too_large"]:
    lines.append("no [B, T, V] and no [B, H, T, T] array in any program")
  return "\n".join(lines)


def write_row(
  out: pathlib.Path,
  asked: list[str],
  config: str,
  topology: str,
  plan: dry_run.Plan,
  work: dict[str, Any],
):
  """Adds a report to the results.json in `out`, in place of an earlier one of the same command, and
  writes README.md from all of them."""
  out.mkdir(parents=True, exist_ok=True)
  path = out / "results.json"
  rows = json.loads(path.read_text()) if path.exists() else {}
  rows[" ".join(asked)] = {
    "config": config,
    "topology": topology,
    "fits": plan.fits,
    "peak": plan.peak,
    "limit": plan.limit,
    "memory": {"always": plan.always, "sampling": plan.sampling, "updating": plan.updating},
    "seconds": {name: round(x.seconds, 1) for name, x in plan.programs.items()},
    **work,
    **provenance(),
    "libtpu": importlib.metadata.version("libtpu") if work["compiled"] else None,
  }
  rows = dict(sorted(rows.items(), key=lambda x: (x[1]["config"], x[1]["topology"])))
  write_whole(path, json.dumps(rows, indent=1) + "\n")
  parts = [f"# {out.name}", table(rows), NOTES, describe(list(rows.values()))]
  write_whole(out / "README.md", "\n\n".join(parts) + "\n")


def table(rows: dict[str, dict[str, Any]]) -> str:
  """The reports in Markdown, a line each."""
  columns = {
    "config": lambda r: (
      f"{pathlib.Path(r['config'].partition(':')[0]).stem}:" + r["config"].partition(":")[2]
    ),
    "chips": lambda r: r["topology"] + ("" if r["compiled"] else " (arithmetic)"),
    "mesh": lambda r: " x ".join(map(str, r["mesh"].values())),
  }
  for when, name, title in (
    ("always", "parameters", "parameters"),
    ("always", "optimizer", "optimizer"),
    ("always", "estimator's memory (probe and buffer, critic, tracker)", "probe or critic"),
    ("sampling", "sampling copy of the parameters", "sampling copy"),
    ("sampling", "caches", "caches"),
    ("sampling", "activations and logits", "rest of sampling"),
    ("updating", "gradients", "gradients"),
    ("updating", "activations and logits", "rest of updating"),
  ):
    columns[title] = lambda r, when=when, name=name: f"{r['memory'][when].get(name, 0) / GIB:.2f}"
  columns["peak / memory"] = lambda r: f"{r['peak'] / GIB:.1f} / {r['limit'] / GIB:.1f}"
  columns["fits"] = lambda r: "yes" if r["fits"] else "no"
  columns["training FLOPs"] = lambda r: _times(r["flops"]["the update"], "own", "xla", "estimate")
  columns["decode bytes"] = lambda r: _times(r["decode"][-1], "least_bytes", "bytes")
  for kind in ("sampled", "trained", "step"):
    columns[f"{kind} tokens/s"] = lambda r, kind=kind: (
      f"{r['roofline'][f'{kind}_tokens_per_second']:,.0f}"
    )
  lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
  lines += [f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows.values()]
  return "\n".join(lines)


NOTES = """Memory in GiB a chip; mesh as data x fsdp x tensor. Training FLOPs: those of the compiled
update, loops counted as often as they run, against the model's own (6ND and causal attention).
Decode bytes: what a step of the decode loop moves to and from the chip's memory, against weights
and caches read once, while the caches have their full length. Tokens a second are a roofline:
products at their peak, memory at its bandwidth, nothing for sending between chips; no run is as
fast."""


def _times(counted, own, *names):
  done = next((counted[name] for name in names if name in counted), None)
  return "" if done is None else f"{done / counted[own]:.2f} x"
