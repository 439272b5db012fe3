"""The base experiment of all claims, configs/lab.py, and the runs that claims share.

A run is named by its arm and its seed. Claims with the same arm share its runs, and all arms of a
seed share the warm start, the problems and the order of the prompts.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.claims.runner import Marks, Unit
from poise_jax.errors import UserError
from poise_jax.reports import run_log
from poise_jax.reports.run_log import Run

CONFIG = "configs/lab.py"
FINAL = 3  # last evaluations whose mean is the final accuracy
LATE = 3  # sampled_accuracy is of the last one of so many parts of the steps
# Changes of configs/lab.py for all claims: a quarter of the model's parameters, so that five seeds
# of all arms take hours instead of a day. An evaluation takes as long as about two steps.
FULL = {
  "eval_every": 10,
  "loggers": (),
  "model.shape.hidden_size": 128,
  "model.shape.intermediate_size": 352,
  "model.shape.head_dim": 32,
  "warm_start.steps": 2000,
}
# A model of some thousand parameters and a few steps, which test the machinery and nothing else.
QUICK = {
  "loggers": (),
  "steps": 4,
  "eval_every": 2,
  "checkpoint_every": 0,
  "rollouts": 16,
  "eval_batch": 20,
  "model.shape.hidden_size": 32,
  "model.shape.intermediate_size": 48,
  "model.shape.num_hidden_layers": 2,
  "model.shape.num_attention_heads": 2,
  "model.shape.num_key_value_heads": 1,
  "model.shape.head_dim": 16,
  "task.train": 400,
  "task.test": 20,
  "task.reasoning.levels.sums": (1, 2),
  "task.reasoning.levels.products": (1, 1),
  "task.reasoning.levels.expressions": (1, 1),
  "task.reasoning.levels.search": (1, 1),
  "task.reasoning.levels.words": (1, 2),
  "warm_start.steps": 4,
  "warm_start.batch_size": 8,
  "rollout.max_new_tokens": 40,
  "rollout.feature_layers": (1,),
  "probe.bootstrap_steps": 1,
  "probe.buffer_rows": 64,
  "probe.min_rows": 8,
  "probe.pca_prompt": 4,
  "probe.pca_response": 4,
  "train.minibatch_size": 8,
  "train.microbatch_size": 8,
}
# Seconds of a run with one thread until one of its kind is measured.
ESTIMATES = {
  "warm start": 12 * 60.0,
  "training poise": 4 * 60.0,
  "training poise_sibling": 4 * 60.0,
  "training rloo": 3.5 * 60.0,
  "training grpo": 3.5 * 60.0,
  "training dapo": 4.5 * 60.0,
  "training dapo_greso": 5 * 60.0,
  "training ppo": 7.5 * 60.0,
  "training sppo": 5 * 60.0,
  "export": 6.0,
  "probes": 3 * 60.0,
  "probes and critics": 12 * 60.0,
  "gradients": 2.5 * 60.0,
  "evaluation of values": 45.0,
}
Fields = Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Arm:
  """One side of a comparison: an algorithm, and changes of its preset."""

  name: str  # label in tables
  algorithm: str
  fields: Fields = dataclasses.field(default_factory=dict)

  @property
  def slug(self) -> str:
    """The name as a folder."""
    return "".join(c if c.isalnum() else "_" for c in self.name)


@dataclasses.dataclass(frozen=True)
class Lab:
  """Where runs are, and how large they are."""

  workdir: pathlib.Path
  seeds: tuple[int, ...]
  quick: bool = False  # a few steps of tiny models

  @property
  def fields(self) -> dict[str, object]:
    """The changes of the base experiment."""
    return QUICK if self.quick else FULL

  @property
  def estimates(self) -> dict[str, float]:
    """Seconds of a run by kind, before any was measured."""
    return {} if self.quick else ESTIMATES

  def path(self, name: str) -> pathlib.Path:
    """The folder of a unit's results."""
    return self.workdir / name

  def command(self, program: str, algorithm: str, seed: int, out: str, fields: Fields) -> list[str]:
    """Arguments of a command that takes a config.

    Args:
      program: module of the command.
      algorithm: name behind the colon of --config.
      seed: config.seed.
      out: name of the unit, which is the command's --workdir.
      fields: changes of the base experiment.
    """
    fields = {"seed": seed, **self.fields, **fields}
    return [
      program,
      f"--config={CONFIG}:{algorithm}",
      f"--workdir={self.path(out)}",
      *(f"--config.{name}={value}" for name, value in fields.items()),
    ]

  def start(self, seed: int) -> Unit:
    """The warm start of a seed, a model that all arms begin with."""
    name = f"start-{seed}"
    command = self.command("experiments.warm_start", "poise", seed, name, {})
    return Unit(name, tuple(command), "warm start", seed=seed)

  def started(self, seed: int) -> dict[str, object]:
    """The fields with which a command begins with the warm start of a seed."""
    return {"model.source": self.path(f"start-{seed}"), "warm_start.steps": 0}

  def train(
    self,
    arm: Arm,
    seed: int,
    folder: str = "runs",
    chosen: Callable[[], Fields] | None = None,
    needs: Sequence[str] = (),
  ) -> Unit:
    """A training run.

    Args:
      arm: what to train.
      seed: config.seed.
      folder: folder of the run; claims that share runs use the same.
      chosen: more fields, which are known once `needs` are finished.
      needs: names of units besides the warm start.
    """
    name = run_name(arm, seed, folder)
    fields = {**arm.fields, **self.started(seed)}

    def command(more: Fields) -> tuple[str, ...]:
      changes = {**fields, **more}
      return tuple(self.command("experiments.train", arm.algorithm, seed, name, changes))

    return Unit(
      name,
      (lambda: command(chosen())) if chosen else command({}),
      kind=f"training {arm.algorithm}",
      needs=(f"start-{seed}", *needs),
      seed=seed,
    )

  def export(self, arm: Arm, seed: int) -> Unit:
    """The policy at the end of a run, as a model that other commands begin with."""
    name, run = f"exported/{arm.slug}-{seed}", run_name(arm, seed)
    paths = f"--workdir={self.path(run)}", f"--out={self.path(name)}"
    return Unit(name, ("experiments.export", *paths), "export", (run,), seed)

  def gradients(self, policy: str, seed: int) -> Unit:
    """Gradients of a policy under different baselines, see experiments/gradients.py.

    Args:
      policy: name of the unit whose model is studied: a warm start or an exported run.
      seed: config.seed.
    """
    name = f"gradients/{policy.replace('/', '-')}"
    fields = {"model.source": self.path(policy), "warm_start.steps": 0}
    command = self.command("experiments.gradients", "poise", seed, name, fields)
    if self.quick:
      command += ["--prompts=16", "--samples=8", "--batch=4", "--size=509"]
    return Unit(name, tuple(command), "gradients", (policy,), seed)

  def ablation(self, seed: int, window: int | None = None) -> Unit:
    """Probes, and critics, on answers of a warm start, see experiments/probe_ablation.py.

    Args:
      seed: config.seed.
      window: rollout.feature_window; None: the config's, with all layers and critics.
    """
    start = f"start-{seed}"
    name = f"ablation/{seed}" if window is None else f"ablation/{seed}-window-{window}"
    fields = self.started(seed) | ({} if window is None else {"rollout.feature_window": window})
    command = self.command("experiments.probe_ablation", "poise", seed, name, fields)
    command += ["--prompts=32", "--samples=4"] if self.quick else ["--prompts=1024", "--samples=8"]
    if window is None:
      command += ["--critics", f"--layers={'0,1' if self.quick else '0,1,2,3'}"]
    kind = "probes" if window else "probes and critics"
    return Unit(name, tuple(command), kind, (start,), seed)

  def results(self, name: str) -> dict:
    """The results.json of a unit."""
    return json.loads((self.path(name) / "results.json").read_text())

  def gradient_results(self, policy: str, seed: int) -> dict:
    """The results of `gradients`; NaN for numbers that are unknown."""

    def numbers(tree):
      if isinstance(tree, dict):
        return {name: numbers(sub) for name, sub in tree.items() if name != "provenance"}
      return np.nan if tree is None else tree

    return numbers(self.results(self.gradients(policy, seed).name))

  def read(self, arm: Arm, seed: int, folder: str = "runs") -> Run:
    """The log of a finished run."""
    return run_log.read(self.path(run_name(arm, seed, folder)))

  def finished(self, units: Sequence[Unit]) -> tuple[int, ...]:
    """The seeds all of whose units are finished."""
    done = Marks(self.workdir).finished(units)
    return tuple(
      seed
      for seed in self.seeds
      if all(unit.name in done for unit in units if unit.seed in (seed, None))
    )


def run_name(arm: Arm, seed: int, folder: str = "runs") -> str:
  """The name of a training run's unit."""
  return f"{folder}/{arm.slug}-{seed}"


def final_accuracy(run: Run) -> float:
  """Held-out accuracy at the end: the mean of the last FINAL evaluations."""
  return float(run.series("eval/accuracy")[1][-FINAL:].mean())


def sampled_accuracy(run: Run) -> float:
  """Accuracy of all answers sampled in the last third of the steps; NaN if none was logged.

  In the lab's 60 steps no training problem is used twice: there are 20,000, and a step samples at
  most 256. So this is the accuracy, at temperature 1, on problems that the run has not trained on
  before, but for short questions that are in the training set several times. The warm start has
  seen all problems with worked solutions, in all arms alike.
  """
  late = [
    (row["collect/score"], row.get("collect/generated", run.config["rollouts"]))
    for row in run.rows
    if "collect/score" in row and row["step"] * LATE > run.step * (LATE - 1)
  ]
  if not late:
    return float("nan")
  scores, counts = zip(*late, strict=True)  # a step of dynamic sampling has up to three batches
  return float(np.average(scores, weights=counts))


def seeds_of(text: str) -> tuple[int, ...]:
  """The seeds of a command line.

  Raises:
    UserError: one is not a whole number of at least 0, or comes twice.
  """
  seeds = text.split(",")
  if not all(seed.isdecimal() for seed in seeds):
    raise UserError(f"--seeds must be whole numbers of at least 0, such as 0,1,2; got {text!r}")
  if len(set(map(int, seeds))) < len(seeds):
    raise UserError(f"--seeds={text} has a seed twice")
  return tuple(map(int, seeds))


def mean_series(runs: Sequence[Run], metric: str) -> float:
  """The mean of a metric over the steps of all runs that logged it; NaN if none did."""
  values = np.concatenate([run.series(metric)[1] for run in runs])
  return float(values.mean()) if len(values) else float("nan")
