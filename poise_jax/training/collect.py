"""The groups that a step trains on: everything it samples, or DAPO's dynamic sampling.

Dynamic sampling (arXiv 2503.14476 section 3.2) discards groups whose responses all have the same
score, since they carry no gradient, and samples more prompts until the batch is full. It compares
verdicts, never shaped rewards: a length penalty differs within a group whose verdicts do not.
Surplus groups wait for the next step. Letters: P groups of a step, n samples per prompt, N training
prompts.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import flax.struct
import jax
import numpy as np
from jaxtyping import Float, Int

from poise_jax.distributed import sharding
from poise_jax.errors import UserError, check_finite
from poise_jax.estimators.statistics import mixed
from poise_jax.training import greso
from poise_jax.types import Experience, Prompts, Rollouts


@dataclasses.dataclass(frozen=True)
class CollectConfig:
  """Options of `collect`; raises UserError for values that cannot work."""

  dynamic_sampling: bool = False  # DAPO's: discard groups whose responses all have the same score
  max_generations: int = 10  # batches that one step may sample; then it trains on what it has
  greso_target: float = 0.0  # share of groups without a gradient that GRESO aims at; 0: no GRESO

  def __post_init__(self):
    check_finite("collect", self)
    if not 0 <= self.greso_target < 1:
      raise UserError(
        f"collect.greso_target must be at least 0 (off) and less than 1, got {self.greso_target}"
      )
    if self.max_generations < 1:
      raise UserError(f"collect.max_generations must be at least 1, got {self.max_generations}")


@flax.struct.dataclass
class State:
  """What is remembered between steps, in arrays whose shapes never change."""

  position: np.int64 | Int[np.ndarray, ""]  # in the order of the training prompts
  generated: np.int64 | Int[np.ndarray, ""]  # responses sampled in all steps, discarded ones too
  carried: np.int64 | Int[np.ndarray, ""]  # surplus groups, at the front of `pool`
  pool: Experience | tuple[()]  # P groups, padded with zeros; () without dynamic sampling
  skips: greso.Skips | tuple[()]  # () without GRESO


def init(
  config: CollectConfig,
  groups: int,
  n: int,
  response_length: int,
  prompt_length: int,
  features: int,
  prompts: int,
) -> State:
  """The state before the first step.

  Args:
    config: decides which parts of the state exist.
    groups: P.
    n: samples a prompt.
    response_length: T, tokens.
    prompt_length: Tp, tokens.
    features: F, see rollout/features.py.
    prompts: N.
  """
  zero = np.zeros((), np.int64)
  skips = greso.init(prompts) if config.greso_target else ()
  if not config.dynamic_sampling:
    return State(zero, zero, zero, (), skips)
  ids, per_response = np.zeros(groups, np.int32), np.zeros((groups, n), np.float32)
  per_token = np.zeros((groups, n, response_length), np.float32)
  prompt_tokens = np.zeros((groups, prompt_length), np.int32)
  rollouts = Rollouts(
    prompts=Prompts(prompt_tokens, prompt_tokens.astype(bool)),
    tokens=per_token.astype(np.int32),
    mask=per_token.astype(bool),
    logprobs=per_token,
    entropies=per_token,
    truncated=per_response.astype(bool),
    features=np.zeros((groups, n, features), np.float32),
    decode_rows=per_response,
  )
  pool = Experience(rollouts, per_response, per_token, ids, ids, ids)
  return State(zero, zero, zero, pool, skips)


def choose(
  order: Sequence[int],
  position: int,
  count: int,
  skips: greso.Skips | tuple[()],
  seed: int,
  priorities: Float[np.ndarray, " N"] | None = None,
  present: Collection[int] = (),
) -> tuple[Int[np.ndarray, " P"], int]:
  """The prompts to sample next.

  A prompt that the step has already is passed over once. So a step that crosses an epoch's edge has
  no prompt twice, and one that needs more prompts than there are still ends.

  Args:
    order: the endless order of the training prompts.
    position: where to continue in `order`.
    count: number of prompts, P.
    skips: state of GRESO; () skips nothing. After N candidates nothing is skipped any more, because
      GRESO may want to skip every prompt.
    seed: of skips and draws, together with the position.
    priorities: if given, `count` different prompts are drawn with these weights instead.
    present: prompts of the groups that the step has already.

  Returns:
    The prompts' indices, and the position after them.
  """
  if priorities is not None:
    weights = np.asarray(priorities, np.float64)
    rng = np.random.default_rng([seed, position])
    ids = rng.choice(len(weights), count, replace=False, p=weights / weights.sum())
    return ids, position + count
  ids, start, taken, passed = [], position, set(present), set()
  while len(ids) < count:
    prompt = int(order[position])
    may_skip = skips and position - start < len(skips.streaks)
    if prompt in taken and prompt not in passed:
      passed.add(prompt)
    elif not (may_skip and greso.is_skipped(skips, prompt, seed, position)):
      ids.append(prompt)
      taken.add(prompt)
    position += 1
  return np.array(ids), position


@dataclasses.dataclass
class _Batches:
  """Samples the batches of one step."""

  order: Sequence[int]
  generate: Callable[[Int[np.ndarray, " P"], int], Experience]
  groups: int
  skips: greso.Skips | tuple[()]
  seed: int
  priorities: Float[np.ndarray, " N"] | None
  position: int
  count: int = 0  # batches sampled
  # (prompt indices, scores) of each batch
  scores: list[tuple[Int[np.ndarray, " P"], Float[np.ndarray, "P n"]]] = dataclasses.field(
    default_factory=list
  )

  def sample(self, present: Collection[int] = ()) -> Experience:
    """The next batch: P groups; for `present` see `choose`."""
    ids, self.position = choose(
      self.order, self.position, self.groups, self.skips, self.seed, self.priorities, present
    )
    batch = self.generate(ids, self.count)
    self.count += 1
    self.scores.append((ids, sharding.fetch(batch.scores)))
    return batch


def collect(
  order: Sequence[int],
  generate: Callable[[Int[np.ndarray, " P"], int], Experience],
  state: State,
  groups: int,
  config: CollectConfig,
  seed: int,
  priorities: Float[np.ndarray, " N"] | None = None,
) -> tuple[Experience, int, State, dict[str, float]]:
  """The experience that a step trains on.

  Args:
    order: the endless order of the training prompts.
    generate: (prompt indices [P], number of batches that the step sampled before) -> P new groups.
    state: is not changed.
    groups: P.
    config: dynamic sampling and GRESO.
    seed: see `choose`.
    priorities: see `choose`.

  Returns:
    P groups; how many of them, at the front, are not padding; the new state; and metrics:
    collect/generated (responses sampled for this step), collect/generated_total (in all steps),
    collect/score (mean score of the policy's responses sampled for this step, if there are any);
    with GRESO collect/skipped (prompts) and those of `greso.update`; with dynamic sampling
    collect/generations (batches), collect/discarded (responses), collect/carried_in,
    collect/carried_out and collect/groups (groups).
  """
  start = int(state.position)
  batches = _Batches(order, generate, groups, state.skips, seed, priorities, start)
  if config.dynamic_sampling:
    experience, pool, selection = _select(batches, state, groups, config.max_generations)
  else:
    experience, pool, selection = batches.sample(), (), {}
  skips, skip_metrics = state.skips, {}
  if skips:
    adapt = start >= len(skips.streaks)  # in the first epoch nothing was skipped
    skips, skip_metrics = greso.update(skips, batches.scores, config.greso_target, adapt)
    skip_metrics["collect/skipped"] = batches.position - start - batches.count * groups
  generated = batches.count * groups * _responses_per_prompt(experience)
  generated_total = int(state.generated) + generated
  state = State(
    position=np.int64(batches.position),
    generated=np.int64(generated_total),
    carried=np.int64(selection.get("collect/carried_out", 0)),
    pool=pool,
    skips=skips,
  )
  metrics = {"collect/generated": generated, "collect/generated_total": generated_total}
  if batches.scores:  # the pool may have held enough groups
    scores = np.concatenate([scores for _, scores in batches.scores])
    metrics["collect/score"] = float(scores.mean(dtype=np.float64))
  metrics |= {**skip_metrics, **selection}
  return experience, selection.get("collect/groups", groups), state, metrics


def _select(
  batches: _Batches, state: State, groups: int, max_generations: int
) -> tuple[Experience, Experience, dict[str, int]]:
  """Dynamic sampling: the first P mixed groups, the pool of surplus ones, and metrics."""
  carried = int(state.carried)
  pool = jax.tree.map(lambda x: x[:carried], state.pool)
  parts, discarded = [pool.replace(age=pool.age + 1)], 0
  while sum(len(part.scores) for part in parts) < groups and batches.count < max_generations:
    present = [int(i) for part in parts for i in part.prompt_ids]
    batch = sharding.fetch(batches.sample(present))
    is_mixed = mixed(batch.scores)
    discarded += int((~is_mixed).sum()) * batch.scores.shape[1]
    parts.append(jax.tree.map(lambda x, is_mixed=is_mixed: x[is_mixed], batch))
  candidates = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  surplus = jax.tree.map(lambda x: x[groups:], candidates)
  selected = jax.tree.map(lambda x: x[:groups], candidates)
  metrics = {
    "collect/generations": batches.count,
    "collect/discarded": discarded,
    "collect/carried_in": carried,
    "collect/carried_out": len(surplus.scores),
    "collect/groups": len(selected.scores),
  }
  return _padded(selected, state.pool), _padded(surplus, state.pool), metrics


def _responses_per_prompt(experience: Experience) -> int:
  """Responses sampled for a prompt, those of the reference policy included."""
  n = experience.scores.shape[1]
  if len(experience.reference_scores):
    n += experience.reference_scores.shape[1]
  return n


def _padded(part: Experience, like: Experience) -> Experience:
  """The groups of `part`, padded to the size of `like` with zeros: mask False, rewards 0."""

  def pad(x, full):
    return np.concatenate([x, np.zeros((len(full) - len(x), *x.shape[1:]), x.dtype)])

  return jax.tree.map(pad, part, like)
