"""The default config of every experiment, and the meaning of each field.

An experiment's get_config(algorithm) starts from `default(algorithm)` and changes what it needs.
`python -m experiments.train --help` shows a field's meaning: the comment beside it, here or in the
dataclass that SECTIONS names.
"""

import dataclasses

from ml_collections import ConfigDict

from configs.algorithms import ALGORITHMS, PROBE_V3
from poise_jax.data.tasks.config import SECTIONS as TASK_SECTIONS
from poise_jax.data.tasks.config import TaskConfig
from poise_jax.errors import unknown_name
from poise_jax.estimators import CriticConfig, ProbeOptions
from poise_jax.evaluation.answer import EvalConfig
from poise_jax.evaluation.judge import VerifierConfig
from poise_jax.learner.config import UpdateOptions
from poise_jax.learner.losses import PolicyLossConfig
from poise_jax.learner.warm_start import WarmStartConfig
from poise_jax.models import ModelConfig
from poise_jax.rollout.config import RolloutOptions
from poise_jax.training.collect import CollectConfig
from poise_jax.training.rewards import RewardConfig

SECTIONS = {  # section of the config -> the dataclass that defines its fields
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
  """The config of an algorithm, locked: no field can be added.

  Raises:
    UserError: the name is not in ALGORITHMS.
  """
  if algorithm not in ALGORITHMS:
    raise unknown_name("algorithm", algorithm, ALGORITHMS)
  config = ConfigDict()
  config.algorithm = algorithm  # name after --config=FILE.py:, whose preset these values are
  # source of advantages: a name in estimators.ESTIMATORS, or your own as path/to/file.py:function
  # or package.module:function
  config.estimator = "poise"
  config.seed = 0  # seed of problems, initial weights and sampling
  config.steps = 100  # number of steps: batches of rollouts to train on
  config.rollouts = 64  # sequences per step; prompts per step are rollouts / rollout.n
  config.eval_every = 20  # steps between held-out evaluations; there is one before and one after
  config.eval_batch = 64  # prompts answered at once in an evaluation; more wait in a queue
  # steps between checkpoints; 0: only at best evaluations, signals and the last step
  config.checkpoint_every = 20
  config.checkpoint_keep_every = 0  # interval of checkpoints that are never deleted; 0: none
  # consecutive optimizer steps skipped for a loss or gradient that is not finite, that end a run
  config.max_skipped_updates = 4
  # steps between renewals of the reference policy (for a KL or pvpo); 0: never renewed
  config.reference_every = 0
  config.reference_n = 8  # rollouts of the reference policy per prompt, for estimator pvpo
  config.log_samples = 4  # prompts per step whose answers, token by token, go to samples.jsonl
  # destinations of metrics beside the console, metrics.jsonl and report.html: tensorboard, wandb
  config.loggers = ("tensorboard",)
  config.profile_steps = ()  # first and last step of a jax.profiler trace, for example (3, 4)

  config.model = ConfigDict()
  config.model.source = ""  # argument of models.load; empty: random weights of the shape below
  # fields of ModelConfig, without vocab_size if source is empty. With a source, values that it must
  # have; experiments.compile_topology then needs no weights
  config.model.shape = ConfigDict()
  config.model.dtype = "float32"  # sampling dtype; training has train.dtype

  config.mesh = ConfigDict()
  config.mesh.data = 1  # devices that hold copies of the parameters and share the batch
  config.mesh.fsdp = -1  # devices that share parameters and batch; -1: all that remain
  config.mesh.tensor = 1  # devices that share heads, MLP width and vocabulary

  for section, dataclass in SECTIONS.items():
    if "." not in section:  # the others are part of one of these
      config[section] = ConfigDict(dataclasses.asdict(dataclass()))
  # Every algorithm has the probe of the released code, for experiments.probe_ablation.
  config.update_from_flattened_dict({**PROBE_V3, **ALGORITHMS[algorithm].fields})
  return config.lock()
