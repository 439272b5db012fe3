"""Ratios of synthetic measurements by hand, and the measurements of our own sampler."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest

from experiments import benchmark
from poise_jax import models

ROOT = pathlib.Path(__file__).parents[2]


def program(seconds, **more):
  """A command that prints these measurements after another line."""
  line = json.dumps({"seconds": seconds, **more})
  return [sys.executable, "-c", f"print('hello'); print({line!r})"]


def test_ratios_are_of_medians_over_all_rounds():
  programs = {
    "poise_jax": program([1.0, 3.0], peak_gb=2.0),
    "slow": program([8.0], peak_gb=5.0),
    "frugal": program([1.0, 0.5]),
  }
  results = {"sampling": benchmark.alternate(programs, rounds=2)}
  assert results["sampling"]["poise_jax"] == {"seconds": [1.0, 3.0, 1.0, 3.0], "peak_gb": 2.0}
  assert benchmark.table(results, {"sampling": 40}).splitlines()[2:] == [
    "| sampling | poise_jax | 2.00 (1.00 to 3.00) | 20 | 2.0 | 1.00 x | 1.00 x |",
    "| sampling | slow | 8.00 (8.00 to 8.00) | 5 | 5.0 | 4.00 x | 2.50 x |",
    "| sampling | frugal | 0.75 (0.50 to 1.00) | 53 |  | 0.38 x |  |",
  ]


def test_a_peer_that_fails_is_named_with_its_error():
  with pytest.raises(ValueError, match="(?s)slow failed: .*no such peer"):
    benchmark.measure("slow", [sys.executable, "-c", "raise RuntimeError('no such peer')"])


def test_the_sampler_is_measured_in_three_variants(tmp_path):
  config = models.ModelConfig("llama", 64, 16, 24, 2, 2, 1, 8)
  models.save_hf(tmp_path, config, models.init(config, jax.random.key(0)))
  arguments = [str(tmp_path), "5", "[3, 1]", "2", "0"]
  command = [sys.executable, "-m", "experiments.peers.poise_sampler", *arguments]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  measured = json.loads(done.stdout)
  assert set(measured) == {"seconds", "without_features", "one_a_prompt"}
  for seconds in measured.values():
    assert len(seconds) == 2 and all(0 < s < 60 for s in seconds)


def test_ragged_lengths_have_the_mean_and_the_limit_that_are_asked_for():
  limits = benchmark.ragged_limits(prompts=20_000, limit=10_000)
  assert 2_350 < sum(limits) / len(limits) < 2_500  # 2,500 less what the cut takes
  assert max(limits) == 10_000 and min(limits) >= 1
  assert limits == benchmark.ragged_limits(20_000, 10_000)


def test_a_peer_ends_at_the_length_that_it_is_given_and_not_earlier(monkeypatch):
  import torch

  monkeypatch.syspath_prepend(ROOT / "experiments" / "peers")
  import limits

  processor = limits.Limits([1, 3, 3], prompt=4, eos=2)
  ended = []
  for drawn in range(3):
    scores = processor(torch.zeros(3, 4 + drawn, dtype=torch.int64), torch.zeros(3, 5))
    ended.append([row.isfinite().nonzero().flatten().tolist() for row in scores])
  others = [0, 1, 3, 4]
  assert ended == [[[2], others, others], [[2], others, others], [[2], [2], [2]]]


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("--work=rugged",), "--work=rugged must be fixed or ragged"),
    (("--sequences=3",), "--sequences=3 must be a multiple of 2"),
    (("--ragged_sequences=12",), "--ragged_sequences=12 must be a multiple of 8"),
    (("--ragged_sequences=0",), "--ragged_sequences=0 must be a multiple of 8"),
  ],
)
def test_mistakes_are_named_before_anything_is_measured(arguments, message):
  command = [sys.executable, "-m", "experiments.benchmark", *arguments]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode and message in done.stderr
