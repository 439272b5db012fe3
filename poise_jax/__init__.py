"""Reinforcement learning of language models from verifiable rewards, in JAX and Flax.

What a program of your own imports; each name has a docstring with shapes and errors:

- `poise_jax.models`: `load`, `load_tokenizer`, `forward`, `init`, `save_hf`, `ModelConfig`.
- `poise_jax.rollout`: `sample`, `RolloutConfig`, `feature_size`.
- `poise_jax.types`: `Prompts`, `Rollouts`, `Experience`, `Estimate`, `TrainState`.
- `poise_jax.estimators`: `make`, `Estimator`, `EstimatorContext`, `ProbeConfig`, `CriticConfig`.
- `poise_jax.learner.update`: `init`, `step`; `poise_jax.learner.losses`: `policy_loss`.
- `poise_jax.verifiers`: `verify`, `score`, `Check`, `Verdict`; `poise_jax.verifiers.pool`: `Pool`.
- `poise_jax.training.loop`: `train`, a whole run from a config.
- `poise_jax.errors`: `UserError`, a mistake and how to fix it.

Modules load when they are imported: `from poise_jax import models, rollout`.
"""

__version__ = "0.2.0"

_MOVED = {  # module of version 0.1 -> module that replaces it
  "at_k": "evaluation.at_k",
  "checkpoints": "training.checkpoints",
  "collect": "training.collect",
  "comparison": "reports.comparison",
  "costs": "planning.flops",
  "datasets": "data.sources",
  "dry_run": "planning.memory",
  "evaluate": "evaluation.answer",
  "export": "training.export",
  "faults": "training.post_mortem",
  "figures": "reports.svg",
  "folders": "files",
  "hlo": "planning.hlo",
  "interrupts": "training.interrupts",
  "losses": "learner.losses",
  "metrics": "training.logging",
  "names": "errors",
  "page": "reports.html",
  "processes": "distributed.processes",
  "profiling": "training.profiling",
  "prompts": "data.prompts",
  "report": "reports.run",
  "rewards": "training.rewards",
  "runs": "reports.run_log",
  "scorecard": "evaluation.table",
  "sharding": "distributed.sharding",
  "supervised": "learner.warm_start",
  "tasks": "data.tasks",
  "templates": "data.templates",
  "topology": "planning.topology",
  "train": "training.loop",
  "update": "learner.update",
  "workdir": "training.workdir",
}


def __getattr__(name: str):
  if name in _MOVED:
    raise ImportError(f"poise_jax.{name} is now poise_jax.{_MOVED[name]}; see CHANGELOG.md")
  raise AttributeError(f"module 'poise_jax' has no attribute {name!r}")
