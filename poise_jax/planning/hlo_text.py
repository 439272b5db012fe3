"""Parses the HLO text of a compiled program, as `jax.stages.Compiled.as_text()` prints it."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16}
BITS |= {"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64}

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%?([\w.-]+) = (.*)$")
_CALLS = re.compile(
  r"(?:calls|body|condition|to_apply|called_computations|branch_computations|\w+_computation)="
  r"(\{[^}]*\}|%[\w.-]+)"
)
_ANNOTATIONS = re.compile(r", (?:frontend_attributes|metadata|backend_config)=")


@dataclasses.dataclass(frozen=True)
class Array:
  """Type of one buffer."""

  dtype: str  # HLO's name, such as bf16
  shape: tuple[int, ...]
  on_core: bool  # in memory of the core (VMEM and the like) rather than of the device (HBM)

  @property
  def bytes(self) -> int:
    """Size without the padding of the layout's tiles."""
    return math.prod(self.shape) * BITS.get(self.dtype, 8) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction of a computation."""

  name: str
  arrays: tuple[Array, ...]  # results; several where the instruction returns a tuple
  opcode: str
  operands: tuple[str, ...]  # names of instructions
  text: str  # the whole line
  is_root: bool  # whether its result is the computation's

  @functools.cached_property
  def computations(self) -> tuple[str, ...]:
    """Names of the computations that the instruction uses."""
    attributes = (re.findall(r"%([\w.-]+)", x) for x in _CALLS.findall(self.text))
    return tuple(name for names in attributes for name in names)

  def attribute(self, name: str) -> str:
    """Name of the computation in an attribute, such as the `body` of a loop."""
    return re.search(rf"\b{name}=%([\w.-]+)", self.text)[1]

  @property
  def constant(self) -> int:
    """Value of an integer constant."""
    return int(re.search(r"constant\((-?\d+)\)", self.text)[1])

  @property
  def tuple_index(self) -> int:
    """Index of a get-tuple-element."""
    return int(re.search(r"index=(\d+)", self.text)[1])

  @property
  def parameter_number(self) -> int:
    """Number of a parameter of a computation."""
    return int(re.search(r"parameter\((\d+)\)", self.text)[1])


@dataclasses.dataclass
class Computation:
  """A named list of instructions; the program's entry, a loop's body, a fusion."""

  instructions: dict[str, Instruction]  # by name, in the order of the text
  lines: list[str]  # text without ENTRY and without annotations

  @property
  def root(self) -> Instruction:
    """The instruction whose result the computation returns."""
    return next(x for x in self if x.is_root)

  def operands(self, instruction: Instruction) -> list[Instruction]:
    """Operands of one of the computation's instructions."""
    return [self.instructions[name] for name in instruction.operands if name in self.instructions]

  def constants(self) -> list[Instruction]:
    """Instructions that are constants."""
    return [x for x in self if x.opcode == "constant"]

  def __getitem__(self, name: str) -> Instruction:
    return self.instructions[name]

  def __iter__(self) -> Iterator[Instruction]:
    return iter(self.instructions.values())


def parse(text: str) -> tuple[str, dict[str, Computation]]:
  """HLO text -> (name of the entry computation, computations by name)."""
  entry, current, computations = "", None, {}
  for line in _joined_lines(text):
    if header := _COMPUTATION.match(line):
      current = computations[header[2]] = Computation({}, [line.removeprefix("ENTRY ")])
      if header[1]:
        entry = header[2]
    elif current:
      current.lines.append(_ANNOTATIONS.split(line, maxsplit=1)[0])
      if line == "}":
        current = None
      elif instruction := _instruction(line):
        current.instructions[instruction.name] = instruction
  return entry, computations


def _joined_lines(text):
  """Lines of `text`, those of one instruction joined."""
  line = ""
  for part in text.splitlines():
    if part == "}" or part.startswith(("  %", "  ROOT", "%", "ENTRY")) or not part:
      yield line
      line = part
    else:
      line += part
  yield line


def _instruction(line):
  match = _INSTRUCTION.match(line)
  if not match:
    return None
  rest = match[3]
  if rest.startswith("("):  # a tuple
    end = _closing_parenthesis(rest)
    result, rest = rest[: end + 1], rest[end + 1 :].lstrip()
  else:
    result, _, rest = rest.partition(" ")
  opcode, _, _ = rest.partition("(")
  rest = rest[len(opcode) :]
  operands = tuple(re.findall(r"%([\w.-]+)", rest[: _closing_parenthesis(rest)]))
  arrays = tuple(
    Array(dtype, tuple(int(n) for n in shape.split(",") if n), bool(re.search(r"S\(\d", layout)))
    for dtype, shape, layout in _ARRAY.findall(result)
  )
  return Instruction(match[2], arrays, opcode, operands, line, bool(match[1]))


def _closing_parenthesis(text):
  """Position of the parenthesis that closes the one at the start of `text`."""
  depth = 0
  for position, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if not depth:
      return position
  return len(text)
