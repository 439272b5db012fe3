"""The analysis of `signal` on synthetic results."""

from claim_logs import SEEDS, ablation, controls, outcomes

from experiments.claims.signal import claim as signal


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
