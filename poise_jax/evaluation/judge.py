"""Scores a run's responses in a pool: by the task's checks, a format and a user's own function."""

import collections
import dataclasses
import re
import statistics
from collections.abc import Iterable, Sequence

from poise_jax.distributed import processes
from poise_jax.errors import UserError, check_finite, unknown_name
from poise_jax.verifiers import STATUSES, VERIFIERS, Check, Verdict, require_usable
from poise_jax.verifiers.base import FAILURES
from poise_jax.verifiers.pool import Pool
from poise_jax.verifiers.weighted import single_checks


@dataclasses.dataclass(frozen=True)
class VerifierConfig:
  """How responses are judged. Raises UserError on construction for invalid values.

  score = (1 - format_weight - function_weight) * score of the task's check
          + format_weight * format + function_weight * function
  """

  workers: int = 0  # processes that judge; 0: one per core
  time_limit: float = 10.0  # wall-clock seconds per response; beyond, it scores 0 as timed_out
  format: str = ""  # regular expression that the whole response should match (. is any character)
  format_weight: float = 0.0  # weight of the format in training; evaluation ignores the format
  strict: str = ""  # "dapo": the verifier math reads answers only where DAPO's grader does
  # reward of your own, "path/to/file.py:function" or "package.module:function"; see
  # docs/verifiers.md
  function: str = ""
  function_weight: float = 1.0  # 1: replaces the task's check; less: is added to it in training

  def __post_init__(self):
    check_finite("verifier", self)
    if self.workers < 0:
      raise UserError(f"verifier.workers must be at least 0, got {self.workers}")
    if not 0 < self.time_limit < 1e6:
      raise UserError(
        f"verifier.time_limit must be between 0 and 1,000,000 seconds, got {self.time_limit}"
      )
    if self.strict not in ("", "dapo"):
      raise unknown_name("verifier.strict", self.strict, ["dapo"])
    if self.strict and self._function_weight == 1:
      raise UserError(
        f"verifier.strict={self.strict} has no effect where verifier.function replaces the task's "
        "check; set verifier.function_weight below 1, or leave verifier.strict empty"
      )
    try:
      re.compile(self.format)
    except re.error as error:
      raise UserError(
        f"verifier.format must be a regular expression, got {self.format!r}: {error}"
      ) from None
    for name in ("format_weight", "function_weight"):
      if getattr(self, name) < 0:
        raise UserError(f"verifier.{name} must be at least 0, got {getattr(self, name)}")
    if (total := self.format_weight + self._function_weight) > 1:
      raise UserError(
        f"verifier.format_weight + verifier.function_weight must be at most 1, got {total:g}"
      )
    if bool(self.format) != bool(self.format_weight):
      raise UserError(
        "set verifier.format and verifier.format_weight together, got "
        f"format={self.format!r} and format_weight={self.format_weight}"
      )

  @property
  def _function_weight(self) -> float:
    return self.function_weight if self.function else 0.0

  def check(self, check: Check, training: bool) -> Check:
    """The check by which a response to a task's example is judged, in training or in evaluation.

    The parts of a weighted reward are named after the task's verifier, "format", and the user's
    function without its module (in full where the short name is taken).
    """
    function = dataclasses.replace(check, verifier=self.function)
    if check.verifier in VERIFIERS and check.verifier != "weighted":  # need not travel
      check = dataclasses.replace(check, question="", row={})
    if self.strict and check.verifier == "math":
      check = dataclasses.replace(check, options={**check.options, "strict": self.strict})
    if not training:
      return function if self._function_weight == 1 else check
    form = Check("constraints", [{"kind": "matches", "pattern": self.format}])
    parts = {}
    for name, weight, part in (
      (_short(check.verifier), 1 - self.format_weight - self._function_weight, check),
      ("format", self.format_weight, form),
      (_short(self.function), self._function_weight, function),
    ):
      if weight > 1e-9:
        parts[part.verifier if name in parts else name] = (weight, part)
    if len(parts) == 1:
      return next(iter(parts.values()))[1]
    return Check("weighted", parts, think_end=check.think_end)


def _has_function(check: Check) -> bool:
  """Whether a function of the user's own takes part in a check."""
  return any(single.verifier not in VERIFIERS for single in single_checks(check))


def _short(verifier: str) -> str:
  """A verifier's name without its module."""
  return verifier.rpartition(":")[2]


class Judge:
  """Scores responses as a VerifierConfig says, and summarises the verdicts of training."""

  def __init__(self, pool: Pool, config: VerifierConfig, bounded: str = ""):
    """Scores in a pool.

    Args:
      pool: where verifiers run.
      config: how responses are judged.
      bounded: why rewards must be in [0, 1], as the end of a sentence; empty: they need not.
    """
    self.pool, self.config, self._has_warned = pool, config, False
    self.bounded = bounded
    self._reset()

  def _reset(self):
    self.counts: collections.Counter[str] = collections.Counter()  # responses by status
    self.parts: dict[str, list[float]] = collections.defaultdict(list)  # scores by part
    self.crashed = ""  # note of the last crash or failed sandbox
    self.warning = ""  # sentence about a batch in which no response was judged

  def load(self, checks: Iterable[Check]):
    """Loads what these checks need.

    Raises:
      UnusableError: something is missing, or a check cannot judge any response.
      UserError: the config has strict, and no check reads it.
    """
    checks = list(checks)
    kinds = {check.verifier: check for check in checks}
    if self.config.strict and "math" not in kinds:
      raise UserError(
        f"verifier.strict={self.config.strict} is read by the verifier math only; the task's is "
        f"{', '.join(sorted(kinds))}, so leave verifier.strict empty"
      )
    modes = (True, False)
    self.pool.load([self.config.check(c, mode) for c in kinds.values() for mode in modes])
    for check in checks:
      require_usable(self.config.check(check, training=True))

  def score(
    self, checks: Sequence[Check], responses: Sequence[str], training: bool = True
  ) -> list[Verdict]:
    """Scores responses to tasks' checks, as Pool.score. `metrics` covers those of training.

    Raises:
      UserError: a user's function crashed or the sandbox failed on every response: the fault of the
        function or the machine, not of the responses; or a reward of training is not in [0, 1],
        although `bounded`.
    """
    checks = [self.config.check(check, training) for check in checks]
    verdicts = processes.divided(self.pool.score, checks, responses)
    failures = [v for v in verdicts if v.status in ("crashed", "sandbox_failed")]
    crashes = [verdict.note for verdict in failures]
    if crashes and len(crashes) == len(verdicts):
      counts = collections.Counter(verdict.status for verdict in failures)
      what = "the verifier crashed" if counts["crashed"] else "the sandbox failed"
      if counts["sandbox_failed"] or any(map(_has_function, checks)):
        raise UserError(f"{what} on all {len(verdicts)} responses; the last error: {crashes[-1]}")
    if self.bounded and training:
      self._require_bounded(verdicts)
    if training:
      if all(verdict.status != "ok" for verdict in verdicts) and not self._has_warned:
        self._has_warned = True  # once a run: a policy often starts without the form of an answer
        self.warning = (
          f"warning: none of {len(verdicts)} responses could be judged, such as "
          f"{responses[-1][-200:]!r} ({verdicts[-1].status}: {verdicts[-1].note})"
        )
      self.counts.update(verdict.status for verdict in verdicts)
      self.crashed = crashes[-1] if crashes else self.crashed
      for check, verdict in zip(checks, verdicts, strict=True):
        # A weighted check without a verdict (timed out or crashed) scores 0, as do all its parts.
        names = check.reference if check.verifier == "weighted" else verdict.parts
        for name in names:
          self.parts[name].append(verdict.parts.get(name, 0.0))
    return verdicts

  def _require_bounded(self, verdicts: Sequence[Verdict]):
    """Raises UserError for a reward that the run's estimator cannot take."""
    for verdict in verdicts:
      if not 0 <= verdict.score <= 1:
        raise UserError(
          f"a reward function returned {verdict.score:g}, which is not in [0, 1]; {self.bounded}"
        )

  def messages(self) -> list[str]:
    """Sentences about the training responses since the last call of `metrics`."""
    crash = f"a verifier crashed; the last error: {self.crashed}" if self.crashed else ""
    return [message for message in (crash, self.warning) if message]

  def metrics(self) -> dict[str, float]:
    """Metrics of the training responses since the last call.

    verifier/<status>: number of responses whose verdict has that status, for all but "ok".
    verifier/unparsable_fraction, verifier/failed_fraction: shares of the responses in which nothing
    could be read, and on which the verifier timed out, crashed or had no sandbox (0 without any).
    reward/part/<name>: mean score in [0, 1] of a part of weighted rewards, before weighting.
    """
    metrics = {f"verifier/{status}": self.counts[status] for status in STATUSES if status != "ok"}
    total = max(1, self.counts.total())
    metrics["verifier/unparsable_fraction"] = self.counts["unparsable"] / total
    metrics["verifier/failed_fraction"] = sum(self.counts[status] for status in FAILURES) / total
    for name, scores in sorted(self.parts.items()):
      metrics[f"reward/part/{name}"] = statistics.fmean(scores)
    self._reset()
    return metrics
