"""From lengths to micro-batches: which sequences of a mini-batch share a row and a pass.

The plan is made on the host: a step's lengths are a few kilobytes, the responses have been fetched
for their verdicts anyway, and best fit in an order that depends on values is a loop, not an array
program. On the device remain tables of two numbers a sequence.

Every shape of a pass is a program, so shapes are few: a full micro-batch, and parts of it for what
remains. A pass has the same shape on every device, which so gets the same share; rows of all
devices are filled together, whichever device sampled a sequence.
"""

import bisect
import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from poise_jax.learner.micro_batch import MicroBatch

# Positions a device below which a pass is not cut further: reading the weights takes longer than
# multiplying with them (197 TFLOP/s at 819 GB/s are 240 positions for v5e, 560 for v6e).
LEAST_POSITIONS = 512
# Positions from which on rows are as wide as a sequence needs: the lanes of a TPU. Where sequences
# are shorter, a row holds several at the limit, or the ends of rows would stay empty.
LEAST_WIDTH = 128


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Tokens of the sequences of a batch, or of a mini-batch of it."""

  prompts: Int[np.ndarray, " B"]
  responses: Int[np.ndarray, " B"]  # 0: the sequence is left out
  groups: Int[np.ndarray, " B"]  # number of the prompt
  limits: tuple[int, int]  # most tokens of a prompt and of a response
  # Tokens of the batch's longest prompt, response and sequence: all mini-batches have equal shapes.
  longest: tuple[int, int, int] = ()

  def __post_init__(self):
    if not self.longest:
      sides = self.prompts, self.responses, self.totals
      object.__setattr__(self, "longest", tuple(int(x.max(initial=1)) for x in sides))

  @property
  def totals(self) -> Int[np.ndarray, " B"]:
    """Tokens of each sequence; 0 if it is left out."""
    return np.where(self.responses > 0, self.prompts + self.responses, 0)

  def __len__(self) -> int:
    return len(self.prompts)

  def part(self, start: int, end: int) -> "Lengths":
    """The sequences from `start` up to `end`."""
    fields = (x[start:end] for x in (self.prompts, self.responses, self.groups))
    return Lengths(*fields, self.limits, self.longest)


class Plan(NamedTuple):
  """The micro-batches of a mini-batch, in order."""

  micro_batches: list[MicroBatch]
  tokens: int  # positions that hold a token

  @property
  def positions(self) -> int:
    """Positions of all passes, over all devices."""
    return sum(micro.positions for micro in self.micro_batches)


def plan(lengths: Lengths, microbatch_size: int, shards: int) -> Plan:
  """The plan with the fewest positions: sequences packed into rows, or responses sharing prompts.

  Args:
    lengths: of the mini-batch's sequences.
    microbatch_size: sequences at the limit of length whose positions fit into memory, over all
      devices; a multiple of `shards`.
    shards: devices that split the batch.
  """
  budget = microbatch_size // shards * sum(lengths.limits)
  plans = [packed(lengths, budget, shards), shared(lengths, budget, shards)]
  return min((p for p in plans if p), key=lambda p: p.positions)


def packed(lengths: Lengths, budget: int, shards: int) -> Plan:
  """Sequences one after the other, each with a copy of its prompt.

  Args:
    lengths: of the mini-batch's sequences.
    budget: positions of a device's part of a micro-batch.
    shards: number of devices.
  """
  totals = lengths.totals
  width = _narrowed(sum(lengths.limits), lengths.longest[2])
  rows = budget // width
  width *= max(
    k for k in range(1, rows + 1) if rows % k == 0 and k * width <= max(LEAST_WIDTH, width)
  )
  shapes = part_shapes(budget // width, width)
  unit = math.prod(shapes[-1])
  order = [i for i in np.argsort(-totals, kind="stable").tolist() if totals[i]]

  def passes(capacity):
    """Shapes of passes with at least so many units a device, the largest first."""
    chosen, left = [], capacity * unit
    for rows, columns in shapes:
      count = left // (rows * columns) if (rows, columns) != shapes[-1] else -(-left // unit)
      chosen += [(rows * shards, columns)] * count
      left -= count * rows * columns
    return chosen

  least = max(-(-int(totals.sum()) // (shards * unit)), 1)
  most = -(-len(totals) // shards) * -(-width // unit) + len(shapes)  # a row for each sequence
  capacities = range(least, max(least, most))
  fits = lambda capacity: _best_fit(totals, order, passes(capacity)) is not None  # noqa: E731
  chosen = passes(least + bisect.bisect_left(capacities, True, key=fits))
  places = _best_fit(totals, order, chosen)
  micro_batches = []
  for number, (rows, columns) in enumerate(chosen):
    row, start = np.full(len(totals), -1, np.int32), np.zeros(len(totals), np.int32)
    for i, (at, place, column) in places.items():
      if at == number:
        row[i], start[i] = place, column + lengths.prompts[i] - 1
    micro_batches.append(MicroBatch(row, np.maximum(start, 0), rows, columns))
  return Plan(micro_batches, int(totals.sum()))


def part_shapes(rows: int, width: int) -> list[tuple[int, int]]:
  """Shapes of a device's part of a pass, (rows, columns): all of it, and smaller ones for the rest.

  Rows are quartered as long as there are several, then columns halved until there are three
  shapes. So a mini-batch fills at least 90 % of its passes where a micro-batch is many rows, and
  about 88 % where it is a single row on each of 16 devices.
  """
  shapes = [(rows, width)]
  while True:
    rows, width = shapes[-1]
    if rows > 1:
      smaller = (max(rows // 4, 1), width)
    elif len(shapes) < 3:
      smaller = (1, -(-width // 2))
    else:
      return shapes
    if math.prod(smaller) < LEAST_POSITIONS:
      return shapes
    shapes.append(smaller)


def shared(lengths: Lengths, budget: int, shards: int) -> Plan | None:
  """A prompt once for up to m of its responses, all padded to one length; m is the cheapest.

  Args:
    lengths: of the mini-batch's sequences.
    budget: positions of a device's part of a micro-batch.
    shards: number of devices.

  Returns:
    None where no prompt has two responses, or two do not fit into the budget.
  """
  prompt, response = (_narrowed(*x) for x in zip(lengths.limits, lengths.longest, strict=False))
  sizes = np.unique(lengths.groups, return_counts=True)[1]
  best = None
  for m in range(2, min(sizes.max(), (budget - prompt) // response) + 1):
    width = prompt + m * response
    pieces = int((-(-sizes // m)).sum())
    passes = -(-pieces // (shards * (budget // width)))
    rows = -(-pieces // (shards * passes)) * shards
    if best is None or passes * rows * width < best[0]:
      best = passes * rows * width, m, rows
  return _share(lengths, (prompt, response), *best[1:]) if best else None


def _share(lengths, widths, m, rows):
  """The plan whose passes have `rows` prompts with m responses each."""
  present = np.flatnonzero(lengths.responses > 0)
  pieces = []
  for group in np.unique(lengths.groups[present]):
    members = present[lengths.groups[present] == group]
    pieces += [members[i : i + m] for i in range(0, len(members), m)]
  micro_batches, tokens = [], int(lengths.responses.sum())
  for first in range(0, max(len(pieces), 1), rows):
    row, start = np.full(len(lengths), -1, np.int32), np.zeros(len(lengths), np.int32)
    for number, members in enumerate(pieces[first : first + rows]):
      row[members] = number * m + np.arange(len(members))
      start[members] = widths[0] - 1
      tokens += int(lengths.prompts[members[0]])
    micro_batches.append(MicroBatch(row, start, rows * m, sum(widths), widths[0], m))
  return Plan(micro_batches, tokens)


def _narrowed(limit, longest):
  """The limit, or the least of its halves, quarters, ... and three quarters of them that holds the
  longest."""
  longest = max(longest, LEAST_WIDTH)
  while -(-limit // 2) >= longest:
    limit = -(-limit // 2)
  return -(-3 * limit // 4) if -(-3 * limit // 4) >= longest else limit


def _best_fit(totals, order, passes):
  """Puts each sequence, the longest first, into the fullest row that still holds it.

  Returns:
    {sequence: (pass, row, column)}, or None if the passes are too small.
  """
  free = sorted(
    (columns, number, row) for number, (rows, columns) in enumerate(passes) for row in range(rows)
  )
  places = {}
  for i in order:
    at = bisect.bisect_left(free, (totals[i],))
    if at == len(free):
      return None
    left, number, row = free.pop(at)
    places[i] = number, row, passes[number][1] - left
    bisect.insort(free, (left - totals[i], number, row))
  return places
