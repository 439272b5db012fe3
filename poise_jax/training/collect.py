"""Which groups a step trains on: all that it sampled, or DAPO's dynamic sampling.

Dynamic sampling (arXiv 2503.14476 section 3.2) leaves out groups whose answers are all right or all
wrong, since they carry no gradient, and samples further prompts until the batch is full. What is
decided here is decided by the verifier's scores, never by shaped rewards: those differ within a
group even where its answers do not. Surplus groups are kept for the next step.

GRESO (arXiv 2506.02177 and its code) spares the rollouts: a prompt whose last z visits in a row
were all right, or all wrong, is skipped with probability 1 - p ** z, where p of either kind drifts
so that the share of such groups comes to a target.
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.struct
import jax
import numpy as np

from poise_jax.distributed import sharding
from poise_jax.errors import UserError
from poise_jax.types import Experience, Prompts, Rollouts


@dataclasses.dataclass(frozen=True)
class CollectConfig:
  """Options of `collect`; raises UserError on construction for values without a meaning."""

  dynamic_sampling: bool = False  # DAPO's: train on groups whose answers differ in score
  max_generations: int = 10  # batches that may be sampled for one step; then it takes what there is
  greso_target: float = 0.0  # share of groups without a difference that GRESO aims at; 0: no GRESO

  def __post_init__(self):
    if not 0 <= self.greso_target < 1:
      raise UserError(f"collect.greso_target={self.greso_target} must be in [0, 1); 0 is off")
    if self.max_generations < 1:
      raise UserError(f"collect.max_generations={self.max_generations} must be at least 1")


@flax.struct.dataclass
class State:
  """What is remembered between steps. The arrays of the pool have a fixed size, for checkpoints."""

  position: np.ndarray  # [] int64, prompts taken from the data so far
  generated: np.ndarray  # [] int64, rollouts sampled so far, those of no use included
  carried: np.ndarray  # [] int64, groups in the pool
  pool: Experience | tuple  # P groups, the first `carried` of them real; () without the option
  skips: "Skips | tuple"  # () without GRESO


@flax.struct.dataclass
class Skips:
  """What GRESO remembers of N training prompts."""

  streaks: np.ndarray  # [N] int32, last visits in a row all right (> 0) or all wrong (< 0)
  keep: np.ndarray  # [2] float64, p of the easy and of the hard


def init(
  config: CollectConfig, groups: int, n: int, t: int, prompt: int, features: int, prompts: int
) -> State:
  """Nothing taken, nothing carried over. `groups` is P, `prompt` is Tp, `prompts` is N."""
  zero = np.zeros((), np.int64)
  skips = Skips(np.zeros(prompts, np.int32), np.full(2, 0.5)) if config.greso_target else ()
  if not config.dynamic_sampling:
    return State(zero, zero, zero, (), skips)
  ids, score = np.zeros(groups, np.int32), np.zeros((groups, n), np.float32)
  number = np.zeros((groups, n, t), np.float32)
  written = np.zeros((groups, n, t), bool)
  rollouts = Rollouts(
    prompts=Prompts(np.zeros((groups, prompt), np.int32), np.zeros((groups, prompt), bool)),
    tokens=number.astype(np.int32),
    mask=written,
    logprobs=number,
    entropies=number,
    truncated=score.astype(bool),
    features=np.zeros((groups, n, features), np.float32),
  )
  return State(zero, zero, zero, Experience(rollouts, score, number, ids, ids, ids), skips)


def mixed(scores: np.ndarray) -> np.ndarray:
  """[P, n] -> [P] bool: the group has different scores, so its comparison teaches something."""
  return scores.min(1) < scores.max(1)


def choose(
  stream: Sequence[int],
  position: int,
  count: int,
  skips: Skips | tuple,
  seed: int,
  prefer: np.ndarray | None = None,
) -> tuple[np.ndarray, int]:
  """The prompts to sample next, and the position in the stream behind them.

  Args:
    stream: endless, shuffled training prompts.
    position: where to go on.
    count: how many prompts.
    skips: () takes them as they come. After a whole epoch of candidates nothing is skipped any
      more: there may be no prompt left that differs.
    seed: of what is skipped or drawn, together with the position.
    prefer: draws `count` different prompts with these weights [N] instead.
  """
  if prefer is not None:
    weights = np.asarray(prefer, np.float64)
    rng = np.random.default_rng([seed, position])
    ids = rng.choice(len(weights), count, replace=False, p=weights / weights.sum())
    return ids, position + count
  ids, start = [], position
  while len(ids) < count:
    i = stream[position]
    streak = int(skips.streaks[i]) if skips and position - start < len(skips.streaks) else 0
    kept = not streak or (
      np.random.default_rng([seed, position]).random()
      < skips.keep[0 if streak > 0 else 1] ** abs(streak)
    )
    position += 1
    if kept:
      ids.append(i)
  return np.array(ids), position


def _learn(skips: Skips, seen: list, target: float, adapt: bool) -> tuple[Skips, dict[str, float]]:
  """GRESO after a step that sampled `seen`, a list of (prompt ids, scores [P, n]).

  The steps of 0.01, the bounds and the start of p are the released code's; that a third of the
  target is the easy groups' is a port's, for the code does not say.
  """
  streaks, keep = skips.streaks.copy(), skips.keep.copy()
  easy = hard = total = 0
  for ids, scores in seen:
    for i, group in zip(ids, scores, strict=True):
      right = group.mean() > 0.5
      if group.min() < group.max():
        streaks[i] = 0
      elif right:
        streaks[i], easy = max(streaks[i], 0) + 1, easy + 1
      else:
        streaks[i], hard = min(streaks[i], 0) - 1, hard + 1
      total += 1
  shares = np.array([easy, hard]) / max(total, 1)
  if adapt and total:
    too_many = shares >= target * np.array([1, 2]) / 3
    keep = np.clip(keep + np.where(too_many, -0.01, 0.01), 0.05, 0.95)
  return Skips(streaks, keep), {
    "collect/easy": shares[0],
    "collect/hard": shares[1],
    "collect/keep_easy": keep[0],
    "collect/keep_hard": keep[1],
  }


def collect(
  stream: Sequence[int],
  generate: Callable[[np.ndarray, int], Experience],
  state: State,
  groups: int,
  config: CollectConfig,
  seed: int,
  prefer: np.ndarray | None = None,
) -> tuple[Experience, int, State, dict[str, float]]:
  """The experience that a step trains on.

  Args:
    stream: endless, shuffled training prompts.
    generate: (prompts [P], number of the generation within this step) -> P new groups.
    state: is not changed.
    groups: P, how many a step trains on.
    config: whether groups are chosen at all.
    seed: see `choose`.
    prefer: see `choose`.

  Returns:
    P groups; how many of them, at the front, are real (the rest is empty); the new state; and
    metrics: collect/generated, rollouts sampled for this step; collect/generated_total, in all
    steps; with dynamic sampling collect/generations, collect/discarded (rollouts of groups
    without a difference), collect/carried_in and collect/carried_out (groups), collect/groups;
    with GRESO collect/skipped (prompts), collect/easy and collect/hard (shares of all groups
    sampled), collect/keep_easy and collect/keep_hard (p).
  """
  position, generations, discarded, sampled = int(state.position), 0, 0, []

  def generation():
    nonlocal position, generations
    ids, position = choose(stream, position, groups, state.skips, seed, prefer)
    new = generate(ids, generations)
    generations += 1
    if state.skips:
      sampled.append((ids, sharding.fetch(new.scores)))
    return new

  if not config.dynamic_sampling:
    experience, real = generation(), groups
    rest, carried_in = (), 0
  else:
    carried_in = int(state.carried)
    pool = jax.tree.map(lambda x: x[:carried_in], state.pool)
    parts = [pool.replace(age=pool.age + 1)]
    while sum(len(part.scores) for part in parts) < groups:
      if generations == config.max_generations:
        break
      new = sharding.fetch(generation())
      keep = mixed(new.scores)
      discarded += int((~keep).sum()) * new.scores.shape[1]
      parts.append(jax.tree.map(lambda x, keep=keep: x[keep], new))
    kept = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    real = min(len(kept.scores), groups)
    experience = _padded(jax.tree.map(lambda x: x[:groups], kept), state.pool)
    rest = jax.tree.map(lambda x: x[groups:], kept)
  n = experience.scores.shape[1]
  if len(experience.reference_scores):
    n += experience.reference_scores.shape[1]  # those of the reference policy are paid for as well
  skips, seen = state.skips, {}
  if skips:
    epoch = len(skips.streaks)  # in the first one nothing was skipped: nothing to adapt to
    skips, seen = _learn(skips, sampled, config.greso_target, int(state.position) >= epoch)
    seen["collect/skipped"] = position - int(state.position) - generations * groups
  state = State(
    position=np.int64(position),
    generated=np.int64(int(state.generated) + generations * groups * n),
    carried=np.int64(len(rest.scores) if rest else 0),
    pool=_padded(rest, state.pool) if rest else (),
    skips=skips,
  )
  metrics = {
    "collect/generated": generations * groups * n,
    "collect/generated_total": int(state.generated),
    **seen,
  }
  if config.dynamic_sampling:
    metrics |= {
      "collect/generations": generations,
      "collect/discarded": discarded,
      "collect/carried_in": carried_in,
      "collect/carried_out": int(state.carried),
      "collect/groups": real,
    }
  return experience, real, state, metrics


def _padded(part: Experience, like: Experience) -> Experience:
  """The groups of `part`, then zeros up to the size of `like`: masks of False, rewards of 0."""

  def pad(x, full):
    return np.concatenate([x, np.zeros((len(full) - len(x), *x.shape[1:]), x.dtype)])

  return jax.tree.map(pad, part, like)
