"""Topology reports as text, and as rows of a results.json with a Markdown table of them."""

import dataclasses
import importlib.metadata
import json
import pathlib
from typing import Any

from poise_jax.files import write_whole
from poise_jax.planning.chips import GIB
from poise_jax.planning.topology import TopologyReport
from poise_jax.provenance import describe, provenance
from poise_jax.reports import markdown

MEMORY_COLUMNS = (  # (title, part of the memory report, name in it)
  ("parameters", "always", "parameters"),
  ("optimizer", "always", "optimizer"),
  ("probe or critic", "always", "estimator (probe and buffer, critic, tracker)"),
  ("sampling copy", "sampling", "sampling copy of the parameters"),
  ("caches", "sampling", "caches"),
  ("rest of sampling", "sampling", "activations and logits"),
  ("gradients", "updating", "gradients"),
  ("rest of updating", "updating", "activations and logits"),
)
RAGGED_COLUMNS = (  # (title, name of the seconds in a row)
  ("lock-step decoding / the least", "lockstep"),
  ("each row's positions / the least", "resident"),
  ("fewer slots / the least", "slots"),
)
NOTES = """Memory is in GiB per chip. The mesh is data x fsdp x tensor. Training FLOPs: those of the
compiled update, every loop multiplied by its trip count, relative to the model's own (6ND and
causal attention). Decode bytes: traffic between a chip and its memory in one decode step with
caches of full length, relative to reading weights and caches once. Useful positions: share of the
positions of the update's passes that hold a token. With lengths, decode time by roofline is
relative to the least: as many steps as the longest answer has tokens, each reading the weights
once, each response's keys and values up to its own position, and a prompt's once for all samples.
Fewer slots: those of the config, or a quarter of the rows if each row has a slot. Tokens per second
are a roofline: products at peak speed, memory at full bandwidth, communication between chips free.
No run is faster."""


def text(report: TopologyReport) -> str:
  """FLOPs, bytes and roofline, one line each."""
  source = "compiled" if report.compiled else "estimated by arithmetic, nothing was compiled"
  mesh = " x ".join(f"{axis} {size}" for axis, size in report.mesh.items())
  lines = [f"{source}; mesh {mesh}"]
  for name, count in report.flops.items():
    lines.append(
      f"FLOPs per chip, {name}: {count.program:.3e}, the model's own {count.model:.3e}: "
      f"{count.program / count.model:.2f} x"
    )
  decode = report.decode
  line = f"decode step, caches of {decode.positions} response positions: "
  if decode.bytes is not None:
    line += f"{decode.bytes / 1e9:.2f} GB, {decode.bytes / decode.least_bytes:.2f} x the least, "
  lines.append(f"{line}{decode.least_bytes / 1e9:.2f} GB (weights and caches read once)")
  lines.append(f"positions of the update that hold a token: {report.useful_positions:.1%}")
  if report.ragged:
    lines += _ragged(report.ragged)
  times = report.roofline
  lines.append(
    f"roofline: sampling {times.sampling_seconds:.0f} s per step in lock-step "
    f"({times.sampled_tokens_per_second:,.0f} tokens/s), updating "
    f"{times.updating_seconds:.0f} s ({times.trained_tokens_per_second:,.0f} tokens/s), "
    f"both together {times.step_tokens_per_second:,.0f} tokens/s"
  )
  for name, arrays in report.large_arrays.items():
    lines += [f"{name} holds {array}" for array in arrays]
  if report.compiled and not report.large_arrays:
    lines.append("no [B, T, V] and no [B, H, T, T] array in any program")
  return "\n".join(lines)


def _ragged(times):
  least = times.least_seconds
  parts = (
    ("in lock-step", times.lockstep_seconds, f"; {times.useful_rows:.0%} of its rows are useful"),
    ("all rows, each reading its own positions", times.resident_seconds, ""),
    (
      f"{times.slots} slots on each device",
      times.slots_seconds,
      f"; {times.useful_slots:.0%} of their rows are useful",
    ),
  )
  yield f"decode time by roofline, the least: {least:.1f} s"
  for name, seconds, more in parts:
    ratio = f"{seconds / least:.2f} x the least"
    yield f"decode time by roofline, {name}: {seconds:.1f} s, {ratio}{more}"
  step = f"{times.step_tokens_per_second:,.0f} tokens/s"
  yield f"whole step, each row reading its own positions: {step}"


def write_row(
  folder: pathlib.Path, arguments: list[str], config: str, topology: str, report: TopologyReport
):
  """Adds a report to the results.json in `folder`, where it replaces an earlier row of the same
  command, and writes README.md from all rows.

  Args:
    folder: is created if it does not exist.
    arguments: the command's; the key of the row.
    config: FILE.py:ALGORITHM.
    topology: CHIP:SHAPE.
    report: of this config and topology.
  """
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "results.json"
  rows = json.loads(path.read_text()) if path.exists() else {}
  rows[" ".join(arguments)] = {
    "config": config,
    "topology": topology,
    **_row(report),
    **provenance(),
    "libtpu": importlib.metadata.version("libtpu") if report.compiled else None,
  }
  rows = dict(sorted(rows.items(), key=lambda item: (item[1]["config"], item[1]["topology"])))
  write_whole(path, json.dumps(rows, indent=1) + "\n")
  write_whole(folder / "README.md", readme(folder.name, list(rows.values())))


def readme(title: str, rows: list[dict[str, Any]]) -> str:
  """README.md of rows of a results.json."""
  cells = [_cells(row) for row in rows]
  table = markdown.table(list(cells[0]), [list(row.values()) for row in cells])
  return "\n\n".join([f"# {title}", table, NOTES, describe(rows)]) + "\n"


def _row(report):
  """A report as JSON."""

  def as_json(value):
    return {k: v for k, v in dataclasses.asdict(value).items() if v is not None}

  memory = report.memory
  return {
    "fits": memory.fits,
    "peak": memory.peak,
    "limit": memory.limit,
    "memory": {part: getattr(memory, part) for part in ("always", "sampling", "updating")},
    "seconds": {name: round(program.seconds, 1) for name, program in memory.programs.items()},
    "compiled": report.compiled,
    "mesh": report.mesh,
    "flops": {name: as_json(count) for name, count in report.flops.items()},
    "decode": as_json(report.decode),
    "large_arrays": report.large_arrays,
    "roofline": as_json(report.roofline),
    "useful_positions": report.useful_positions,
    "lengths": report.lengths,
    "ragged": report.ragged and as_json(report.ragged),
  }


def _cells(row):
  """{column: cell} of a row."""
  file, _, algorithm = row["config"].partition(":")
  update, decode = row["flops"].get("the update"), row["decode"]
  cells = {
    "config": f"{pathlib.Path(file).stem}:{algorithm}",
    "chips": row["topology"] + ("" if row["compiled"] else " (arithmetic)"),
    "mesh": " x ".join(map(str, row["mesh"].values())),
  }
  for title, part, name in MEMORY_COLUMNS:
    cells[title] = f"{row['memory'][part].get(name, 0) / GIB:.2f}"
  cells["peak / memory"] = f"{row['peak'] / GIB:.1f} / {row['limit'] / GIB:.1f}"
  cells["fits"] = "yes" if row["fits"] else "no"
  cells["training FLOPs"] = f"{update['program'] / update['model']:.2f} x" if update else ""
  cells["decode bytes"] = (
    f"{decode['bytes'] / decode['least_bytes']:.2f} x" if "bytes" in decode else ""
  )
  useful, ragged = row.get("useful_positions"), row.get("ragged")
  cells["lengths"] = row.get("lengths") or "at the limit"
  cells["useful positions"] = f"{useful:.0%}" if useful else ""
  for title, name in RAGGED_COLUMNS:
    ratio = ragged[f"{name}_seconds"] / ragged["least_seconds"] if ragged else 0
    cells[title] = f"{ratio:.2f} x" if ragged else ""
  for kind in ("sampled", "trained", "step"):
    cells[f"{kind} tokens/s"] = f"{row['roofline'][f'{kind}_tokens_per_second']:,.0f}"
  step = f"{ragged['step_tokens_per_second']:,.0f}" if ragged else ""
  cells["step tokens/s, each row's positions"] = step
  return cells
