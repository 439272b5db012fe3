"""Each claim's analysis on synthetic results: it finds a difference that is there, and no other."""

import dataclasses
import json
import pathlib
import re
import sys

import numpy as np
import pytest
from commands import load

from experiments.claims import claim as claims
from experiments.claims import intervals, report, runner
from experiments.claims.algorithms import claim as algorithms
from experiments.claims.algorithms import search
from experiments.claims.claim import Check
from experiments.claims.cross_rollout import claim as cross_rollout
from experiments.claims.detection import claim as detection
from experiments.claims.diversity import claim as diversity
from experiments.claims.intervals import Interval
from experiments.claims.lab import Lab, sampled_accuracy
from experiments.claims.signal import claim as signal
from experiments.claims.tracking import claim as tracking
from experiments.claims.value_estimation import claim as value_estimation
from experiments.claims.value_estimation import source_scale
from poise_jax.errors import UserError
from poise_jax.reports.run_log import Run

main = load("claims.__main__")
SEEDS = (0, 1, 2, 3, 4)
NOISE = 0.01  # of an evaluation


@pytest.fixture(autouse=True, scope="module")
def _fewer_resamples():
  before, intervals.RESAMPLES = intervals.RESAMPLES, 400
  intervals.draws.cache_clear()
  yield
  intervals.RESAMPLES = before
  intervals.draws.cache_clear()


def run(arm, seed, gain, tokens_per_step=100.0, steps=20, start=0.2):
  """A log whose accuracy rises by `gain` in all and depends on the seed, too."""
  rng = np.random.default_rng([seed, sum(map(ord, arm))])
  level = start + 0.1 * np.random.default_rng(seed).normal()  # what all arms of a seed share
  config = {"algorithm": arm, "seed": seed, "rollouts": 16, "rollout": {"n": 2}}
  config["train"] = {"learning_rate": 2e-4, "max_grad_norm": 1.0}
  rows = []
  for step in range(steps + 1):
    row = {"step": step, "time/elapsed": 60.0 * step}
    if step:
      row |= {"collect/tokens": tokens_per_step, "policy/grad_clipped": 0.25}
      row |= {"collect/generated_total": 16 * step, "collect/generated": 16}
      noise_of = np.random.default_rng([seed, step, sum(map(ord, arm))])
      row["collect/score"] = level + gain * min(step / 15, 1.0) + NOISE * noise_of.normal() / 3
    if step % 5 == 0:
      row["eval/accuracy"] = level + gain * min(step / 15, 1.0) + NOISE * rng.normal()
    rows.append(row)
  return Run(pathlib.Path("unused"), config, rows, [])


def runs_of(gains, **options):
  return {arm: [run(arm, seed, gain, **options) for seed in SEEDS] for arm, gain in gains.items()}


def outcomes(outcome):
  return [check.holds for check in outcome.checks]


ARMS = [arm.name for arm in algorithms.ARMS]


def compared(gains, cost):
  """The outcome of the claim about algorithms; cost: tokens per step of some arms."""
  runs = {
    arm: [run(arm, seed, gains.get(arm, 0.3), cost.get(arm, 100.0)) for seed in SEEDS]
    for arm in ARMS
  }
  axes = {"flops": "tokens"}
  curves = {
    axis: {
      arm: [
        (
          np.array(
            [
              x
              for x, row in zip(r.positions(axes.get(axis, axis)), r.rows, strict=True)
              if "eval/accuracy" in row
            ]
          ),
          algorithms.accuracy(r),
        )
        for r in members
      ]
      for arm, members in runs.items()
    }
    for axis in algorithms.AXES
  }
  lab = Lab(pathlib.Path("unused"), SEEDS)
  searched = search.record(lab, {arm: [0.2, 0.5, 0.7, 0.7, 0.6, 0.3] for arm in ARMS})
  return algorithms.outcome(runs, curves, searched)


def test_a_better_and_cheaper_algorithm_is_found():
  outcome = compared({"poise": 0.4}, {"dapo": 150.0})
  assert outcomes(outcome) == [True, True, True, True]
  shares = outcome.numbers["cost by share of DAPO's gain"]
  for share, arms in shares.items():
    ratio = arms["poise"]["tokens"]
    assert 0.4 < ratio["value"] < 0.6, share  # 3 / 4 of 2 / 3
    assert ratio["low"] <= ratio["value"] <= ratio["high"] < 0.8
  assert set(shares) == {"0.9", "1"}
  by_sampled = outcome.numbers["tokens by share of DAPO's gain in sampled accuracy"]["poise"]
  assert 0.4 < by_sampled["0.9"]["value"] < 0.6
  equal = next(
    x for x in outcome.tables["Held-out accuracy at equal cost"].splitlines() if "poise" in x
  )
  minus = float(equal.split("|")[5].split()[0])  # at equal tokens
  assert 0.1 < minus < 0.2
  assert "<svg" in outcome.figure and "| poise |" in outcome.tables["Accuracy"]
  row = next(x for x in outcome.tables["Cost of a whole run"].splitlines() if "poise" in x)
  _, rollouts, tokens, _, minutes, early = (cell.split() for cell in row.split("|")[1:-1])
  assert (rollouts, tokens[0], minutes[0]) == (["16"], "0.667", "1.000")
  assert 0.25 < float(early[0]) < 0.42  # a third, after 5 of 15 steps
  json.dumps(outcome.numbers, allow_nan=False)


def test_the_trials_of_the_search_are_shown():
  *_, table = compared({}, {}).tables.values()
  assert (
    "| arm | 5e-05 | 0.0001 | 0.0002 | 0.0004 | 0.0008 | the best, max_grad_norm=0.2 |" in table
  )
  assert (
    "| ppo | 0.200 | 0.500 | **0.700** | 0.700 | 0.600 | 0.300 |" in table
  )  # of equal ones the first
  quick = search.table({"poise": [0.2, 0.1, 0.3]})
  assert "| arm | 5e-05 | 0.0001 | the best, max_grad_norm=0.2 |" in quick


@pytest.mark.parametrize("steps, counted", ((60, 20), (30, 10), (4, 2), (1, 1)))
def test_sampled_accuracy_is_that_of_the_last_third_of_the_steps(steps, counted):
  rows = [{"step": 0}] + [{"step": i, "collect/score": i / 100} for i in range(1, steps + 1)]
  made = Run(pathlib.Path("unused"), {"rollouts": 16}, rows, [])
  expected = np.mean(np.arange(steps - counted + 1, steps + 1)) / 100
  assert sampled_accuracy(made) == pytest.approx(expected)
  del rows[-1]["collect/score"]  # the pool held enough groups
  expected = np.mean(np.arange(steps - counted + 1, steps)) / 100 if counted > 1 else np.nan
  assert sampled_accuracy(made) == pytest.approx(expected, nan_ok=True)


def test_sampled_accuracy_is_a_mean_over_answers():
  """Dynamic sampling needs three batches in one step, a step of other arms has one."""
  rows = [{"step": step, "collect/score": 0.2} for step in range(10)]
  rows[8] |= {"collect/score": 0.9, "collect/generated": 48}
  made = Run(pathlib.Path("unused"), {"rollouts": 16}, rows, [])
  assert sampled_accuracy(made) == pytest.approx((0.2 + 3 * 0.9 + 0.2) / 5)


def curves(*finals):
  """One seed whose DAPO gains from 0.2 to 0.5 and is flat at its end, and POISE to `finals`."""
  x = np.arange(7.0)
  dapo = np.array([0.2, 0.3, 0.4, 0.45, 0.5, 0.5, 0.5])
  poise = np.array([0.2, 0.35, 0.45, 0.48, *finals])
  return {"dapo": [(x, dapo)], "poise": [(x / 2, poise)]}


def test_a_curve_that_ends_just_below_reaches_nearly_the_gain():
  close = curves(0.499, 0.499, 0.499)
  whole = algorithms.to_reach(close, "poise", "dapo", 1.0)
  assert np.isinf(whole.value)
  nearly = algorithms.to_reach(close, "poise", "dapo", 0.9)  # 0.47 = 0.2 + 0.9 * 0.3
  np.testing.assert_allclose(nearly.value, (2 + 2 / 3) / 2 / 3.4, rtol=0.01)
  far = algorithms.to_reach(curves(0.46, 0.44, 0.44), "poise", "dapo", 0.99)
  assert np.isinf(far.value)


def test_the_groups_that_are_trained_on_are_shown():
  made = [run("dapo", seed, 0.3) for seed in SEEDS]
  assert algorithms.groups(made) == "8.0"
  for one in made:
    for row in one.rows[1:]:
      row["collect/groups"] = 8 if row["step"] < 11 else 5
  assert algorithms.groups(made) == "6.5"


def test_the_choice_goes_by_sampled_accuracy(tmp_path, monkeypatch):
  lab, (poise, *_) = Lab(tmp_path, SEEDS), algorithms.ARMS
  gains = {"5e_05": 0.0, "0_0001": 0.0, "0_0002": 0.1, "0_0004": 0.3, "0_0008": 0.2, "clipped": 0.2}

  def read(path):
    name = path.name.removeprefix("poise_").removesuffix(f"-{search.SEED}")
    gain = gains[name]
    made = run("poise", 0, gain)
    for row in made.rows:
      row["eval/accuracy"] = 1 - gain  # which would choose another
    return made

  monkeypatch.setattr(search.run_log, "read", read)
  trials = search.trials(lab, poise)
  assert search.best(lab, poise, trials) == {"train.learning_rate": 4e-4}
  gains["clipped"] = 0.4
  expected = {"train.learning_rate": 4e-4, "train.max_grad_norm": 0.2}
  assert search.best(lab, poise, trials) == expected
  assert "--config.train.max_grad_norm=0.2" in trials[-1].unit.arguments()


def test_a_recorded_search_stands_for_its_runs(tmp_path):
  lab = Lab(tmp_path, (3,))
  searching = algorithms.CLAIM.units(lab)
  scores = {arm: [0.2, 0.3, 0.5, 0.6, 0.4, 0.3] for arm in ARMS}
  scores["ppo"] = [0.2, 0.3, 0.5, 0.6, 0.4, 0.7]
  (tmp_path / "search.json").write_text(json.dumps(search.record(lab, scores)))
  made = runner.check(algorithms.CLAIM.units(lab))
  assert [unit.name for unit in made] == [u.name for u in searching if u.seed == 3]
  assert all(unit.needs in ((), ("start-3",)) for unit in made)
  chosen = {unit.name: " ".join(unit.arguments()) for unit in made}
  for arm in ARMS:
    arguments = chosen[f"algorithms/{arm}-3"]
    assert "--config.train.learning_rate=0.0004" in arguments
    assert ("--config.train.max_grad_norm=0.2" in arguments) == (arm == "ppo")
  with pytest.raises(UserError, match="delete the file to search again"):
    algorithms.CLAIM.units(dataclasses.replace(lab, quick=True))


def test_equal_algorithms_cannot_be_told_apart():
  outcome = compared({}, {})
  cheaper, as_good, above_rloo, above_ppo = outcomes(outcome)
  assert cheaper is None and as_good is True and above_rloo is None and above_ppo is None
  for found in outcome.numbers["tokens by share of DAPO's gain in sampled accuracy"].values():
    assert 0.9 < found["0.9"]["value"] < 1.1


def test_a_worse_algorithm_never_reaches_the_level():
  outcome = compared({"poise": 0.1}, {})
  assert outcomes(outcome) == [False, False, False, False]
  assert "not reached" in outcome.checks[0].ours
  by_sampled = outcome.numbers["tokens by share of DAPO's gain in sampled accuracy"]["poise"]
  assert by_sampled["0.9"]["value"] is None  # infinite
  assert claims.verdict(outcome.checks, 5, 5) == claims.FAILS


def test_where_dapo_learns_nothing_there_is_nothing_to_reach():
  outcome = compared({"dapo": -0.1}, {})
  assert outcome.checks[0].holds is None and outcome.checks[0].ours == "nothing to reach"


def test_accuracy_at_equal_cost_is_read_where_the_cheapest_arm_ends():
  x = np.array([0.0, 10.0])
  curves = {"cheap": [(x / 2, np.array([0.0, 0.5]))], "dear": [(x, np.array([0.0, 0.8]))]}
  assert algorithms.at_equal(curves) == {"cheap": [0.5], "dear": [0.4]}


def crossed(gains, single=0.2, pair=0.2):
  """The outcome of the claim about cross-rollout baselines; single, pair: biases of the own
  rollout's with n = 1 and n = 2."""
  arms = {arm.name: gains.get(arm.name, 0.3) for arm in cross_rollout.ARMS}
  rng = np.random.default_rng(0)
  true = dict.fromkeys(cross_rollout.BASELINES, 0.0)
  true |= {cross_rollout.OWN.name: single, cross_rollout.OWN_PAIR.name: pair}
  gradients = {
    title: [biased({name: b + 0.02 * rng.normal() for name, b in true.items()}) for _ in SEEDS]
    for title in cross_rollout.POLICIES
  }
  return cross_rollout.outcome(runs_of(arms), gradients)


def biased(shares, squared=0.5):
  """What `experiments.gradients` says of the bias."""
  return {"squared bias": shares, "squared gradient": squared}


def test_a_seed_without_a_gradient_does_not_decide_the_bias():
  """A squared gradient near 0 makes its share of bias huge, and says nothing."""
  seeds = [biased({"own": 0.2}), biased({"own": 0.2}), biased({"own": -40.0}, 0.0005)]
  assert cross_rollout.relative_bias(seeds, "own").value == pytest.approx(0.18, abs=0.001)


def test_the_cross_rollout_construction_is_found_to_matter():
  arms = "OWN", "PROMPT", "OWN_PAIR", "PROMPT_PAIR"
  gains = {getattr(cross_rollout, arm).name: 0.2 for arm in arms}
  outcome = crossed(gains)
  assert outcomes(outcome) == [True] * 6 and claims.verdict(outcome.checks, 5, 5) == claims.HOLDS
  assert claims.verdict(outcome.checks, 4, 5) == claims.UNKNOWN
  gains.pop(cross_rollout.PROMPT_PAIR.name)
  partly = crossed(gains, pair=0.0)
  assert outcomes(partly) == [True, True, True, None, True, None]
  assert claims.verdict(partly.checks, 5, 5) == claims.PART


def test_accuracy_is_that_of_sampled_answers_with_held_out_problems_beside_it():
  better = cross_rollout.POISE.name
  members = runs_of({arm.name: 0.3 for arm in cross_rollout.ARMS})
  for row in (row for member in members[better] for row in member.rows):
    row |= {"eval/accuracy": 0.9} if "eval/accuracy" in row else {}
  gradients = {
    title: [biased(dict.fromkeys(cross_rollout.BASELINES, 0.0)) for _ in SEEDS]
    for title in cross_rollout.POLICIES
  }
  outcome = cross_rollout.outcome(members, gradients)
  assert True not in outcomes(outcome)
  row = next(x for x in outcome.tables["Accuracy"].splitlines() if x.startswith(f"| {better} "))
  _, _, sampled, _, held_out, *_ = row.split("|")
  assert float(held_out.split()[0]) == 0.9 and float(sampled.split()[0]) < 0.7


def ablation(seed, quality, families=("a", "b", "c", "d", "e"), seconds=(0.01, 10.0), within=None):
  """Results of experiments.probe_ablation.

  quality: name -> r, or name -> {family: r}; within: name -> r within a level, by default 0.1.
  """
  rng = np.random.default_rng(seed)
  rows = []
  for domain in (None, *families):
    for name, r in quality.items():
      r = r[domain] if isinstance(r, dict) else r
      numbers = {"MAE": 0.5 * (1 - r), "r": r, "variance reduction": r * r, "ceiling": 0.95}
      numbers["r within a level"] = (within or {}).get(name, 0.1)
      rows.append(
        {"name": name, "domain": domain, "prompts": 9}
        | {k: x + NOISE * rng.normal() for k, x in numbers.items()}
      )
  costs = {"probe": {"seconds": seconds[0], "bytes": 1e3}}
  critics = ("sppo", "ppo", "sppo, longer")
  costs |= {name: {"seconds": seconds[1], "bytes": 1e6, "passes": 7} for name in critics}
  return {"results": rows, "costs": costs}


CRITICS = dict.fromkeys((*value_estimation.CRITICS.values(), value_estimation.LONGER), 0.5)


def estimated(probe, **options):
  quality = {value_estimation.PROBE: probe, **CRITICS}
  return value_estimation.outcome([ablation(seed, quality, **options) for seed in SEEDS])


def test_a_better_probe_is_found():
  outcome = estimated(0.8)
  assert outcomes(outcome) == [True] * 4
  assert not any(check.control for check in outcome.checks)
  assert outcome.checks[2].ours.startswith("better on 5 of 5")
  assert "| a |" in outcome.tables["Values in the test half"]
  *_, costs = outcome.tables.values()
  assert "| prompt-only critic | 10.000" in costs and "arithmetic" in costs
  longer = outcome.tables["The prompt-only critic with a longer search"].splitlines()[-1]
  assert longer.startswith("| prompt-only critic, longer | 0.2") and "7, 7, 7, 7, 7" in longer
  assert 0.2 < float(longer.split("|")[5].split()[0]) < 0.4  # the probe's gain in r
  assert outcomes(estimated(0.5))[:2] == [None, None]
  assert outcomes(estimated(0.3)) == [False] * 4


@pytest.mark.parametrize(
  "quality, expected",
  (
    ({None: 0.5, "a": 0.9, "b": 0.9, "c": 0.9, "d": 0.2, "e": 0.2}, [None, False]),
    ({None: 0.7, "a": 0.9, "b": 0.9, "c": 0.9, "d": 0.9, "e": 0.2}, [True, True]),
  ),
)
def test_families_are_counted_by_their_means(quality, expected):
  overall, *_, families = outcomes(estimated(quality))
  assert [overall, families] == expected


def test_a_family_counts_without_an_interval_of_its_own():
  """Gains of 0.02 that vary by 0.1 over seeds, so that no interval is above 0."""
  rng = np.random.default_rng(0)
  noise = rng.normal(size=len(SEEDS))
  gains = 0.02 + 0.1 * (noise - noise.mean())
  found = {family: value_estimation.gain(gains, np.zeros(5)) for family in "abcde"}
  assert all(x.above(0) is None for x in found.values())
  assert value_estimation.families_better("r", found).holds is True


def test_a_family_whose_r_is_unknown_counts_on_neither_side():
  results = [ablation(seed, {value_estimation.PROBE: 0.8, **CRITICS}) for seed in SEEDS]
  for result in results:
    for row in result["results"]:
      if row["domain"] in ("a", "b"):
        row["r"] = None
  outcome = value_estimation.outcome(results)
  assert outcomes(outcome) == [True, True, True, None]


def test_memory_at_the_sources_sizes_is_that_of_its_shapes():
  """4,096 rows of 2 x 2,560 + 3 features; weights, gradients and two moments of 4.02 billion."""
  found = source_scale.source_bytes()
  np.testing.assert_allclose(found["probe"], 4096 * 5123 * 4, rtol=0.001)
  assert found["ppo"] == found["sppo"]
  np.testing.assert_allclose(found["sppo"], 16 * 4.022e9, rtol=0.001)


def test_what_carries_the_signal_is_found():
  r = {
    signal.PROBE: 0.85,
    "prompt alone": 0.4,
    "response alone": 0.8,
    "entropy alone": 0.7,
    "length alone": 0.3,
    "layer 0": 0.8,
    "layer 1": 0.81,
  }
  windows = {w: [ablation(s + w, {signal.PROBE: 0.84}) for s in SEEDS] for w in signal.WINDOWS}
  within = {"response alone": 0.5, "prompt alone": 0.2}
  outcome = signal.outcome([ablation(seed, r, within=within) for seed in SEEDS], windows)
  assert outcomes(outcome) == [True] * 7 and controls(outcome) == [4]
  r |= {"prompt alone": 0.9, "entropy alone": 0.3, "layer 0": 0.3}
  windows[5] = [ablation(s, {signal.PROBE: 0.4}) for s in SEEDS]
  outcome = signal.outcome([ablation(seed, r) for seed in SEEDS], windows)
  assert outcomes(outcome) == [False, False, None, True, False, False, None]


def check(holds):
  return Check("h", "s", "o", holds)


@pytest.mark.parametrize(
  "holds, finished, expected",
  (
    ((True, True), 5, claims.HOLDS),
    ((True, None), 5, claims.PART),
    ((True, False), 5, claims.PART),
    ((False, False), 5, claims.FAILS),
    ((None, False), 5, claims.FAILS),
    ((None, None), 5, claims.UNKNOWN),
    ((True, True), 3, claims.UNKNOWN),
    ((True, True), 0, claims.UNKNOWN),
  ),
)
def test_verdicts(holds, finished, expected):
  assert claims.verdict([check(x) for x in holds], finished, 5) == expected
  certain = check(True).as_control()
  assert claims.verdict([certain, *(check(x) for x in holds)], finished, 5) == expected


@pytest.fixture
def filled(tmp_path):
  """A page whose results are written twice, and the folder of all claims."""
  (claim,) = (x for x in main.load().values() if x.name == "cross_rollout")
  page = tmp_path / claim.name / "page.md"
  page.parent.mkdir()
  page.write_text((claim.folder / "page.md").read_text())
  start = {"command": ["python", "-m", "x"], "commit": "abc", "uncommitted_changes": False}
  start |= {"cpu": "c", "cpus": 2, "devices": ["cpu"], "python": "3", "libraries": {}}
  about = {"planned": SEEDS, "seconds": {"k": 1.0}, "commits": ["def"], "provenance": start}

  def write(seeds, note=""):
    report.write(claim, crossed({}), {**about, "seeds": seeds}, page, note)
    return page.read_text()

  write((0, 1))
  write(SEEDS)
  return page, tmp_path, write


def test_pages_are_filled_between_their_marks(filled):
  page, *_ = filled
  text = page.read_text()
  assert text.startswith("# The baseline must come from another rollout")
  assert text.count(report.BEGIN) == text.count(report.END) == 1
  assert ", 5 of 5 seeds." in text and "2 of 5 seeds" not in text and report.NOTHING not in text
  assert "Runs at commit def." in text
  assert sorted(p.name for p in (page.parent / "results").iterdir()) == [
    *("figure.svg", "metrics.json", "table.md")
  ]
  page.write_text("no marks")
  with pytest.raises(UserError, match="must have the lines"):
    report.fill(page, "x")


@pytest.mark.parametrize(
  "seeds, label",
  (
    ((0, 1, 2), ", partial: 3 of 5 seeds."),
    ((3,), ", partial: 1 of 5 seeds."),
    ((0, 1, 2, 3, 7), ", partial: 4 of 5 seeds and 1 more."),
    ((5, 6, 7, 8, 9), ", partial: 0 of 5 seeds and 5 more."),
  ),
)
def test_missing_seeds_are_named_and_nothing_is_told(filled, seeds, label):
  """Neither of the claim nor of a hypothesis; seeds that were not planned replace none."""
  page, folder, write = filled
  assert claims.HOLDS in write(SEEDS).partition(report.BEGIN)[2]
  found = write(seeds).partition(report.BEGIN)[2]
  assert f"**{claims.UNKNOWN}**{label}" in found
  assert claims.HOLDS not in found and claims.PART not in found and claims.FAILS not in found
  outcomes = json.loads((page.parent / "results" / "metrics.json").read_text())["checks"]
  assert {x["outcome"] for x in outcomes} == {claims.UNKNOWN}
  assert label[2:-1] in report.overview(list(main.load().values()), folder, "there")


@pytest.mark.parametrize(
  "values, expected",
  (
    ([0.1, np.nan, 0.3], "r, all (seed 4)"),
    ([np.nan, 0.2, np.nan], "r, all (seed 2, 7)"),
    ([0.1, 0.2, np.inf], None),
    ([{"poise": 0.1}, {"poise": 0.2}, {"poise": np.nan}], "r, all, poise (seed 7)"),
  ),
)
def test_what_is_nan_is_named_with_its_seed(values, expected):
  numbers = {"r by seed": {"all": values, "b": [1, 2, 3]}, "mean": np.nan, "x": {"y": [np.nan]}}
  assert report.unknown(numbers, (2, 4, 7)) == ([f"NaN: {expected}."] if expected else [])
  window = {"r by seed and window": {"0.5": [0.1, np.nan, 0.3]}}
  assert report.unknown(window, (2, 4, 7)) == ["NaN: r and window, 0.5 (seed 4)."]


def test_the_page_says_what_is_nan_below_the_checks(filled, monkeypatch):
  page, _, write = filled
  assert "NaN" not in page.read_text()
  good = crossed

  def broken(gains):
    made = good(gains)
    numbers = {**made.numbers, "accuracy by seed": {"poise": [0.1, 0.2, 0.3, np.nan, 0.5]}}
    return dataclasses.replace(made, numbers=numbers)

  monkeypatch.setattr(sys.modules[__name__], "crossed", broken)
  text = write(SEEDS)
  checks, _, rest = text.partition("NaN: accuracy, poise (seed 3).")
  assert "| outcome |" in checks and rest and "## " not in checks.partition(report.BEGIN)[2]


def test_the_overview_has_every_claim_run_or_not(filled):
  _, folder, _ = filled
  text = report.overview(list(main.load().values()), folder, "there")
  lines = [line for line in text.splitlines() if line.startswith("| [")]
  assert len(lines) == len(main.NAMES)
  run, *others = sorted(lines, key=lambda line: claims.NOT_RUN in line)
  assert "there/cross_rollout/page.md" in run and claims.NOT_RUN not in run
  assert all(claims.NOT_RUN in line for line in others)
  assert "![The baseline must come from another rollout](there/cross_rollout/results" in text


def test_the_overview_quotes_what_a_page_concludes(filled):
  page, folder, _ = filled
  plan, _, _ = page.read_text().partition(report.END)
  page.write_text(f"{plan}{report.END}\n")
  before = report.overview(list(main.load().values()), folder, "there")
  page.write_text(f"{page.read_text()}\n{report.CONCLUSION}\n\nIt does not.\n\nWhy: noise.\n")
  text = report.overview(list(main.load().values()), folder, "there")
  figure = "![The baseline must come"
  assert text == before.replace(figure, f"It does not.\n\nWhy: noise.\n\n{figure}")


def test_the_units_of_all_claims_agree(tmp_path):
  """Claims share runs, so units of a name are equal; and each claim's units can be planned."""
  known = {}
  for claim in main.load().values():
    lab = Lab(tmp_path, claim.seeds)
    units = runner.check(claim.units(lab))
    assert {unit.seed for unit in units} >= set(claim.seeds)
    for unit in units:
      if not callable(unit.command):
        assert known.setdefault(unit.name, unit.command) == unit.command, unit.name


def test_every_kind_of_run_has_an_estimate(tmp_path):
  for claim in main.load().values():
    lab = Lab(tmp_path, claim.seeds)
    assert all(lab.estimates[unit.kind] > 0 for unit in claim.units(lab))


def test_quick_runs_are_labelled(tmp_path, filled):
  note = report.QUICK
  page, folder, write = filled
  assert note not in write(SEEDS)
  assert note in write(SEEDS, note) and f"# Results\n\n{note}\n" in report.overview(
    list(main.load().values()), folder, "there"
  )


def test_of_few_families_the_probe_must_be_better_on_all():
  outcome = estimated(0.8, families=("a", "b"))
  assert "at least 2 families" in outcome.checks[2].hypothesis
  assert outcomes(outcome) == [True] * 4


def test_pages_state_their_plan_before_the_results():
  for claim in main.load().values():
    text = (claim.folder / "page.md").read_text()
    plan = text.partition(report.BEGIN)[0]
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    for heading in ("Claim", "Hypotheses, fixed before the runs", "Arms", "Metric", "Seeds"):
      assert f"**{heading}." in plan, (claim.name, heading)
    assert f"{len(claim.seeds)}: " in plan.partition("**Seeds.**")[2]


def test_an_interval_that_reaches_a_threshold_tells_nothing():
  assert Interval(0.2, 0.0, 0.4, 5).above(0.0) is None
  assert Interval(0.2, 0.1, 0.4, 5).above(0.0) is True
  assert Interval(0.2, 0.1, 0.4, 5).below(0.05) is False


def collected(arm, seed, unused, skipped=None):
  """A log in which a share of the sampled tokens is discarded; sampling and judging take half of
  the time."""
  made = run(arm, seed, 0.3)
  rng = np.random.default_rng(seed)
  for row in made.rows[1:]:
    share = np.clip(unused + 0.02 * rng.normal() * (unused > 0), 0, 1)
    row |= {
      "rollout/tokens": row["collect/tokens"] * (1 - share),
      "collect/groups": 8 * (1 - share),
    }
    row |= {"time/rollout": 20.0, "time/reward": 10.0, "time/step": 60.0}
    row |= {} if skipped is None else {"collect/skipped": skipped}
  made.rows[1] |= {"time/rollout": 600.0, "time/step": 610.0}  # compiles
  return made


@pytest.mark.parametrize(
  "dapo, greso, poise, expected",
  ((0.5, 0.25, 0.0, [True, True, True]), (0.02, 0.02, 0.01, [False, None, False])),
)
def test_what_is_discarded_is_found(dapo, greso, poise, expected):
  shares = {detection.POISE.name: poise, detection.DAPO.name: dapo, detection.GRESO.name: greso}
  runs = {
    arm: [
      collected(arm, seed, share, 3.0 if arm == detection.GRESO.name else None) for seed in SEEDS
    ]
    for arm, share in shares.items()
  }
  outcome = detection.outcome(runs)
  assert outcomes(outcome) == expected and controls(outcome) == [3]
  time = outcome.numbers["time for unused tokens by seed"][detection.DAPO.name]
  np.testing.assert_allclose(np.mean(time), dapo / 2, atol=0.01)
  assert "| 3.0 |" in outcome.tables["Sampled and discarded"]


def test_rollouts_per_step_are_counted_by_third():
  made = run("dapo", 0, 0.3, steps=60)
  for row in made.rows[1:]:
    row["collect/generated"] = 16.0 * (1 + row["step"] // 21)
  assert detection.sampled_per_step([made], 0) == "16"
  assert detection.sampled_per_step([made, run("dapo", 1, 0.3)], -1) == "40"  # 20 of 47.2, 6 of 16


def bootstrapped(seed, length, gain=0.3):
  """A log with predictions after a bootstrap; their r is 0.7 in the first 4 steps, then 0."""
  made = run("poise", seed, gain)
  made.config["probe"] = {"bootstrap_steps": length}
  for row in made.rows[1:]:
    row["probe/variance_reduction"] = -1.0
    if row["step"] > length:
      r = 0.7 if row["step"] <= length + 4 else 0.0
      row |= {"probe/pearson": r, "probe/variance_reduction": r**2}
  return made


def shadowed(seed, r):
  """A log of the shadows' metrics; r: name -> Pearson's r in the second half of the steps."""
  made = bootstrapped(seed, 3)
  rng = np.random.default_rng(seed)
  for row in made.rows[1:]:
    for name in (*tracking.VARIANTS, *tracking.CRITICS):
      value = (r.get(name, 0.6) if row["step"] > 10 else -1.0) + NOISE * rng.normal()
      numbers = {"mae": 1 - value, "pearson": value, "variance_reduction": value**3}
      row |= {f"shadow/{tracking.slug(name)}/{key}": x for key, x in numbers.items()}
  return made


@pytest.mark.parametrize(
  "r, end, expected",
  (
    ({}, 0.7, [True, True, True, True]),
    ({"probe": 0.4}, 0.3, [False, False, True, True]),
    ({"probe": -0.3, **dict.fromkeys(tracking.CRITICS, -0.25)}, 0.61, [None, None, False, True]),
    (
      {"probe": 0.6, "critic": 0.3, "critic at a tenth of the rate": 0.8},
      0.7,
      [False, True, True, True],
    ),
    (
      {"probe": 0.6, "critic": 0.8, "critic at a tenth of the rate": 0.3},
      0.7,
      [False, True, True, True],
    ),
  ),
)
def test_a_probe_that_falls_behind_is_found(r, end, expected):
  rng = np.random.default_rng(3)
  held_out = {
    step: [{"MAE": 0.2, "r": x + 0.02 * rng.normal(), "ceiling": 0.9} for _ in SEEDS]
    for step, x in ((20, 0.7), (60, end))
  }
  others = [[bootstrapped(seed, length) for seed in SEEDS] for length in (16, 1)]
  outcome = tracking.outcome([shadowed(seed, r) for seed in SEEDS], held_out, others)
  assert outcomes(outcome) == expected and controls(outcome) == [3]
  assert "| refitted every 16 steps |" in next(iter(outcome.tables.values()))


@pytest.mark.parametrize("gain, flat", ((0.3, True), (0.25, False)))
def test_a_bootstrap_that_costs_accuracy_is_found(gain, flat):
  main = [shadowed(seed, {}) for seed in SEEDS]
  others = [
    [bootstrapped(seed, 16, gain) for seed in SEEDS],
    [bootstrapped(seed, 1) for seed in SEEDS],
  ]
  held_out = {step: [{"MAE": 0.2, "r": 0.7, "ceiling": 0.9} for _ in SEEDS] for step in (20, 60)}
  outcome = tracking.outcome(main, held_out, others)
  assert outcome.checks[3].holds is flat and "1, 3 or 16" in outcome.checks[3].hypothesis
  rows = outcome.tables["Length of the bootstrap"].splitlines()[2:]
  assert [row.split("|")[1].strip() for row in rows] == ["1", "3", "16"]
  assert all("| 0.700 [0.700, 0.700] | 0.490 [0.490, 0.490] |" in row for row in rows)


def test_controls_are_marked_on_the_pages():
  """Those that each claim's outcome has."""
  expected = {"tracking": [3], "detection": [3], "signal": [4], "diversity": [4]}
  for claim in main.load().values():
    plan = (claim.folder / "page.md").read_text().partition(report.BEGIN)[0]
    marked = [int(x) for x in re.findall(r"^(\d)\. \(control\)", plan, re.MULTILINE)]
    assert marked == expected.get(claim.name, []), claim.name


def test_a_headline_is_no_control():
  certain = dataclasses.replace(check(True), control=True)
  with pytest.raises(ValueError, match="the headline is a control"):
    claims.Outcome([certain, check(True)], {}, "", {})
  claims.Outcome([check(True), certain], {}, "", {})


def controls(outcome):
  return [number for number, check in enumerate(outcome.checks, 1) if check.control]


def noise(seed, ratio, poise=0.8, dapo=1.5, other=None):
  """Results of experiments.gradients: 8 answers a prompt have `ratio` times the variance of one
  and, in the second half of the prompts, `other` times."""
  rng = np.random.default_rng(seed)

  def half(ratio):
    size = rng.uniform(0.5, 2)  # of gradients; no matter of the ratio
    return {
      str(m): size * (1 + (ratio - 1) * (m - 1) / 7 + NOISE * rng.normal()) for m in (1, 2, 4, 8)
    }

  first, second = half(ratio), half(other or ratio)
  left = {"poise, n = 2": poise, "rloo, n = 2": 1.0, "dapo, n = 8": dapo, "fixed": 0.7}
  baselines = {
    name: dict.fromkeys(diversity.KINDS, x * (1 + NOISE * rng.normal())) for name, x in left.items()
  }
  halves = {"first half": (first, second), "second half": (second, first)}
  halves = {name: {"measured": a, "formula": b} for name, (a, b) in halves.items()}
  return {"halves": halves, "baselines": baselines}


def test_the_variance_of_few_prompts_is_found():
  def outcome(**options):
    policies = {p: [noise(seed, **options) for seed in SEEDS] for p in diversity.POLICIES}
    return diversity.outcome(policies)

  found = outcome(ratio=1.8)
  assert outcomes(found) == [True] * 4
  assert [check.control for check in found.checks] == [False, False, False, True]
  other = outcome(ratio=1.0, poise=1.0, dapo=0.5)
  assert outcomes(other) == [False, None, False, True]
  assert "| dapo, n = 8 |" in other.tables["Variance over RLOO's, n = 2"]
  unlike = outcome(ratio=1.3, other=1.9)  # a proposition that the same prompts could not refute
  assert outcomes(unlike) == [True, True, True, False]
  assert claims.verdict(unlike.checks, 5, 5) == claims.HOLDS
