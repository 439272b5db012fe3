"""A run: an experiment and the services that the training loop uses beside its state."""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Mapping

from jaxtyping import Array, PyTree

from poise_jax.distributed import processes, sharding
from poise_jax.errors import UserError
from poise_jax.evaluation.answer import evaluate
from poise_jax.evaluation.judge import Judge
from poise_jax.provenance import provenance
from poise_jax.training import summary
from poise_jax.training.build import Experiment
from poise_jax.training.checkpoints import Checkpoints
from poise_jax.training.interrupts import Interrupts
from poise_jax.training.logging import Logger, Silent
from poise_jax.training.post_mortem import write_post_mortem
from poise_jax.training.state import LoopState
from poise_jax.types import Estimate, Experience, TrainState


@dataclasses.dataclass(frozen=True)
class Run:
  """An experiment in progress: everything that the training loop uses beside its state."""

  experiment: Experiment
  workdir: pathlib.Path
  judge: Judge
  checkpoints: Checkpoints
  interrupts: Interrupts
  log: Logger | Silent

  def write_start(self, step: int, changes: list[str], functions: Mapping[str, str]):
    """Writes provenance and, if one was made, the tokenizer.

    Args:
      step: last step before this start.
      changes: changes of the config since the last start.
      functions: checksums of the reward functions' files, by function.
    """
    start = {**provenance(), "step": step, "config_changes": changes}
    start |= {"reward_functions": dict(functions)} if functions else {}
    with (self.workdir / "provenance.jsonl").open("a") as file:
      file.write(json.dumps(start) + "\n")
    if self.experiment.made_tokenizer:
      (self.workdir / "tokenizer.model").write_bytes(self.experiment.made_tokenizer)

  def evaluate(self, step: int, params: PyTree[Array]) -> dict[str, float]:
    """Evaluates the policy on the held-out sets; returns metrics.

    Writes the responses to answers/step_N.jsonl and, if config.eval samples beside greedy
    decoding, the sampled ones to answers_sampled/step_N.jsonl.
    """
    experiment = self.experiment
    self.log.phase(f"step {step}: evaluating" if step else "evaluating")
    metrics, *answers = evaluate(
      experiment.model,
      experiment.sampling_params(params),
      experiment.held_out,
      experiment.rollout,
      experiment.eval,
      experiment.config.eval_batch,
      experiment.mesh,
      functools.partial(self.judge.score, training=False),
    )
    for name, rows in zip(("answers", "answers_sampled"), answers, strict=True):
      if rows and processes.is_first():
        (self.workdir / name).mkdir(exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (self.workdir / name / f"step_{step}.jsonl").write_text("".join(lines))
    return metrics

  def check_skipped(
    self, step: int, policy: TrainState, experience: Experience, estimate: Estimate
  ):
    """Reports skipped optimizer steps.

    Raises:
      UserError: max_skipped_updates were skipped in a row.
    """
    skipped = int(sharding.fetch(policy.skipped_in_a_row))
    limit = self.experiment.config.max_skipped_updates
    if skipped:
      self.log.console.print(
        f"step {step}: loss or gradient not finite, policy unchanged; {skipped} optimizer steps in "
        f"a row, max_skipped_updates={limit}"
      )
    if skipped < limit:
      return
    rows = summary.samples(self.experiment, step, experience, estimate, len(experience.scores))
    batch = sharding.fetch((experience, estimate.advantages))
    path = processes.on_first(write_post_mortem, self.workdir, step, *batch, rows)
    raise UserError(
      f"loss or gradient were not finite in {skipped} optimizer steps in a row, up to step {step}, "
      f"whose batch is in {path}; lower train.learning_rate or train.max_grad_norm and continue "
      "from the last checkpoint with --allow_config_change"
    )

  def save(self, state: LoopState, step: int, best: dict):
    """Saves a checkpoint, unless the step has one."""
    self.log.phase(f"step {step}: saving")
    about = {
      "config": json.loads(self.experiment.config.to_json()),
      "model": self.experiment.model.to_hf(),
      "best": best,
      "elapsed": time.perf_counter() - self.log.clock,
    }
    self.checkpoints.save(step, state, about)
