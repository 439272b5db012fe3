"""Watchers: from the metrics of a run's latest steps to sentences on why it does not learn.

A watcher is a function of `Seen` that returns a sentence with what to do, or "" while all is well.
docs/troubleshooting.md explains each of them.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

Row = Mapping[str, float]  # of metrics.jsonl

FEW, SOME, MANY = 3, 5, 20  # steps after which a watcher speaks; MANY are remembered
PROBED = 10  # steps of an active probe
ALMOST_ALL = 0.9  # share of a step's responses
DEGRADED = 0.5  # share in step 1 below which almost all in later steps are the run's own doing
REPEATED = 0.5  # share of a step's responses
RESTART = "lower train.learning_rate, and start again from an earlier checkpoint"
COLLAPSED = 0.02  # entropy in nats per token; runs that learn well end at 0.03 to 0.2
EXPLODED = 1.0  # entropy in nats per token, if it is also twice that of the first steps
SOLVED = 0.9  # mean reward from which a low entropy is no harm
FAR_ABOVE = 10  # times train.max_grad_norm; norms of a few times the limit are usual
MISMATCH = 0.01  # KL(sampler || trainer) in nats per token
GROWN = 3  # times the mismatch of the first steps


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a watcher reads."""

  first: Sequence[Row]  # the run's first SOME training steps
  latest: Sequence[Row]  # its latest MANY training steps, oldest first
  max_grad_norm: float  # config.train.max_grad_norm

  def last(self, metric: str, steps: int) -> Float[np.ndarray, " N"]:
    """The metric in the latest `steps` steps; empty if there are fewer or one lacks it."""
    values = [row[metric] for row in self.latest[-steps:] if metric in row]
    return np.array(values if len(values) == steps else [])

  def at_start(self, metric: str) -> float:
    """The metric's mean over the run's first steps that have it; NaN if none has."""
    values = [row[metric] for row in self.first if metric in row]
    return float(np.mean(values)) if values else float("nan")

  def almost_all(self, metric: str) -> tuple[float, float] | None:
    """A share of a step's responses now and in step 1 (1 if unknown), if the latest FEW steps are
    above ALMOST_ALL; else None."""
    shares = self.last(metric, FEW)
    if not _all_above(shares, ALMOST_ALL):
      return None
    return float(shares[-1]), self.first[0].get(metric, 1.0)


def _equal_rewards(seen):
  groups = seen.last("collect/groups", SOME)
  if len(groups) and not groups.any():
    return (
      f"dynamic sampling found no group with different rewards in {SOME} steps, so nothing is "
      "learned; read answers and references in report.html, choose problems of another "
      "difficulty, or raise rollout.n"
    )
  spread, reward = seen.last("reward/std", SOME), seen.last("reward/mean", SOME)
  scores = seen.last("reward/score", SOME)  # a KL penalty makes rewards differ where scores do not
  equal = len(spread) and np.all(spread < 1e-6)
  if not equal and not (len(scores) and (np.all(scores <= 0) or np.all(scores >= 1))):
    return ""
  value = float((scores if len(scores) else reward)[-1])
  start = f"all responses of {SOME} steps earn the same, {value:.2g}, so nothing is learned"
  if value <= 0:
    return (
      f"{start}; compare answers with references in report.html, check the data's reference column "
      "and task.template, and try easier problems, more rollout.max_new_tokens or a warm start"
    )
  if value >= 1:
    return f"{start}; the problems are too easy for the policy, or the verifier accepts anything"
  return f"{start}; the verifier or reward function does not tell good responses from bad ones"


def _unparsable(seen):
  if not (shares := seen.almost_all("verifier/unparsable_fraction")):
    return ""
  now, before = shares
  if before < DEGRADED:
    return (
      f"{now:.0%} of the responses hold no answer that the verifier can read, after "
      f"{before:.0%} in step 1: the policy has degraded; {RESTART}"
    )
  return (
    f"{now:.0%} of the responses hold no answer that the verifier can read; check that "
    "task.template asks for the form that the verifier reads, that task.chat and task.think_end "
    "fit the model, and that rollout.max_new_tokens leaves room for the answer"
  )


def _truncated(seen):
  if not (shares := seen.almost_all("rollout/truncated_fraction")):
    return ""
  now, before = shares
  if before < DEGRADED:
    return (
      f"{now:.0%} of the responses are cut off at rollout.max_new_tokens, after "
      f"{before:.0%} in step 1: raise it if answers have grown longer and better; if they have "
      f"not, the policy has degraded: {RESTART}"
    )
  return (
    f"{now:.0%} of the responses are cut off at rollout.max_new_tokens; raise it, or, if "
    "the text goes on after the answer, set task.chat for a chat model, whose turns end"
  )


def _failed(seen):
  if not (shares := seen.almost_all("verifier/failed_fraction")):
    return ""
  now, _ = shares
  return (
    f"the verifier timed out or crashed on {now:.0%} of the responses, which earn 0; raise "
    "verifier.time_limit, lower verifier.workers, or fix the reward function"
  )


def _entropy_collapse(seen):
  entropy, reward = seen.last("policy/entropy", FEW), seen.last("reward/mean", FEW)
  if not len(entropy) or np.any(entropy > COLLAPSED):
    return ""
  if len(reward) and np.all(reward >= SOLVED):
    return ""
  return (
    f"the policy's entropy has collapsed to {entropy[-1]:.3f} nats per token, so all responses to "
    "a prompt are the same; lower train.learning_rate, raise train.loss.clip_high, or set "
    "train.loss.entropy_coef or train.loss.kl_coef, and start again from an earlier checkpoint"
  )


def _entropy_explosion(seen):
  entropy, start = seen.last("policy/entropy", FEW), seen.at_start("policy/entropy")
  if not _all_above(entropy, max(EXPLODED, 2 * start)):
    return ""
  return (
    f"the policy's entropy has grown from {start:.2f} to {entropy[-1]:.2f} nats per token, towards "
    "random text; lower train.learning_rate or train.loss.entropy_coef, set train.loss.kl_coef, "
    "and start again from an earlier checkpoint"
  )


def _zero_gradient(seen):
  norms = seen.last("policy/grad_norm", SOME)
  if not len(norms) or norms.any() or _equal_rewards(seen):
    return ""
  return (
    f"the gradient was 0 in the last {SOME} steps: the responses to each prompt all earn the same; "
    "raise rollout.n or rollout.temperature, or choose problems that the policy solves sometimes"
  )


def _clipped_gradient(seen):
  norms, limit = seen.last("policy/grad_norm", MANY), seen.max_grad_norm
  if not limit or not len(norms) or np.mean(norms > FAR_ABOVE * limit) <= ALMOST_ALL:
    return ""
  return (
    f"gradients were clipped to less than a tenth in nearly all of the last {MANY} steps (norm "
    f"{norms[-1]:.3g}, train.max_grad_norm={limit:g}); raise train.max_grad_norm or "
    "train.minibatch_size, or lower train.learning_rate"
  )


def _growing_mismatch(seen):
  mismatch, start = seen.last("rollout/mismatch_kl", SOME), seen.at_start("rollout/mismatch_kl")
  if not len(mismatch) or mismatch.mean() <= max(MISMATCH, GROWN * start):
    return ""
  return (
    f"sampler and trainer disagree more and more (rollout/mismatch_kl {start:.2g} -> "
    f"{mismatch.mean():.2g} nats per token); set model.dtype=float32, train.loss.importance_cap=2 "
    "or train.loss.rejection, or lower train.learning_rate"
  )


def _bad_probe(seen):
  removed, active = (seen.last(f"probe/{x}", PROBED) for x in ("variance_reduction", "active"))
  if not len(removed) or np.any(removed >= 0) or not _all_above(active, 0.5):
    return ""
  return (
    f"the probe predicts rewards worse than the batch mean does (variance reduction "
    f"{removed[-1]:+.2f}, below 0 for {PROBED} steps); raise probe.buffer_rows, probe.min_rows or "
    "probe.alpha, choose other rollout.feature_layers, or train with rloo"
  )


def _repeated(seen):
  wrong = seen.last("rollout/repeated_fraction", FEW)
  if _all_above(wrong, REPEATED):
    return f"{wrong[-1]:.0%} of the responses are one and the same wrong text; {RESTART}"
  right = seen.last("reward/repeated_fraction", FEW)
  if _all_above(right, REPEATED):
    return (
      f"{right[-1]:.0%} of the answers that earn are the same text on prompts with different "
      "references; read them in report.html, and make the verifier stricter"
    )
  return ""


def _all_above(values, limit):
  return len(values) > 0 and bool(np.all(values > limit))


WATCHERS: dict[str, Callable[[Seen], str]] = {  # the metric warn/NAME is 1 while one speaks
  "equal_rewards": _equal_rewards,
  "unparsable": _unparsable,
  "truncated": _truncated,
  "verifier_failed": _failed,
  "entropy_collapse": _entropy_collapse,
  "entropy_explosion": _entropy_explosion,
  "zero_gradient": _zero_gradient,
  "clipped_gradient": _clipped_gradient,
  "growing_mismatch": _growing_mismatch,
  "probe_worse_than_mean": _bad_probe,
  "repeated_answers": _repeated,
}


class Watch:
  """All watchers over a run, step by step."""

  def __init__(self, max_grad_norm: float, rows: Iterable[Row] = ()):
    """Args:
    max_grad_norm: config.train.max_grad_norm.
    rows: metrics of the steps before, for a run that is resumed or read back.
    """
    self.max_grad_norm = max_grad_norm
    self.first: list[Row] = []
    self.latest: collections.deque[Row] = collections.deque(maxlen=MANY)
    self.sentences: dict[str, tuple[int, str]] = {}  # watcher -> the first step, and what it said
    for row in rows:
      self(int(row["step"]), row)

  def __call__(self, step: int, values: Row) -> tuple[dict[str, float], list[str]]:
    """Takes the metrics of a step.

    Args:
      step: number of the step; 0 is the evaluation before training.
      values: metrics by name.

    Returns:
      {"warn/NAME": 1.0} of the watchers that find something in this step, and the sentences of
      those that never did before.
    """
    if not step:
      return {}, []
    if len(self.first) < SOME:
      self.first.append(values)
    self.latest.append(values)
    seen = Seen(self.first, list(self.latest), self.max_grad_norm)
    found = {name: text for name, watcher in WATCHERS.items() if (text := watcher(seen))}
    new = [name for name in found if name not in self.sentences]
    self.sentences |= {name: (step, found[name]) for name in new}
    return {f"warn/{name}": 1.0 for name in found}, [found[name] for name in new]
