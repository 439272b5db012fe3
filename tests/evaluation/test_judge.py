"""Format rewards, weighted sums, a user's own function, and the metrics of a step."""

import pytest

from poise_jax.errors import UserError
from poise_jax.evaluation.judge import Judge, VerifierConfig
from poise_jax.verifiers import Check, UnusableError, Verdict, verify
from poise_jax.verifiers.pool import Pool

FIVE = Check("last_integer", "5")
FORMAT = dict(format="<think>.*</think>.*", format_weight=0.2)
ALL = dict(function="user_rewards:half", function_weight=0.4) | FORMAT


@pytest.mark.parametrize(
  "config,training,evaluation",  # scores of: right and in the format, right, in the format, neither
  [
    ({}, [1, 1, 0, 0], [1, 1, 0, 0]),
    (FORMAT, [1, 0.8, 0.2, 0], [1, 1, 0, 0]),
    (dict(function="user_rewards:half"), [0.5] * 4, [0.5] * 4),
    (ALL, [0.8, 0.6, 0.4, 0.2], [1, 1, 0, 0]),
  ],
)
def test_scores_in_training_and_evaluation(config, training, evaluation):
  responses = ["<think>a\nb</think> 5", "5", "<think>x</think> 6", "6"]
  config = VerifierConfig(**config)
  for expected, mode in ((training, True), (evaluation, False)):
    check = config.check(FIVE, training=mode)
    assert [verify(check, response).score for response in responses] == pytest.approx(expected)


@pytest.mark.parametrize(
  "fields,message",
  [
    (dict(time_limit=0), "time_limit must be between 0 and 1,000,000 seconds, got 0"),
    (dict(workers=-1), "workers must be at least 0, got -1"),
    (dict(format="(", format_weight=0.1), "must be a regular expression, got '\\('"),
    (dict(strict="dabo"), "unknown verifier.strict 'dabo'; did you mean 'dapo'"),
    (dict(strict="dapo", function="a:b"), "has no effect where verifier.function replaces"),
    (dict(format="x"), "set verifier.format and verifier.format_weight together"),
    (dict(format_weight=0.1), "set verifier.format and verifier.format_weight together"),
    (dict(format="x", format_weight=0.1, function="a:b"), "must be at most 1, got 1.1"),
    (dict(function="a:b", function_weight=-0.1), "function_weight must be at least 0, got -0.1"),
  ],
)
def test_invalid_configs(fields, message):
  with pytest.raises(UserError, match=message):
    VerifierConfig(**fields)


@pytest.mark.parametrize("training", [True, False])
def test_strict_reaches_the_verifier_math_only(training):
  config = VerifierConfig(strict="dapo", **FORMAT)
  scores = [
    verify(config.check(check, training), "a \\boxed{5}").score
    for check in (Check("math", "5"), Check("exact", "a \\boxed{5}", {"extract": "all"}))
  ]
  assert scores == ([0.0, 0.8] if training else [0.0, 1.0])


def test_strict_is_no_option_of_a_users_function():
  config = VerifierConfig(strict="dapo", function="user_rewards:half", function_weight=0.5)
  assert verify(config.check(Check("math", "5"), training=True), "Answer: 5").score == 0.75


def test_strict_is_refused_where_no_check_reads_it():
  with Pool(1) as pool:
    with pytest.raises(UserError, match="read by the verifier math only; the task's is last_integ"):
      Judge(pool, VerifierConfig(strict="dapo")).load([FIVE])
    Judge(pool, VerifierConfig(strict="dapo")).load([FIVE, Check("math", "5")])


def test_a_weighted_sum_keeps_the_first_failure_and_checks_its_weights():
  parts = {"sum": (0.5, FIVE), "half": (0.5, Check("user_rewards:half", ""))}
  verdict = Verdict(0.25, "unparsable", parts={"sum": 0.0, "half": 0.5})
  assert verify(Check("weighted", parts), "nothing") == verdict
  with pytest.raises(UnusableError, match="must add up to 1, got {'sum': 0.5}"):
    verify(Check("weighted", {"sum": (0.5, FIVE)}), "5")
  with pytest.raises(UnusableError, match="maps the name of each part to"):
    verify(Check("weighted", [(1.0, FIVE)]), "5")


@pytest.mark.parametrize(
  "config,verifier,names",
  [
    (FORMAT, "math", ["math", "format"]),
    (ALL, "last_integer", ["last_integer", "format", "half"]),
    (ALL, "their_rewards:half", ["half", "format", "user_rewards:half"]),
    (FORMAT, "their_rewards:format", ["format", "constraints"]),
    (dict(function="a:b", function_weight=0.3), "math", ["math", "b"]),
  ],
)
def test_names_of_the_parts(config, verifier, names):
  check = VerifierConfig(**config).check(Check(verifier, "5"), training=True)
  assert list(check.reference) == names


def test_counts_cover_the_training_responses_since_the_last_call():
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
    counts["verifier/sandbox_failed"] = 0
    counts |= {"verifier/unparsable_fraction": 0.25, "verifier/failed_fraction": 0.5}
    assert judge.metrics() == counts
    assert judge.metrics() == dict.fromkeys(counts, 0)
    assert not judge.crashed
    with pytest.raises(UserError, match="crashed on all 2 responses; the last error: .*missing"):
      judge.score([follow] * 2, ["raise"] * 2)
    with pytest.raises(UnusableError, match="unknown verifier 'nothing'"):
      Judge(pool, VerifierConfig(function="nothing")).load([FIVE])


def test_sandboxes_that_all_fail_are_an_error_with_a_count():
  class Failing:
    def score(self, checks, responses):
      failed = Verdict(0.0, "sandbox_failed", "no process is free")
      return [failed if response == "fails" else Verdict(1.0) for response in responses]

  judge = Judge(Failing(), VerifierConfig())
  judge.score([FIVE] * 2, ["fails", "works"])
  assert judge.crashed == "no process is free"
  assert judge.metrics()["verifier/sandbox_failed"] == 1
  with pytest.raises(
    UserError, match="the sandbox failed on all 2 responses; .* no process is free"
  ):
    judge.score([FIVE] * 2, ["fails"] * 2)


def _parts(metrics):
  """The metrics of parts, by name."""
  prefix = "reward/part/"
  return {name.removeprefix(prefix): x for name, x in metrics.items() if name.startswith(prefix)}


def test_every_part_of_a_weighted_reward_is_a_metric():
  letter = Check("choice", "B")
  with Pool(2, time_limit=5) as pool:
    judge = Judge(pool, VerifierConfig(**ALL))
    judge.score([FIVE, FIVE, letter], ["5", "<think></think> 6", "Answer: B"])
    judge.score([FIVE], ["<think></think> 5"])  # a second batch of the same step
    judge.score([FIVE], ["6"], training=False)
    expected = {"last_integer": 2 / 3, "format": 2 / 4, "half": 0.5, "choice": 1.0}
    assert _parts(judge.metrics()) == pytest.approx(expected)
    assert _parts(judge.metrics()) == {}


def test_the_weighted_means_of_the_parts_add_up_to_the_mean_score_with_failures_too():
  config = VerifierConfig(format="r.*", format_weight=0.25)
  follow = Check("user_rewards:follow", "right")
  with Pool(2, time_limit=0.5) as pool:
    judge = Judge(pool, config)
    verdicts = judge.score([follow] * 4, ["right", "hang", "raise", "rong"])
    parts = _parts(judge.metrics())
  assert [v.status for v in verdicts] == ["ok", "timed_out", "crashed", "ok"]
  assert parts == {"follow": 0.25, "format": 0.5}
  mean = sum(verdict.score for verdict in verdicts) / 4
  assert 0.75 * parts["follow"] + 0.25 * parts["format"] == pytest.approx(mean)


def test_parts_that_a_user_reports_are_metrics_too():
  with Pool(1, time_limit=5) as pool:
    judge = Judge(pool, VerifierConfig(function="user_rewards:vowels"))
    judge.score([FIVE, FIVE], ["aeon", "nothing"])
    assert _parts(judge.metrics()) == pytest.approx({"a": 0.05, "e": 0.05})


@pytest.mark.parametrize(
  "check,message",
  [
    (Check("last_integer", "12.0"), "last_integer must be a whole number in plain digits"),
    (Check("math", ""), "verifier math is empty"),
    (Check("math", 12), "verifier math, 12, is malformed"),
    (Check("choice", 2), "verifier choice, 2, is malformed"),
    (Check("exact", []), "must be a text, or a list of texts, got \\[\\]"),
    (Check("exact", [" "]), "must be a text, or a list of texts"),
    (Check("exact", 7), "must be a text, or a list of texts, got 7"),
    (Check("numeric", 5, {"absolute": float("nan")}), "tolerances"),
    (Check("numeric", "none"), "must be a number"),
    (Check("countdown", {"numbers": [2, 3]}), "must be {"),
    (Check("constraints", [{"kind": "words"}]), "set at_least, at_most or exactly"),
    (Check("tool_call", {"name": "f", "arguments": "x"}), "tool_call is malformed"),
    (Check("code", {"inputs": ["1"], "outputs": [None]}), "not text: None"),
    (Check("structure", ""), "structure is empty"),
    (Check("reasoning_gym", {}), "needs a dataset and an entry"),
    (Check("exact", "a", {"ignore_cases": True}), "options of verifier exact: .*'ignore_cases'"),
    (Check("weighted", {"a": (1.0, Check("exact", 7))}), "must be a text, or a list of texts"),
    (Check("weighted", None), "maps the name of each part"),
  ],
)
@pytest.mark.parametrize("config", [{}, FORMAT, ALL])
def test_a_check_that_no_response_can_satisfy_is_refused_before_the_first_step(
  config, check, message
):
  class NoPool:  # nothing is judged
    load = staticmethod(lambda checks: None)

  judge = Judge(NoPool(), VerifierConfig(**config))
  judge.load([FIVE, Check("last_integer", 12), Check("exact", ["a", ""])])
  with pytest.raises(UnusableError, match=message):
    judge.load([FIVE, check])
  instead = VerifierConfig(function="user_rewards:half")  # whose references may be anything
  Judge(NoPool(), instead).load([FIVE, check])


@pytest.mark.parametrize("status", ["crashed", "unparsable", "timed_out"])
def test_a_batch_that_no_verifier_can_judge_is_a_warning_with_an_example(status):
  """The responses are the cause, where the verifier is one of this package."""

  class Failing:
    def score(self, checks, responses):
      return [Verdict(0.0, status, "nested too deeply") for _ in responses]

  judge = Judge(Failing(), VerifierConfig())
  judge.score([FIVE] * 2, ["[[[", "[[[["], training=False)
  assert not judge.warning
  judge.score([FIVE] * 2, ["[[[", "[[[["])
  assert "none of 2 responses" in judge.warning and "'[[[['" in judge.warning
  assert f"({status}: nested too deeply)" in judge.warning
  assert judge.metrics()[f"verifier/{status}"] == 2 and not judge.warning
  judge.score([FIVE] * 2, ["[[[", "[[[["])
  assert not judge.warning  # once a run


def test_rewards_out_of_range_stop_only_a_run_that_cannot_take_them(tmp_path):
  source = tmp_path / "rewards.py"
  source.write_text("def points(reference, response):\n  return float(response)\n")
  config = VerifierConfig(function=f"{source}:points")
  with Pool(1, 20.0) as pool:
    free, bounded = Judge(pool, config), Judge(pool, config, "estimator 'x' cannot: rescale them")
    assert [v.score for v in free.score([FIVE] * 2, ["-3", "0.5"])] == [-3.0, 0.5]
    assert [v.score for v in bounded.score([FIVE] * 2, ["0", "1"])] == [0.0, 1.0]
    with pytest.raises(UserError, match=r"returned -3, .* not in \[0, 1\]; estimator 'x' cannot"):
      bounded.score([FIVE] * 2, ["0.5", "-3"])
    assert bounded.score([FIVE], ["-3"], training=False)[0].score == -3.0


def test_functions_get_the_question_and_the_row(tmp_path):
  source = tmp_path / "rewards.py"
  source.write_text(
    "def same(expected, text, question, level):\n  return question + level == text\n"
  )
  check = Check("last_integer", "5", question="2 + 3", row={"level": "!"})
  config = VerifierConfig(function=f"{source}:same", function_weight=0.5)
  assert verify(config.check(check, training=True), "2 + 3!").score == 0.5
  assert config.check(check, training=False).row == {}  # built-in verifiers do not need it
