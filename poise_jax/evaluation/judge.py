"""How a run's answers are judged: the task's checks, a format, a user's own function; in a pool."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence

from poise_jax.distributed import processes
from poise_jax.errors import UserError
from poise_jax.verifiers.base import STATUSES, Check, Verdict
from poise_jax.verifiers.pool import Pool


@dataclasses.dataclass(frozen=True)
class VerifierConfig:
  """How answers are judged; raises UserError on construction for values without a meaning.

  score = (1 - format_weight - function_weight) * the task's check
          + format_weight * format + function_weight * function, which stays in [0, 1].
  """

  workers: int = 0  # processes that judge; 0: a core each
  time_limit: float = 10.0  # seconds of wall-clock an answer may take; then it scores 0, timed_out
  format: str = ""  # regular expression that the whole response should match (. is any character)
  format_weight: float = 0.0  # what that counts in training; evaluation leaves it out
  function: str = ""  # a reward of your own, "package.module:function"; see docs/verifiers.md
  function_weight: float = 1.0  # 1: instead of the task's check; less: beside it, in training only

  def __post_init__(self):
    if self.workers < 0 or not 0 < self.time_limit < 1e6:
      raise UserError(
        f"verifier.workers={self.workers} must not be negative and "
        f"verifier.time_limit={self.time_limit} must be positive"
      )
    try:
      re.compile(self.format)
    except re.error as error:
      raise UserError(
        f"verifier.format={self.format!r} is no regular expression: {error}"
      ) from None
    weights = [self.format_weight, self.function_weight if self.function else 0.0]
    if min(*weights, self.function_weight) < 0 or sum(weights) > 1:
      raise UserError(
        f"verifier.format_weight={self.format_weight} and verifier.function_weight="
        f"{self.function_weight} must not be negative, and 1 at most together"
      )
    if bool(self.format) != bool(self.format_weight):
      raise UserError(
        f"verifier.format={self.format!r} and verifier.format_weight={self.format_weight}: "
        "one without the other does nothing"
      )

  def check(self, check: Check, training: bool) -> Check:
    """What an answer to a task's example is judged by, in training or in evaluation."""
    function_weight = self.function_weight if self.function else 0.0
    own = Check(self.function, check.reference, check.options)
    if not training:
      return own if function_weight == 1 else check
    form = Check("constraints", [{"kind": "matches", "pattern": self.format}])
    parts = [
      (1 - self.format_weight - function_weight, check),
      (self.format_weight, form),
      (function_weight, own),
    ]
    parts = [(weight, part) for weight, part in parts if weight > 1e-9]
    return parts[0][1] if len(parts) == 1 else Check("weighted", parts)


class Judge:
  """Scores answers as a VerifierConfig says, and counts those that no verdict was reached on."""

  def __init__(self, pool: Pool, config: VerifierConfig):
    self.pool, self.config = pool, config
    self.counts, self.crashed = collections.Counter(), ""

  def load(self, checks: Iterable[Check]):
    """Loads what these checks need; raises UnusableError if one needs what is not there."""
    kinds = {check.verifier: check for check in checks}.values()
    self.pool.load([self.config.check(c, training) for c in kinds for training in (True, False)])

  def score(
    self, checks: Sequence[Check], responses: Sequence[str], training: bool = True
  ) -> list[Verdict]:
    """As Pool.score, of the answers to tasks' checks. Those of training are counted.

    Raises UserError if the verifier crashed on every one of them: that is no reward to learn from.
    """
    judged = [self.config.check(check, training) for check in checks]
    verdicts = processes.divided(self.pool.score, judged, responses)
    crashed = [verdict.note for verdict in verdicts if verdict.status == "crashed"]
    if crashed and len(crashed) == len(verdicts):
      raise UserError(
        f"the verifier crashed on all {len(verdicts)} answers; on the last with {crashed[-1]}"
      )
    if training:
      self.counts.update(verdict.status for verdict in verdicts)
      self.crashed = crashed[-1] if crashed else self.crashed
    return verdicts

  def metrics(self) -> dict[str, int]:
    """Answers by what went wrong since the last call."""
    seen = {f"verifier/{status}": self.counts[status] for status in STATUSES if status != "ok"}
    self.counts, self.crashed = collections.Counter(), ""
    return seen
