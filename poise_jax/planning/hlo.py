"""What a compiled program does, read from its optimised HLO: FLOPs, memory traffic, buffers.

XLA's own cost analysis counts the body of a loop once, whatever its trip count. Here the same
analysis runs on each loop's body as a program of its own, and the result is multiplied by the trip
count. Kernels that XLA does not look into (Pallas calls) are counted from their operands' shapes.
"""

import functools
import math
import re
from collections.abc import Iterator

import jax

from poise_jax.errors import UserError
from poise_jax.planning.hlo_text import Array, Computation, Instruction, parse

NO_TRAFFIC = {  # opcodes that rename or wait for a buffer that exists already
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
}
COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"}
SLICES = {"dynamic-slice", "slice", "gather"}
UPDATES = {"dynamic-update-slice", "scatter"}  # write a part of their first operand in place
KERNEL = 'custom_call_target="tpu_custom_call"'  # other custom calls mark values and move nothing
RENAMES = {"parameter", "bitcast", "tuple", "get-tuple-element"}
# Opcodes that read as much of their operand as is read of their result.
ELEMENTWISE = {"bitcast", "copy", "convert", "reshape", "transpose"}


def xla_flops(text: str) -> float:
  """FLOPs by XLA's cost analysis of an HLO module in text form; each loop's body counts once.

  `jax.stages.Compiled.cost_analysis` covers whole programs only, and jax has no public way to
  analyse a part of one. This is the only place that uses jaxlib's private modules.

  Raises:
    UserError: this version of jaxlib has no such analysis.
  """
  try:
    from jaxlib import _hlo, _jax

    module = _hlo.hlo_module_from_text(text)
    costs = _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
  except (ImportError, AttributeError, TypeError) as error:
    raise UserError(
      f"cannot count the FLOPs of compiled programs with jax {jax.__version__} ({error}), "
      "which moved its HLO cost analysis; install jax 0.10.2"
    ) from error
  return max(costs.get("flops", 0.0), 0.0)


class Program:
  """A compiled program.

  Args:
    text: from `jax.stages.Compiled.as_text()`.
  """

  def __init__(self, text: str):
    self.entry, self.computations = parse(text)
    self._xla_flops = functools.cache(lambda name: xla_flops(self._module_text(name)))

  def loops(self) -> Iterator[tuple[str, Instruction]]:
    """(name of the computation, while instruction) of every reachable loop."""
    for name in self._reachable(self.entry):
      for instruction in self.computations[name]:
        if instruction.opcode == "while":
          yield name, instruction

  def trip_count(self, loop: Instruction) -> int | None:
    """Number of times a loop runs; None if it depends on values.

    Raises:
      ValueError: the loop's counter has a form that this parser does not know.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
      return int(known[1])
    condition = self.computations[loop.attribute("condition")]
    comparison = condition.root
    counters = [x for x in condition.operands(comparison) if x.opcode == "get-tuple-element"]
    if comparison.opcode == "fusion":
      comparison = self.computations[comparison.computations[0]].root
    limits = condition.constants()
    if comparison.opcode != "compare" or "direction=LT" not in comparison.text or len(limits) != 1:
      return None
    return -(-limits[0].constant // self._stride(loop, counters[0].tuple_index))

  def _stride(self, loop, index):
    """Increment per iteration of the loop's counter, element `index` of its state. The body may be
    unrolled: several additions, one after another."""
    body = self.computations[loop.attribute("body")]
    value = body[body.root.operands[index]]
    stride = 0
    while value.opcode in ("add", "fusion", "copy"):
      operands = body.operands(value)
      constants = [x for x in operands if x.opcode == "constant"]
      if value.opcode == "fusion" and not constants:  # the constant is inside
        constants = self.computations[value.computations[0]].constants()
      stride += sum(x.constant for x in constants)
      value = next(x for x in operands if x.opcode != "constant")
    if value.opcode != "get-tuple-element" or not stride:
      raise ValueError(f"cannot read the trip count of a loop: {loop.text[:200]}")
    return stride

  def flops(self, computation: str = "") -> float:
    """FLOPs of a computation (default: the whole program) and everything it runs; loops of unknown
    trip count count once."""
    name = computation or self.entry
    total = self._xla_flops(name)
    for inlined in self._inlined(name):
      for instruction in self.computations[inlined]:
        if instruction.opcode == "custom-call":
          total += kernel_flops(instruction, self.computations[inlined])
        if instruction.opcode == "while":
          parts = [instruction.attribute(part) for part in ("body", "condition")]
          total -= sum(self._xla_flops(part) for part in parts)
          trips = self.trip_count(instruction) or 1
          total += trips * sum(self.flops(part) for part in parts)
    return total

  def traffic(self, computation: str) -> int:
    """Bytes that a computation, without its inner loops, moves between the cores and the device's
    memory.

    Operands and results in the device's memory count, for a kernel all of them. Of an operand that
    is only sliced, the slice counts; of a buffer that is updated in place, the update counts.
    """
    body, total = self.computations[computation], 0
    for x in body:
      if x.opcode in NO_TRAFFIC or (x.opcode == "fusion" and self._only_renames(x)):
        continue
      if x.opcode == "custom-call" and KERNEL not in x.text:
        continue
      operands = body.operands(x)
      if x.opcode in SLICES:
        transfers = (not operands[0].arrays[0].on_core) + (not x.arrays[0].on_core)
        total += transfers * x.arrays[0].bytes
      elif x.opcode in UPDATES:
        total += 2 * _updated(body, x)
      elif x.opcode.endswith("-start"):  # (source, target, ...): one of them may be on the core
        arrays = [a for a in x.arrays if a.shape]
        size = min((a.bytes for a in arrays), default=0)
        total += size * sum(not a.on_core for a in arrays[:2])
      elif x.opcode == "fusion":
        total += self._fusion_traffic(x, operands)
      else:
        arrays = [*x.arrays, *(a for operand in operands for a in operand.arrays)]
        total += sum(a.bytes for a in arrays if not a.on_core)
    return total

  def collective_bytes(self, computation: str = "") -> dict[str, float]:
    """Bytes that collectives deliver to this device, by opcode, in a computation (default: the
    whole program) and everything it runs; loops of unknown trip count count once."""
    total = {}
    for name in self._inlined(computation or self.entry):
      for x in self.computations[name]:
        opcode = x.opcode.removesuffix("-start")
        if opcode in COLLECTIVES:
          arrays = x.arrays
          if x.opcode.endswith("-start") and opcode != "all-reduce":  # sources, results, flags
            arrays = [a for a in arrays if a.shape]
            arrays = arrays[len(arrays) // 2 :]
          total[opcode] = total.get(opcode, 0.0) + sum(a.bytes for a in arrays)
        elif x.opcode == "while":
          trips = self.trip_count(x) or 1
          for inner, size in self.collective_bytes(x.attribute("body")).items():
            total[inner] = total.get(inner, 0.0) + trips * size
    return total

  def buffers(self) -> Iterator[tuple[Instruction, Array]]:
    """Every array that the program holds outside of fusions, with its instruction."""
    for name in self._reachable(self.entry, through_fusions=False):
      for instruction in self.computations[name]:
        for array in instruction.arrays:
          yield instruction, array

  def _fusion_traffic(self, fusion, operands):
    body, total = self.computations[fusion.computations[0]], 0
    parameters = _parameters(body)
    for number, operand in enumerate(operands):
      for array in operand.arrays:
        if not array.on_core:
          total += self._bytes_read(body, parameters[number], array.bytes)
    root = body.root
    outputs = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for output, array in zip(outputs, fusion.arrays, strict=False):
      total += 0 if array.on_core else self._bytes_written(body, output, array.bytes)
    return total

  def _bytes_written(self, body, output, size):
    """Bytes of a fusion's result of `size` bytes that it writes."""
    while output.opcode in ("bitcast", "copy", "convert") and body.operands(output):
      output = body[output.operands[0]]
    if output.opcode in UPDATES:
      return min(size, _updated(body, output))
    if output.opcode == "fusion":
      inner = self.computations[output.computations[0]]
      return size if inner.root.opcode == "tuple" else self._bytes_written(inner, inner.root, size)
    return size

  def _bytes_read(self, body, name, size):
    """Bytes of a value of `size` bytes that the instructions of a fusion's body read."""
    total = 0
    for x in body:
      for position, operand in enumerate(x.operands):
        if operand != name:
          continue
        if x.opcode in ELEMENTWISE and len(body.instructions) > 1:
          if x.is_root:
            return size
          total += self._bytes_read(body, x.name, size)
        elif x.opcode == "fusion":
          inner = self.computations[x.computations[0]]
          total += self._bytes_read(inner, _parameters(inner)[position], size)
        elif x.opcode in SLICES and position == 0:
          total += sum(a.bytes for a in x.arrays)
        elif x.opcode not in UPDATES or position != 0:
          return size
    return min(total, size)

  def _only_renames(self, fusion):
    return all(x.opcode in RENAMES for x in self.computations[fusion.computations[0]])

  def _reachable(self, start, through_fusions=True):
    """`start` and the computations it uses, each once, after those that it uses itself."""
    order, visited = [], set()

    def visit(name):
      if name in visited or name not in self.computations:
        return
      visited.add(name)
      for x in self.computations[name]:
        if through_fusions or x.opcode in ("while", "conditional", "call"):
          for used in x.computations:
            visit(used)
      order.append(name)

    visit(start)
    return order

  def _inlined(self, name):
    """`name` and the computations that it calls, except loops."""
    names = [name]
    for x in self.computations[name]:
      if x.opcode in ("call", "conditional", "async-start"):
        for used in x.computations:
          names += self._inlined(used)
    return names

  def _module_text(self, name):
    """A computation, and those it uses, as the text of a module of its own."""
    text = ["HloModule one", ""]
    for used in self._reachable(name):
      first, *rest = self.computations[used].lines
      text += [("ENTRY " if used == name else "") + first, *rest, ""]
    return "\n".join(text)


def _parameters(body: Computation) -> dict[int, str]:
  """Names of a computation's parameters by number."""
  return {x.parameter_number: x.name for x in body if x.opcode == "parameter"}


def _updated(body: Computation, x: Instruction) -> int:
  """Bytes of the part that a dynamic-update-slice or a scatter of one array writes."""
  return body[x.operands[1 if x.opcode == "dynamic-update-slice" else 2]].arrays[0].bytes


def kernel_flops(call: Instruction, computation: Computation) -> float:
  """FLOPs of a splash attention kernel; 0 for other kernels, which are unknown.

  The forward kernel makes 2 products of size queries x keys x width, the kernel of dq 3, that of dk
  and dv 4, and the fused kernel of all three 5. Each covers whole blocks; blocks above the diagonal
  are skipped.

  Args:
    call: a custom-call.
    computation: contains `call` and its operands.
  """
  kernel = re.match(r"splash_m[hq]a_(fwd|dq|dkv)", call.name)
  if not kernel:
    return 0.0
  metadata = dict(re.findall(r'(\w+)\\*": (\w+)', call.text))
  suffix = {"fwd": "", "dq": "_dq", "dkv": "_dkv"}[kernel[1]]
  query_block, key_block = int(metadata[f"block_q{suffix}"]), int(metadata[f"block_kv{suffix}"])
  arrays = [a for operand in computation.operands(call) for a in operand.arrays[:1]]
  q, k = [a.shape for a in arrays if a.dtype[0] in "bf" and len(a.shape) > 2][:2]
  heads, length, width = math.prod(q[:-2]), q[-2], q[-1]
  products = {"fwd": 2, "dq": 3, "dkv": 4}[kernel[1]]
  products += any(len(a.shape) > len(q) for a in call.arrays)  # dq, one for each block of keys
  pairs = sum(
    query_block * key_block
    for first_key in range(0, k[-2], key_block)
    for first_query in range(0, length, query_block)
    if first_query + query_block > first_key
  )
  return 2.0 * products * heads * width * pairs
