"""Format rewards, weighted sums, a user's own function, and the counts."""

import pytest

from poise_jax.evaluation.judge import Judge, VerifierConfig
from poise_jax.verifiers import Check, UnusableError, Verdict, verify
from poise_jax.verifiers.pool import Pool

FIVE = Check("last_integer", "5")
FORM = dict(format="<think>.*</think>.*", format_weight=0.2)


@pytest.mark.parametrize(
  "config,training,evaluation",  # scores of: right and in form, right, in form, neither
  [
    ({}, [1, 1, 0, 0], [1, 1, 0, 0]),
    (FORM, [1, 0.8, 0.2, 0], [1, 1, 0, 0]),
    (dict(function="user_rewards:half"), [0.5] * 4, [0.5] * 4),
    (
      dict(function="user_rewards:half", function_weight=0.4) | FORM,
      [0.8, 0.6, 0.4, 0.2],
      [1, 1, 0, 0],
    ),
  ],
)
def test_what_a_config_makes_of_a_check(config, training, evaluation):
  responses = ["<think>a\nb</think> 5", "5", "<think>x</think> 6", "6"]
  config = VerifierConfig(**config)
  for scores, how in ((training, True), (evaluation, False)):
    got = [verify(config.check(FIVE, training=how), response).score for response in responses]
    assert got == pytest.approx(scores)


@pytest.mark.parametrize(
  "fields,message",
  [
    (dict(time_limit=0), "time_limit=0 must be positive"),
    (dict(workers=-1), "workers=-1 must not be negative"),
    (dict(format="(", format_weight=0.1), "no regular expression"),
    (dict(format="x"), "one without the other does nothing"),
    (dict(format_weight=0.1), "one without the other does nothing"),
    (dict(format="x", format_weight=0.1, function="a:b"), "1 at most together"),
    (dict(function="a:b", function_weight=-0.1), "must not be negative"),
  ],
)
def test_what_a_config_cannot_be(fields, message):
  with pytest.raises(ValueError, match=message):
    VerifierConfig(**fields)


def test_a_weighted_sum_keeps_the_first_status_and_checks_its_weights():
  parts = [(0.5, FIVE), (0.5, Check("user_rewards:half", ""))]
  assert verify(Check("weighted", parts), "nothing") == Verdict(0.25, "unparsable")
  with pytest.raises(UnusableError, match="do not add up to 1"):
    verify(Check("weighted", parts[:1]), "5")


def test_counts_are_of_training_and_of_one_step():
  follow = Check("user_rewards:follow", "right")
  with Pool(2, time_limit=0.5) as pool:
    judge = Judge(pool, VerifierConfig())
    judge.load([FIVE, follow])
    checks = [FIVE, follow, follow, follow]
    verdicts = judge.score(checks, ["none", "hang", "raise", "right"])
    assert [v.score for v in verdicts] == [0, 0, 0, 1]
    judge.score(checks, ["none", "right", "raise", "right"], training=False)
    assert "KeyError" in judge.crashed
    counts = {"verifier/unparsable": 1, "verifier/timed_out": 1, "verifier/crashed": 1}
    assert judge.metrics() == counts
    assert judge.metrics() == dict.fromkeys(counts, 0)
    assert not judge.crashed
    with pytest.raises(ValueError, match="crashed on all 2 answers; on the last with .*missing"):
      judge.score([follow] * 2, ["raise"] * 2)
    with pytest.raises(UnusableError, match="unknown"):
      Judge(pool, VerifierConfig(function="nothing")).load([FIVE])
