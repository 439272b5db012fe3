"""Bytes that decoding responses of different lengths reads, by arithmetic and simulation.

A kernel that knows lengths is opaque to XLA's cost analysis, so its bytes are counted here. A
decode step reads the weights once, whatever the number of rows, and of every row that is alive its
keys and values up to its own position, in layers with a window at most as many as that.
"""

import dataclasses
import heapq
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class DecodeCost:
  """What a decode step of one device reads."""

  weights: float  # bytes of the weights
  # window of layers, 0 for none -> bytes of the keys and values of one position in all such layers
  position: Mapping[int, float]
  page: int = 1  # positions that the kernel reads at once

  def row(self, held: Int[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """Bytes of the keys and values that a row of so many tokens reads in a step."""
    read = np.zeros(len(held))
    for window, size in self.position.items():
      kept = np.minimum(held, window) if window else held
      read += -(-kept // self.page) * self.page * size
    return read


@dataclasses.dataclass(frozen=True)
class Decoding:
  """The decode steps of one device until its last response ends."""

  busy: Int[np.ndarray, " steps"]  # rows that are alive in each step
  bytes: Float[np.ndarray, " steps"]  # read in each step

  @property
  def steps(self) -> int:
    """Number of decode steps."""
    return len(self.busy)

  def useful(self, rows: int) -> float:
    """Share of the rows of all steps that are alive, for a loop over `rows` rows."""
    return float(self.busy.sum() / max(rows * self.steps, 1))


def resident(
  prompts: Int[np.ndarray, " rows"], responses: Int[np.ndarray, " rows"], cost: DecodeCost
) -> Decoding:
  """All rows decode from the first step on.

  Args:
    prompts: tokens in front of each row's response.
    responses: tokens of each row's response.
    cost: what a step reads.
  """
  return in_slots(prompts, responses, cost, len(responses), 1)


def in_slots(
  prompts: Int[np.ndarray, " rows"],
  responses: Int[np.ndarray, " rows"],
  cost: DecodeCost,
  slots: int,
  refill: int,
) -> Decoding:
  """Rows wait in a queue, in order, for one of a number of slots.

  Args:
    prompts: tokens in front of each row's response.
    responses: tokens of each row's response.
    cost: what a step reads.
    slots: rows that decode at once.
    refill: free slots at which the queue is asked for the next rows; it always is when no row is
      alive.
  """
  busy, read = np.zeros(int(responses.sum()) + 1, int), np.zeros(int(responses.sum()) + 1)
  ends, waiting, step = [], 0, 0
  while waiting < len(responses) or ends:
    free = slots - len(ends)
    if waiting < len(responses) and (free >= refill or not ends):
      for row in range(waiting, min(waiting + free, len(responses))):
        end = step + int(responses[row])
        held = prompts[row] + 1 + np.arange(responses[row])  # its own new token is the last one
        busy[step:end] += 1
        read[step:end] += cost.row(held)
        heapq.heappush(ends, end)
      waiting = min(waiting + free, len(responses))
    step = ends[0]
    while ends and ends[0] == step:
      heapq.heappop(ends)
  return Decoding(busy[:step], read[:step] + cost.weights)


def least(
  prompts: Int[np.ndarray, " rows"],
  responses: Int[np.ndarray, " rows"],
  groups: Int[np.ndarray, " rows"],
  cost: DecodeCost,
) -> float:
  """Bytes below which no decoding is: as many steps as the longest response has tokens, each with
  the weights once; each row's own keys and values, and a prompt's once for all of its rows, both
  as far as a layer's window reaches.

  Args:
    prompts: tokens in front of each row's response.
    responses: tokens of each row's response.
    groups: number of each row's prompt.
    cost: what a step reads; its page does not count.
  """
  total = responses.max() * cost.weights
  for window, size in cost.position.items():
    window = window or int((prompts + responses).max())
    longest = np.zeros(groups.max() + 1)
    np.maximum.at(longest, groups, _prompt_positions(prompts, responses, window))
    total += (_ramp(responses, window).sum() + longest.sum()) * size
  return float(total)


def _ramp(steps, window):
  """Sum of min(t, window) over t = 1 .. steps."""
  ramp = np.minimum(steps, window)
  return ramp * (ramp + 1) / 2 + (steps - ramp) * window


def _prompt_positions(prompts, responses, window):
  """Positions of the prompt that are within the window of a response's tokens, summed over them."""
  whole = np.clip(window - prompts, 0, responses)  # tokens whose window has all of the prompt
  some = np.minimum(responses, window)  # tokens whose window has a part of it
  partly = (some - whole) * window - (some * (some + 1) - whole * (whole + 1)) / 2
  return whole * prompts + partly


def seconds(decodings: list[Decoding], bandwidth: float) -> float:
  """Time of the slowest of devices that decode on their own, at full bandwidth (bytes a second)."""
  return max(float(d.bytes.sum()) for d in decodings) / bandwidth
