"""The defaults of every experiment, and what each field means.

An experiment's get_config(algorithm) starts from `default(algorithm)` and changes what it needs.
A field's meaning is the comment beside it, which `python -m experiments.train --help` shows; the
fields of a section in SECTIONS are those of its dataclass and are described there.
"""

import dataclasses

from ml_collections import ConfigDict

from poise_jax.data.tasks.config import SECTIONS as TASK_SECTIONS
from poise_jax.data.tasks.config import TaskConfig
from poise_jax.errors import unknown_name
from poise_jax.estimators import CriticConfig, ProbeOptions
from poise_jax.estimators.probe import PRESETS
from poise_jax.evaluation.answer import EvalConfig
from poise_jax.evaluation.judge import VerifierConfig
from poise_jax.learner.losses import PolicyLossConfig
from poise_jax.learner.update import UpdateOptions
from poise_jax.learner.warm_start import WarmStartConfig
from poise_jax.models import ModelConfig
from poise_jax.rollout.config import RolloutOptions
from poise_jax.training.collect import CollectConfig
from poise_jax.training.rewards import RewardConfig

ALGORITHMS = {
  # POISE as released (paper v3): 2 samples, PPO loss with clip-higher and dual clip; PCA, ridge.
  "poise": dict(estimator="poise", n=2, clip_high=0.28, dual_clip=10.0),
  # POISE as first published (paper v2): eq. 14's loss; ridge on raw states with hardly a penalty.
  "poise_v2": dict(
    estimator="poise", n=2, clip_high=0.28, aggregation="seq-mean-token-mean", probe="v2"
  ),
  # A step past the paper: the probe reads the sibling's reward beside its states.
  "poise_sibling": dict(estimator="poise_sibling", n=2, clip_high=0.28, dual_clip=10.0),
  # POISE's control: the same rollouts and loss, the sibling's reward as the baseline.
  "rloo": dict(estimator="rloo", n=2, clip_high=0.28, dual_clip=10.0),
  # DeepSeekMath: group statistics, symmetric clip, every sequence counts the same.
  "grpo": dict(estimator="grpo", n=8, aggregation="seq-mean-token-mean"),
  # Group mean alone, and a constant instead of a sequence's length.
  "dr_grpo": dict(estimator="dr_grpo", n=8, aggregation="seq-mean-token-sum-norm"),
  # REINFORCE++ with baseline: group mean, standard deviation of the batch.
  "reinforce_pp_baseline": dict(estimator="reinforce_pp_baseline", n=8),
  # GRPO's advantages with one clipped ratio a sequence; bounds of GSPO's paper.
  "gspo": dict(
    estimator="grpo",
    n=8,
    surrogate="gspo",
    clip_low=3e-4,
    clip_high=4e-4,
    aggregation="seq-mean-token-mean",
  ),
  # GRPO's advantages with a clipped weight, so that no token is left out; no lower bound. The paper
  # does not give the upper one.
  "cispo": dict(estimator="grpo", n=8, surrogate="cispo", clip_low=1.0, clip_high=0.28),
  # DAPO whole: clip-higher, token mean, dynamic sampling. Its soft overlong punishment needs a
  # length: set reward.overlong_buffer.
  "dapo": dict(estimator="grpo", n=8, clip_high=0.28, collect=dict(dynamic_sampling=True)),
  # DAPO as POISE's paper runs it: prompts that lately taught nothing are skipped before a rollout.
  "dapo_greso": dict(
    estimator="grpo",
    n=8,
    clip_high=0.28,
    collect=dict(dynamic_sampling=True, greso_target=0.25),
  ),
  # DAPO's loss alone.
  "dapo_no_dynamic_sampling": dict(estimator="grpo", n=8, clip_high=0.28),
  # REINFORCE++: rewards to go, whitened over the batch; a k1 KL in the reward where one is wanted.
  "reinforce_pp": dict(estimator="reinforce_pp", n=1),
  # PPO with a critic as large as the policy.
  "ppo": dict(estimator="ppo", n=1, aggregation="seq-mean-token-mean"),
  # VAPO's estimator: decoupled and length-adaptive lambdas, a critic trained first, clip-higher.
  "vapo": dict(
    estimator="ppo",
    n=1,
    clip_high=0.28,
    critic=dict(value_lam=1.0, length_alpha=0.05, pretrain_steps=10),
  ),
  # SPPO: a critic that reads the prompt alone.
  "sppo": dict(estimator="sppo", n=1),
  # SPO: a Beta tracker a prompt, prompts drawn by their spread, advantages whitened.
  "spo": dict(estimator="spo", n=1, clip_high=0.28, dual_clip=10.0),
  # PVPO: the mean reward of the reference policy, which is renewed every 500 steps.
  "pvpo": dict(estimator="pvpo", n=8, aggregation="seq-mean-token-mean", reference_every=500),
}

SECTIONS = {  # which dataclass a section of the config is made from
  "eval": EvalConfig,
  "task": TaskConfig,
  **{f"task.{section}": dataclass for section, dataclass in TASK_SECTIONS.items()},
  "model.shape": ModelConfig,
  "rollout": RolloutOptions,
  "reward": RewardConfig,
  "verifier": VerifierConfig,
  "collect": CollectConfig,
  "critic": CriticConfig,
  "probe": ProbeOptions,
  "train": UpdateOptions,
  "train.loss": PolicyLossConfig,
  "warm_start": WarmStartConfig,
}


def default(algorithm: str) -> ConfigDict:
  """The configuration of an algorithm, locked: what it does not have cannot be set.

  Raises:
    UserError: the name is unknown; lists all.
  """
  if algorithm not in ALGORITHMS:
    raise unknown_name("algorithm", algorithm, ALGORITHMS)
  choice = dict(ALGORITHMS[algorithm])
  config = ConfigDict()
  config.algorithm = algorithm  # the name behind --config=FILE.py: that these values are of
  config.estimator = choice.pop("estimator")  # of advantages: a name of poise_jax.estimators
  config.seed = 0  # of everything random: problems, initial weights, sampling
  config.steps = 100  # batches of rollouts to train on
  config.rollouts = 64  # sequences a step; prompts a step are rollouts / rollout.n
  config.eval_every = 20  # steps between held-out evaluations; there is one before and one after
  config.eval_batch = 64  # prompts evaluated at once
  config.eval = ConfigDict(dataclasses.asdict(EvalConfig()))
  # steps between checkpoints; 0: only at best evaluations, signals and the last step
  config.checkpoint_every = 20
  config.checkpoint_keep_every = 0  # checkpoints of these steps stay for good; 0: none
  # optimizer steps in a row, left out for loss or gradient that are not finite, that end a run
  config.max_skipped_updates = 4
  # steps after which the reference policy is renewed (for a KL or pvpo); 0: never
  config.reference_every = choice.pop("reference_every", 0)
  config.reference_n = 8  # rollouts of the reference policy a prompt, for estimator pvpo
  config.log_samples = 4  # prompts a step whose answers, token by token, go to samples.jsonl
  # Where numbers go beside the console, metrics.jsonl and report.html: tensorboard, wandb.
  config.loggers = ("tensorboard",)
  config.profile_steps = ()  # first and last step of a jax.profiler trace, for example (3, 4)

  config.model = ConfigDict()
  config.model.source = ""  # what models.load takes; empty: random weights of the shape below
  # fields of ModelConfig, but for vocab_size where source is empty; beside a source, what it must
  # have: then experiments.compile_topology needs no weights
  config.model.shape = ConfigDict()
  config.model.dtype = "float32"  # of sampling; training has train.dtype

  config.task = ConfigDict(dataclasses.asdict(TaskConfig()))

  config.mesh = ConfigDict()
  config.mesh.data = 1  # devices that hold copies of the parameters and share the batch
  config.mesh.fsdp = -1  # devices that share parameters and batch; -1: what is left of them
  config.mesh.tensor = 1  # devices that share heads, MLP width and vocabulary

  config.rollout = ConfigDict(dataclasses.asdict(RolloutOptions(n=choice.pop("n"))))
  config.reward = ConfigDict(dataclasses.asdict(RewardConfig()))
  config.verifier = ConfigDict(dataclasses.asdict(VerifierConfig()))
  config.collect = ConfigDict(dataclasses.asdict(CollectConfig(**choice.pop("collect", {}))))
  config.critic = ConfigDict(dataclasses.asdict(CriticConfig(**choice.pop("critic", {}))))
  config.probe = ConfigDict(dataclasses.asdict(PRESETS[choice.pop("probe", "v3")]))
  config.train = ConfigDict(dataclasses.asdict(UpdateOptions()))
  config.train.loss.update(choice)
  config.warm_start = ConfigDict(dataclasses.asdict(WarmStartConfig()))
  return config.lock()
