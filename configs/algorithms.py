"""The algorithms: paper -> preset, in one table.

`--config=FILE.py:NAME` takes a name of ALGORITHMS. Each entry names its source and lists the fields
of the config that it sets; every other field has the default of configs/common.py or the value of
FILE.py. The table in docs/algorithms.md is made from this one by `python -m configs.algorithms`.
"""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """A published algorithm as a preset of the config."""

  source: str  # paper as "arXiv NUMBER", with the section, table or code that gives the settings
  meaning: str  # where advantages come from and what is special, for --help
  fields: Mapping[str, object]  # dotted name of a config field -> its value
  differs: str = ""  # differences from the source


# The probe of the paper. Table 4 of v2 does not say what the first probe is fitted on; here RLOO
# fills the buffer for the 4 steps that 4,096 rows take at 512 prompts x 2. v3 is the released code
# (github.com/holi-lab/POISE, commit 511641e9) for Qwen3-4B.
PROBE_V2 = {
  "probe.alpha": 0.01,
  "probe.pca_prompt": 0,
  "probe.pca_response": 0,
  "probe.buffer_rows": 4096,
  "probe.bootstrap_steps": 4,
}
PROBE_V3 = {
  "probe.alpha": 100.0,
  "probe.pca_prompt": 32,
  "probe.pca_response": 64,
  "probe.buffer_rows": 4096,
  "probe.bootstrap_steps": 16,
}
# The policy loss of POISE's released code; its control RLOO and SPO's code share it.
CLIP_HIGHER_DUAL = {"train.loss.clip_high": 0.28, "train.loss.dual_clip": 10.0}
CLIP_HIGHER = {"train.loss.clip_high": 0.28}
SEQUENCE_MEAN = {"train.loss.aggregation": "seq-mean-token-mean"}

ALGORITHMS = {
  "poise": Algorithm(
    source="arXiv 2605.07579 v3, the released code",
    meaning="the probe of the released code (PCA and ridge), 2 samples, clip-higher and dual clip",
    fields={"estimator": "poise", "rollout.n": 2, **PROBE_V3, **CLIP_HIGHER_DUAL},
    differs="features come from the sampler instead of a second pass; PCA is exact, not randomised",
  ),
  "poise_v2": Algorithm(
    source="arXiv 2605.07579 v2, Table 4 and eq. 14",
    meaning="POISE as first published: ridge on raw states with almost no penalty, loss of eq. 14",
    fields={"estimator": "poise", "rollout.n": 2, **PROBE_V2, **CLIP_HIGHER, **SEQUENCE_MEAN},
    differs="v2 does not say how its first probe is fitted; here RLOO fills the buffer",
  ),
  "poise_sibling": Algorithm(
    source="an extension of arXiv 2605.07579 v3",
    meaning="POISE whose probe also reads the reward of the rollout whose states it reads",
    fields={"estimator": "poise_sibling", "rollout.n": 2, **PROBE_V3, **CLIP_HIGHER_DUAL},
  ),
  "rloo": Algorithm(
    source="arXiv 2402.14740",
    meaning="POISE's control: the same rollouts and loss; baseline: mean of the other rewards",
    fields={"estimator": "rloo", "rollout.n": 2, **CLIP_HIGHER_DUAL},
    differs="the source does not clip",
  ),
  "grpo": Algorithm(
    source="arXiv 2402.03300",
    meaning="DeepSeekMath: (r - mean) / std of the group, symmetric clip, mean of sequence means",
    fields={"estimator": "grpo", "rollout.n": 8, **SEQUENCE_MEAN},
    differs="no KL unless `train.loss.kl_coef` is set (the source: 0.04, k3)",
  ),
  "dr_grpo": Algorithm(
    source="arXiv 2503.20783",
    meaning="r - mean of the group; token losses divided by the response limit, not the length, "
    "then a mean over sequences",
    fields={
      "estimator": "dr_grpo",
      "rollout.n": 8,
      "train.loss.aggregation": "seq-mean-token-sum-norm",
    },
    differs="losses are small, and so are their gradients: `train.max_grad_norm=1` seldom clips "
    "them; the source has batches of 128 responses and a limit of 3,000 tokens",
  ),
  "reinforce_pp_baseline": Algorithm(
    source="arXiv 2501.03262",
    meaning="REINFORCE++ with baseline: mean of the group, standard deviation of the batch",
    fields={"estimator": "reinforce_pp_baseline", "rollout.n": 8},
    differs="statistics over responses; no KL unless one is set",
  ),
  "gspo": Algorithm(
    source="arXiv 2507.18071",
    meaning="GRPO's advantages; one clipped ratio per sequence, with the bounds of the source",
    fields={
      "estimator": "grpo",
      "rollout.n": 8,
      "train.loss.surrogate": "gspo",
      "train.loss.clip_low": 3e-4,
      "train.loss.clip_high": 4e-4,
      **SEQUENCE_MEAN,
    },
  ),
  "cispo": Algorithm(
    source="arXiv 2506.13585",
    meaning="GRPO's advantages; -clip(r) A log pi, no gradient through the clip, no lower bound",
    fields={
      "estimator": "grpo",
      "rollout.n": 8,
      "train.loss.surrogate": "cispo",
      "train.loss.clip_low": 1.0,
      "train.loss.clip_high": 0.28,
    },
    differs="the source does not publish its upper bound; here it is 1.28. TRL recommends 5.0 "
    "after ScaleRL (`clip_high=4.0`), and verl's example is two-sided (`clip_low=10`, "
    "`clip_high=0.2`)",
  ),
  "dapo": Algorithm(
    source="arXiv 2503.14476",
    meaning="GRPO's advantages, clip-higher, token mean, dynamic sampling; for the soft overlong "
    "punishment set reward.overlong_buffer",
    fields={
      "estimator": "grpo",
      "rollout.n": 8,
      "collect.dynamic_sampling": True,
      **CLIP_HIGHER,
    },
    differs="rewards 0 / 1 instead of -1 / 1, which GRPO's normalisation cannot tell apart; "
    "surplus groups are carried over instead of dropped; length is punished only with "
    "`reward.overlong_buffer`",
  ),
  "dapo_greso": Algorithm(
    source="arXiv 2506.02177 and its code, the DAPO arm of arXiv 2605.07579 v2",
    meaning="DAPO that skips, before sampling, prompts whose last visits were all right or all "
    "wrong, so that a quarter of the groups lacks a difference",
    fields={
      "estimator": "grpo",
      "rollout.n": 8,
      "collect.dynamic_sampling": True,
      "collect.greso_target": 0.25,
      **CLIP_HIGHER,
    },
    differs="batches of one size instead of refills that adapt. As in the code, a group is easy if "
    "its mean reward is at least 0.98 and hard if it is at most 0.11, a prompt is skipped with "
    "probability 1 - max(p^z, 0.01), and a third of the target is for easy groups",
  ),
  "dapo_no_dynamic_sampling": Algorithm(
    source="arXiv 2503.14476",
    meaning="DAPO's loss alone",
    fields={"estimator": "grpo", "rollout.n": 8, **CLIP_HIGHER},
  ),
  "reinforce_pp": Algorithm(
    source="arXiv 2501.03262",
    meaning="REINFORCE++: rewards to go, whitened over the batch's tokens",
    fields={"estimator": "reinforce_pp", "rollout.n": 1},
    differs="no KL unless `reward.kl_coef` is set",
  ),
  "ppo": Algorithm(
    source="arXiv 1707.06347, as in verl, where lambda is 1",
    meaning="a critic as large as the policy, GAE with lambda 0.95, whitened",
    fields={"estimator": "ppo", "rollout.n": 1, **SEQUENCE_MEAN},
    differs="one pass per batch unless `train.epochs` is set; as in verl the critic's learning "
    "rate is 1e-5 and values are clipped at 0.5, but without its weight decay of 0.01 "
    "(`train.weight_decay` is for both models)",
  ),
  "vapo": Algorithm(
    source="arXiv 2504.05118, arXiv 2503.01491",
    meaning="PPO with a critic trained alone for 10 steps, lambda 1 for its targets and "
    "1 - 1 / (0.05 length) for the policy, clip-higher",
    fields={
      "estimator": "ppo",
      "rollout.n": 1,
      "critic.value_lam": 1.0,
      "critic.length_alpha": 0.05,
      "critic.pretrain_steps": 10,
      **CLIP_HIGHER,
    },
    differs="without the imitation loss on right answers and without groups; the value head starts "
    "at zero, not from a reward model",
  ),
  "sppo": Algorithm(
    source="arXiv 2604.08865",
    meaning="a critic as large as the policy that reads the prompt alone, cross-entropy",
    fields={"estimator": "sppo", "rollout.n": 1},
    differs="the hyper-parameters of the source's scripts are not set: for 1.5B parameters 256 "
    "prompts, mini-batches of 128, `critic.learning_rate=5e-6`; for 7B 512 prompts, mini-batches "
    "of 32, `critic.learning_rate=1e-5` and weight decay 0.1; both have temperature 0.6, "
    "`train.learning_rate=1e-6`, responses of 8,192 tokens and no warm-up of the critic",
  ),
  "spo": Algorithm(
    source="arXiv 2509.13232 and its code",
    meaning="a Beta tracker per prompt, advantages whitened; prompts drawn by sqrt(v(1-v)) + 0.05",
    fields={"estimator": "spo", "rollout.n": 1, **CLIP_HIGHER_DUAL},
    differs="no offline samples before the start (the source's script takes 8 a prompt): every "
    "prompt starts at half a success and half a failure",
  ),
  "pvpo": Algorithm(
    source="arXiv 2508.21104",
    meaning="baseline: mean reward of 8 rollouts of the reference policy, renewed every 500 steps",
    fields={"estimator": "pvpo", "rollout.n": 8, "reference_every": 500, **SEQUENCE_MEAN},
    differs="the reference's rollouts are sampled in every step instead of kept for 500; no KL "
    "unless one is set; no answers of a larger model",
  ),
}


def table() -> str:
  """ALGORITHMS as the Markdown table of docs/algorithms.md."""
  lines = ["| name | source | what it does | preset | differs from the source |", "|---" * 5 + "|"]
  for name, algorithm in ALGORITHMS.items():
    source = re.sub(r"arXiv (\d+\.\d+)", r"[\1](https://arxiv.org/abs/\1)", algorithm.source)
    preset = "; ".join(f"`{field}={value}`" for field, value in algorithm.fields.items())
    cells = (f"`{name}`", source, algorithm.meaning, preset, algorithm.differs)
    lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
  return "\n".join(lines)


if __name__ == "__main__":
  print(table())
