"""Watchers: each speaks where a run does not learn, and none does in runs that learned."""

import json
import pathlib
import re

import numpy as np
import pytest

from poise_jax.reports import watchers

RESULTS = pathlib.Path(__file__).parents[2] / "docs" / "results"
HEALTHY = sorted(RESULTS.glob("quickstart/*.jsonl")) + sorted(
  RESULTS.glob("smollm2_arithmetic/*.jsonl")
)
WELL = {  # a step of a run that learns
  "reward/mean": 0.4,
  "reward/std": 0.49,
  "reward/score": 0.4,
  "verifier/unparsable_fraction": 0.1,
  "verifier/failed_fraction": 0.0,
  "rollout/truncated_fraction": 0.2,
  "rollout/repeated_fraction": 0.1,
  "reward/repeated_fraction": 0.1,
  "policy/entropy": 0.6,
  "policy/grad_norm": 0.8,
  "rollout/mismatch_kl": 1e-4,
  "probe/active": 1.0,
  "probe/variance_reduction": 0.2,
}


def run(steps, **metrics):
  """Rows of a run that learns, but for these metrics: a value, or one for each step."""
  rows = [{"step": step + 1, **WELL} for step in range(steps)]
  for name, values in metrics.items():
    for row, value in zip(rows, np.broadcast_to(values, steps), strict=True):
      row[name.replace("__", "/")] = float(value)
  return [{"step": 0, "eval/accuracy": 0.1}, *rows]


def warnings(rows, max_grad_norm=1.0):
  """{watcher: (step, sentence)}."""
  return watchers.Watch(max_grad_norm, rows).sentences


FIRES = [  # watcher, step from which it speaks, part of the sentence, metrics
  ("equal_rewards", 5, "earn the same, 0,", dict(reward__mean=0, reward__std=0, reward__score=0)),
  ("equal_rewards", 5, "too easy", dict(reward__mean=1, reward__std=0, reward__score=1)),
  ("equal_rewards", 5, "does not tell", dict(reward__mean=0.3, reward__std=3e-9)),
  # a KL penalty makes rewards differ
  ("equal_rewards", 5, "earn the same, 0,", dict(reward__std=0.01, reward__score=0)),
  ("equal_rewards", 5, "dynamic sampling found no group", dict(collect__groups=0)),
  ("unparsable", 3, "95% .* task.template", dict(verifier__unparsable_fraction=0.95)),
  ("truncated", 3, "99% .* rollout.max_new_tokens", dict(rollout__truncated_fraction=0.99)),
  ("unparsable", 4, "after 10% in step 1", dict(verifier__unparsable_fraction=[0.1] + [1] * 9)),
  ("truncated", 4, "after 20% in step 1", dict(rollout__truncated_fraction=[0.2] + [1] * 9)),
  ("verifier_failed", 3, "verifier.time_limit", dict(verifier__failed_fraction=1)),
  ("entropy_collapse", 6, "collapsed to 0.004", dict(policy__entropy=[0.6] * 3 + [0.004] * 9)),
  ("entropy_explosion", 8, "from 0.60 to 1.90", dict(policy__entropy=[0.6] * 5 + [1.9] * 7)),
  ("zero_gradient", 5, "rollout.n", dict(policy__grad_norm=0)),
  ("clipped_gradient", 20, "norm 31, train.max_grad_norm=1", dict(policy__grad_norm=31)),
  ("growing_mismatch", 10, "model.dtype", dict(rollout__mismatch_kl=np.linspace(0, 0.04, 24))),
  ("probe_worse_than_mean", 10, "-0.30", dict(probe__variance_reduction=-0.3)),
  ("repeated_answers", 3, "same wrong text", dict(rollout__repeated_fraction=0.8)),
  ("repeated_answers", 3, "verifier stricter", dict(reward__repeated_fraction=0.8)),
]


@pytest.mark.parametrize("name,step,text,metrics", FIRES)
def test_a_watcher_speaks_once_the_metrics_are_bad_for_long_enough(name, step, text, metrics):
  lengths = [len(values) for values in metrics.values() if np.ndim(values)]
  rows = run(lengths[0] if lengths else 24, **metrics)
  found = warnings(rows)
  assert list(found) == [name]  # and no other
  assert found[name][0] == step
  assert re.search(text, found[name][1])
  watch = watchers.Watch(1.0)
  outputs = [watch(int(row["step"]), row) for row in rows]
  assert sum(len(sentences) for _, sentences in outputs) == 1
  # The metric is there in each step in which the watcher finds something.
  assert [i for i, (metric, _) in enumerate(outputs) if metric][:3] == [step, step + 1, step + 2]
  assert outputs[step][0] == {f"warn/{name}": 1.0}


def test_every_watcher_is_tested():
  assert {name for name, *_ in FIRES} == set(watchers.WATCHERS)


@pytest.mark.parametrize(
  "metrics",
  [
    dict(),
    dict(reward__std=[0, 0, 0, 0.1] * 6, reward__mean=0),
    dict(reward__mean=0.97, reward__score=0.97, reward__std=0.17, policy__entropy=0.01),  # solved
    dict(rollout__truncated_fraction=[1, 1, 0.8] * 8, verifier__unparsable_fraction=0.9),
    dict(policy__entropy=np.linspace(0.6, 0.04, 24)),
    dict(policy__entropy=np.linspace(0.3, 0.9, 24)),
    dict(policy__grad_norm=[0, 0, 0, 0, 0.2, 0.1] * 4),
    dict(policy__grad_norm=6.0),  # clipped in every step, as in many runs that learn
    dict(rollout__mismatch_kl=np.linspace(0.02, 0.03, 24)),  # large, but as from the beginning
    dict(probe__variance_reduction=-0.3, probe__active=0),
    dict(probe__variance_reduction=[-0.3, -0.1, -0.2, 0.01] * 6),
    dict(rollout__repeated_fraction=0.4, reward__repeated_fraction=0.3),
  ],
)
def test_watchers_are_silent_in_honest_neighbours(metrics):
  assert not warnings(run(24, **metrics))


def test_a_run_without_clipping_has_no_clipped_gradients():
  assert not warnings(run(24, policy__grad_norm=500), max_grad_norm=0)


@pytest.mark.parametrize("path", HEALTHY, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_watchers_are_silent_in_runs_that_learned(path):
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert sum("policy/entropy" in row for row in rows) >= watchers.MANY
  assert not warnings(rows)


def test_the_runs_that_learned_are_there():
  assert len(HEALTHY) >= 4


def test_a_watcher_is_silent_where_its_metrics_were_not_logged():
  assert not warnings([{"step": step, "time/step": 1.0} for step in range(30)])


@pytest.mark.parametrize("cut", [1, 4, 12, 21])
def test_a_resumed_run_says_what_it_would_have_said(cut):
  rows = run(24, policy__entropy=[0.6] * 6 + [3.0] * 18, rollout__truncated_fraction=0.95)
  whole = watchers.Watch(1.0)
  expected = [whole(int(row["step"]), row) for row in rows][cut:]
  resumed = watchers.Watch(1.0, rows[:cut])
  assert [resumed(int(row["step"]), row) for row in rows[cut:]] == expected
