"""Accelerators to plan for: their memory and speed, and names of topologies such as v5p:4x4x4."""

import dataclasses
import math
import re

import jax
from jax.experimental import topologies

from poise_jax.errors import UserError, unknown_name

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Capacity of one chip."""

  memory: int  # bytes available to a program
  flops: float  # peak per second: dense bfloat16 products
  bandwidth: float  # bytes per second between the chip and its memory


CHIPS = {
  # Peak and bandwidth: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e. Memory: what libtpu's
  # compiler lets a program use of 32, 16, 95 and 32 GiB.
  "v4": Chip(int(31.75 * GIB), 275e12, 1228e9),
  "v5e": Chip(int(15.75 * GIB), 197e12, 819e9),
  "v5p": Chip(int(95.74 * GIB), 459e12, 2765e9),
  "v6e": Chip(int(31.25 * GIB), 918e12, 1640e9),
  # NVIDIA's data sheet of the H100 SXM5; nine tenths of 80 GB, as a process cannot use all of it.
  "h100": Chip(int(72e9), 989e12, 3350e9),
}


def parse_topology(topology: str) -> tuple[str, int]:
  """Name and number of chips of a topology such as v5p:4x4x4 or h100:8.

  Raises:
    UserError: the name is malformed or the chip unknown.
  """
  match = re.fullmatch(r"([a-z]\w*):(\d+(?:x\d+)*)", topology)
  if not match:
    raise UserError(
      f"--topology={topology} must be CHIP:SHAPE, such as v5e:8x8, v5p:4x4x4 or h100:8; "
      f"choose CHIP from {', '.join(sorted(CHIPS))}"
    )
  chip, shape = match.groups()
  if chip not in CHIPS:
    raise unknown_name("chip in --topology", chip, CHIPS)
  return chip, math.prod(map(int, shape.split("x")))


def topology_devices(topology: str) -> list[jax.Device] | int:
  """Devices to compile for, one per chip; for GPUs, which are not compiled for, their number.

  Raises:
    UserError: the topology does not exist, or libtpu is not installed.
  """
  chip, count = parse_topology(topology)
  if chip == "h100":
    return count
  try:
    # The two cores of a v4 or v5p chip are one device ("megacore"), as on a real slice.
    options = {"chip_config_name": "megacore"} if chip == "v4" else {}
    devices = topologies.get_topology_desc(topology, platform="tpu", **options).devices
  except Exception as error:  # its type depends on what is missing
    text = " ".join(str(error).split())
    if "opology" in text and "layout" in text:
      raise UserError(
        f"--topology={topology} is not a slice that exists ({text}); v4 and v5p have three "
        "dimensions, such as v5p:2x2x4, v5e and v6e two, such as v5e:4x8"
      ) from error
    raise UserError(
      "compiling for TPUs needs libtpu, but no TPU; run pip install "
      f"'jax[tpu]=={jax.__version__}' in a separate environment ({text[:200]})"
    ) from error
  if len(devices) != count:
    raise UserError(f"--topology={topology} has {len(devices)} devices instead of {count}")
  return list(devices)
