"""What a compiled program does, read from its optimised HLO: FLOPs, bytes of memory, buffers.

XLA's own cost analysis counts the body of a loop once, whatever its trip count. Here each loop's
body is analysed as a program of its own, by the same analysis, and counted as often as it runs. A
kernel that XLA does not look into (a Pallas call) counts what its operands' shapes say.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import jax
from jaxlib import _hlo, _jax

from poise_jax.errors import UserError

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16}
BITS |= {"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64}

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.-]+) = (.*)$")
_CALLED = re.compile(
  r"(?:calls|body|condition|to_apply|called_computations|branch_computations|\w+_computation)="
  r"(\{[^}]*\}|%[\w.-]+)"
)
_REMARKS = re.compile(r", (?:frontend_attributes|metadata|backend_config)=")
NO_TRAFFIC = {  # names for what is there already, or the end of what was begun
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "conditional",
  "call",
  "after-all",
  "iota",
  "partition-id",
  "copy-done",
  "slice-done",
  "async-done",
  "async-update",
  "all-gather-done",
  "all-reduce-done",
  "collective-permute-done",
  "opt-barrier",
  "custom-call",
}
COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"}
SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Array:
  """A buffer's type."""

  dtype: str
  shape: tuple[int, ...]
  near: bool  # in memory of the core itself (VMEM and the like), not in the device's

  @property
  def bytes(self) -> int:
    """Without the padding of a layout's tiles."""
    return math.prod(self.shape) * BITS.get(self.dtype, 8) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a computation."""

  name: str
  arrays: tuple[Array, ...]  # what it returns; several of a tuple
  opcode: str
  operands: tuple[str, ...]
  text: str
  root: bool

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Names of the computations it uses."""
    found = (re.findall(r"%([\w.-]+)", x) for x in _CALLED.findall(self.text))
    return tuple(name for names in found for name in names)

  def attribute(self, name: str) -> str:
    """The computation that `name` says, such as a loop's body."""
    return re.search(rf"\b{name}=%([\w.-]+)", self.text)[1]


class Program:
  """A compiled program's computations, from `jax.stages.Compiled.as_text()`."""

  def __init__(self, text: str):
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.lines: dict[str, list[str]] = {}
    current = None
    for line in _whole_lines(text):
      if found := _COMPUTATION.match(line):
        current = found[2]
        self.computations[current], self.lines[current] = {}, [line.removeprefix("ENTRY ")]
        if found[1]:
          self.entry = current
      elif current:
        self.lines[current].append(_REMARKS.split(line, maxsplit=1)[0])
        if line == "}":
          current = None
        elif read := _instruction(line):
          self.computations[current][read.name] = read
    self._xla = functools.cache(self._analysed)

  def loops(self) -> Iterator[tuple[str, Instruction]]:
    """(computation, while) of every loop that runs."""
    for name in self._reached(self.entry):
      for instruction in self.computations[name].values():
        if instruction.opcode == "while":
          yield name, instruction

  def trips(self, loop: Instruction) -> int | None:
    """How often a loop runs; None if only running it tells."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
      return int(known[1])
    condition = self.computations[loop.attribute("condition")]
    root = next(x for x in condition.values() if x.root)
    counter = [condition[name] for name in root.operands]
    if root.opcode == "fusion":
      root = next(x for x in self.computations[root.called[0]].values() if x.root)
    limits = [x for x in condition.values() if x.opcode == "constant"]
    counter = [x for x in counter if x.opcode == "get-tuple-element"]
    if root.opcode != "compare" or "direction=LT" not in root.text or len(limits) != 1:
      return None
    return -(-_constant(limits[0]) // self._stride(loop, _index(counter[0])))

  def _stride(self, loop, index):
    """What a loop adds to its counter, the element of that index, each time; it may be unrolled."""
    body = self.computations[loop.attribute("body")]
    value = body[next(x for x in body.values() if x.root).operands[index]]
    stride = 0
    while value.opcode in ("add", "fusion", "copy"):
      operands = [body[name] for name in value.operands]
      constants = [x for x in operands if x.opcode == "constant"]
      if value.opcode == "fusion" and not constants:  # the constant is inside
        inside = self.computations[value.called[0]].values()
        constants = [x for x in inside if x.opcode == "constant"]
      stride += sum(map(_constant, constants))
      value = next(x for x in operands if x.opcode != "constant")
    if value.opcode != "get-tuple-element" or not stride:
      raise UserError(f"cannot tell how often a loop runs: {loop.text[:200]}")
    return stride

  def flops(self, computation: str = "") -> float:
    """Of a computation and all that it runs; loops of unknown length count once. Default: all."""
    name = computation or self.entry
    own = self._xla(name)
    for used in self._inlined(name):
      for instruction in self.computations[used].values():
        if instruction.opcode == "custom-call":
          own += kernel_flops(instruction, self.computations[used])
        if instruction.opcode == "while":
          parts = [instruction.attribute(part) for part in ("body", "condition")]
          own -= sum(self._xla(part) for part in parts)
          own += (self.trips(instruction) or 1) * sum(self.flops(part) for part in parts)
    return own

  def traffic(self, computation: str) -> int:
    """Bytes between the cores and the device's memory, of a computation without inner loops.

    An operand or result counts if it lies in the device's memory. Of an operand that is only sliced
    counts the slice, of a buffer that is updated in place counts the update.
    """
    inside = self.computations[computation]
    total = 0
    for x in inside.values():
      if x.opcode in NO_TRAFFIC or (x.opcode == "fusion" and self._only_renames(x)):
        continue
      operands = [inside[name] for name in x.operands if name in inside]
      if x.opcode in SLICES:
        far = (not operands[0].arrays[0].near) + (not x.arrays[0].near)
        total += far * x.arrays[0].bytes
      elif x.opcode == "dynamic-update-slice":
        total += 2 * operands[1].arrays[0].bytes
      elif x.opcode.endswith("-start"):  # (source, target, ...): one of them may be near
        whole = [a for a in x.arrays if a.shape]
        size = min((a.bytes for a in whole), default=0)
        total += size * sum(not a.near for a in whole[:2])
      elif x.opcode == "fusion":
        total += self._fusion(x, operands)
      else:
        arrays = [*x.arrays, *(a for o in operands for a in o.arrays)]
        total += sum(a.bytes for a in arrays if not a.near)
    return total

  def sent(self, computation: str = "") -> dict[str, float]:
    """Bytes that collectives hand to this device, by kind, of a computation and all that it runs;
    loops of unknown length count once. Default: all."""
    total = {}
    for name in self._inlined(computation or self.entry):
      for x in self.computations[name].values():
        kind = x.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
          arrays = x.arrays
          if (
            x.opcode.endswith("-start") and kind != "all-reduce"
          ):  # what is sent, what comes, flags
            arrays = [a for a in arrays if a.shape]
            arrays = arrays[len(arrays) // 2 :]
          total[kind] = total.get(kind, 0.0) + sum(a.bytes for a in arrays)
        elif x.opcode == "while":
          times = self.trips(x) or 1
          for inner, count in self.sent(x.attribute("body")).items():
            total[inner] = total.get(inner, 0.0) + times * count
    return total

  def buffers(self) -> Iterator[tuple[Instruction, Array]]:
    """Every array that a program holds outside of a fusion."""
    for name in self._reached(self.entry, through_fusions=False):
      for instruction in self.computations[name].values():
        for array in instruction.arrays:
          yield instruction, array

  def _fusion(self, fusion, operands):
    body = self.computations[fusion.called[0]]
    users = {}
    for x in body.values():
      for place, name in enumerate(x.operands):
        users.setdefault(name, []).append((x, place))

    def read(name, size):
      """Bytes of a value that are read, of at most `size`."""
      count = 0
      for x, place in users.get(name, []):
        if x.opcode in ("bitcast", "copy", "convert", "reshape", "transpose") and len(body) > 1:
          if x.root:
            return size
          count += read(x.name, size)
        elif x.opcode in SLICES and place == 0:
          count += sum(a.bytes for a in x.arrays)
        elif x.opcode == "dynamic-update-slice" and place == 0:
          count += 0
        else:
          return size
      return min(count, size)

    total = 0
    parameters = {
      int(re.search(r"parameter\((\d+)\)", x.text)[1]): x
      for x in body.values()
      if x.opcode == "parameter"
    }
    for place, operand in enumerate(operands):
      for array in operand.arrays:
        if not array.near:
          total += read(parameters[place].name, array.bytes)
    root = next(x for x in body.values() if x.root)
    outputs = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for output, array in zip(outputs, fusion.arrays, strict=False):
      while output.opcode in ("bitcast", "copy", "convert") and output.operands[0] in body:
        output = body[output.operands[0]]
      size = array.bytes
      if output.opcode == "dynamic-update-slice":
        size = min(size, body[output.operands[1]].arrays[0].bytes)
      total += 0 if array.near else size
    return total

  def _only_renames(self, fusion):
    body = self.computations[fusion.called[0]].values()
    return all(x.opcode in ("parameter", "bitcast", "tuple", "get-tuple-element") for x in body)

  def _reached(self, start, through_fusions=True):
    """`start` and what it uses, each once, what is used first."""
    order, seen = [], set()

    def visit(name):
      if name in seen or name not in self.computations:
        return
      seen.add(name)
      for x in self.computations[name].values():
        if through_fusions or x.opcode in ("while", "conditional", "call"):
          for used in x.called:
            visit(used)
      order.append(name)

    visit(start)
    return order

  def _inlined(self, name):
    """`name` and what it calls, but for loops."""
    found = [name]
    for x in self.computations[name].values():
      if x.opcode in ("call", "conditional", "async-start"):
        for used in x.called:
          found += self._inlined(used)
    return found

  def _analysed(self, name):
    """FLOPs by XLA's analysis of one computation, loops in it counted once."""
    text = ["HloModule one", ""]
    for used in self._reached(name):
      lines = self.lines[used]
      text += [("ENTRY " if used == name else "") + lines[0], *lines[1:], ""]
    module = _hlo.hlo_module_from_text("\n".join(text))
    found = _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
    return max(found.get("flops", 0.0), 0.0)


def kernel_flops(call: Instruction, beside: dict[str, Instruction]) -> float:
  """FLOPs of a splash attention kernel; other kernels are not known and count 0.

  The forward kernel makes 2 products of queries x keys x width, that of dq 3, of dk and dv 4, and
  the fused one for all three 5. Each is made for whole blocks, those above the diagonal left out.
  """
  kernel = re.match(r"splash_m[hq]a_(fwd|dq|dkv)", call.name)
  if not kernel:
    return 0.0
  told = dict(re.findall(r'(\w+)\\*": (\w+)', call.text))
  ending = {"fwd": "", "dq": "_dq", "dkv": "_dkv"}[kernel[1]]
  q_block, kv_block = int(told[f"block_q{ending}"]), int(told[f"block_kv{ending}"])
  arrays = [a for name in call.operands for a in beside[name].arrays[:1]]
  q, k = [a.shape for a in arrays if a.dtype[0] in "bf" and len(a.shape) > 2][:2]
  heads, length, width = math.prod(q[:-2]), q[-2], q[-1]
  products = {"fwd": 2, "dq": 3, "dkv": 4}[kernel[1]]
  products += any(len(a.shape) > len(q) for a in call.arrays)  # dq, for each block of keys
  pairs = sum(
    q_block * kv_block
    for first_key in range(0, k[-2], kv_block)
    for first_query in range(0, length, q_block)
    if first_query + q_block > first_key
  )
  return 2.0 * products * heads * width * pairs


def _constant(instruction):
  return int(re.search(r"constant\((-?\d+)\)", instruction.text)[1])


def _index(element):
  return int(re.search(r"index=(\d+)", element.text)[1])


def _whole_lines(text):
  """The lines of `text`, those joined that are one instruction."""
  line = ""
  for part in text.splitlines():
    if part == "}" or part.startswith(("  %", "  ROOT", "%", "ENTRY")) or not part:
      yield line
      line = part
    else:
      line += part
  yield line


def _instruction(line):
  found = _INSTRUCTION.match(line)
  if not found:
    return None
  rest = found[3]
  if rest.startswith("("):
    end = _closing(rest)
    kind, rest = rest[: end + 1], rest[end + 1 :].lstrip()
  else:
    kind, _, rest = rest.partition(" ")
  opcode, _, _ = rest.partition("(")
  rest = rest[len(opcode) :]
  operands = tuple(re.findall(r"%([\w.-]+)", rest[: _closing(rest)]))
  arrays = tuple(
    Array(dtype, tuple(int(n) for n in shape.split(",") if n), bool(re.search(r"S\(\d", layout)))
    for dtype, shape, layout in _ARRAY.findall(kind)
  )
  return Instruction(found[2], arrays, opcode, operands, line, bool(found[1]))


def _closing(text):
  """Where the parenthesis closes that `text` begins with."""
  depth = 0
  for place, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if not depth:
      return place
  return len(text)
