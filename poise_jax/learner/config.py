"""Options of the update: what a user sets, and what a run derives."""

import dataclasses

from poise_jax.errors import UserError, check_finite, unknown_name
from poise_jax.learner.losses import PolicyLossConfig
from poise_jax.models.transformer import REMAT_POLICIES

DTYPES = ("float32", "bfloat16", "float16")
OLD_LOGPROBS = ("sampler", "recompute")
OPTIMIZERS = ("adamw", "adamw_bfloat16", "adafactor")
SCHEDULES = ("constant", "linear", "cosine")


def check_dtype(field: str, dtype: str):
  """Raises UserError if `dtype` is not a computation dtype."""
  if dtype not in DTYPES:
    raise unknown_name(field, dtype, DTYPES)


@dataclasses.dataclass(frozen=True)
class UpdateOptions:
  """Options of the update that a user may set; raises UserError for values that cannot work."""

  loss: PolicyLossConfig = PolicyLossConfig()  # objective
  minibatch_size: int = 64  # sequences an optimizer step, for any n
  # passes over the rollouts of a step: PPO's epochs, for a critic too; old log-probs are those from
  # before the first pass
  epochs: int = 1
  # memory of a pass: sequences at the limit of length; does not change the result
  microbatch_size: int = 64
  # source of the old policy's log-probs: "recompute" in the trainer, or those of the "sampler"
  old_logprobs: str = "recompute"
  # "adamw", "adamw_bfloat16" (its mean of gradients in bfloat16: 2 bytes per parameter less), or
  # "adafactor" (no mean, and squared gradients by rows and columns: 8 bytes per parameter less)
  optimizer: str = "adamw"
  learning_rate: float = 1e-6  # learning rate after the warm-up
  warmup_steps: int = 0  # optimizer steps of linear warm-up
  # learning rate after the warm-up: "constant", or "linear" or "cosine" to 0 at the run's end
  schedule: str = "constant"
  weight_decay: float = 0.0  # decoupled decay of every parameter, as in AdamW
  max_grad_norm: float = 1.0  # global norm to which gradients are clipped; 0: no clipping
  adam_b1: float = 0.9  # decay rate of AdamW's mean of gradients
  adam_b2: float = 0.999  # decay rate of AdamW's mean of squared gradients
  dtype: str = "float32"  # computation dtype; master weights stay float32
  # activations recomputed in the backward pass: "none", "full", or "dots" (all but products)
  remat: str = "none"
  # attention kernel: "xla", "splash" (TPU), "cudnn" (GPU), or "auto": the fastest that runs on the
  # devices in use; float32 is always computed by "xla"
  attention: str = "auto"
  # most tokens whose logits a device holds at once; 0: as many as take 256 MiB
  logprob_chunk: int = 0

  def __post_init__(self):
    check_finite("train", self)
    for name, choices in (
      ("old_logprobs", OLD_LOGPROBS),
      ("optimizer", OPTIMIZERS),
      ("schedule", SCHEDULES),
      ("remat", REMAT_POLICIES),
    ):
      if getattr(self, name) not in choices:
        raise unknown_name(f"train.{name}", getattr(self, name), choices)
    if self.loss.importance_cap and self.old_logprobs == "sampler":
      raise UserError(
        f"train.loss.importance_cap={self.loss.importance_cap} compares recomputed log-probs with "
        "the sampler's; it needs train.old_logprobs='recompute'"
      )
    if self.loss.rejection != "none" and self.old_logprobs == "sampler":
      raise UserError(
        f"train.loss.rejection={self.loss.rejection!r} compares recomputed log-probs with the "
        "sampler's; it needs train.old_logprobs='recompute'"
      )
    for name in ("minibatch_size", "microbatch_size", "epochs"):
      if getattr(self, name) < 1:
        raise UserError(f"train.{name} must be at least 1, got {getattr(self, name)}")
    for name in (
      "learning_rate",
      "warmup_steps",
      "weight_decay",
      "max_grad_norm",
      "logprob_chunk",
    ):
      if getattr(self, name) < 0:
        raise UserError(f"train.{name} must not be negative, got {getattr(self, name)}")
    for name in ("adam_b1", "adam_b2"):
      if not 0 <= getattr(self, name) < 1:
        raise UserError(f"train.{name} must be in [0, 1), got {getattr(self, name)}")
    check_dtype("train.dtype", self.dtype)
    if self.minibatch_size % self.microbatch_size:
      raise UserError(
        f"train.minibatch_size must be a multiple of train.microbatch_size="
        f"{self.microbatch_size}, got {self.minibatch_size}"
      )


@dataclasses.dataclass(frozen=True)
class UpdateConfig(UpdateOptions):
  """UpdateOptions and what a run derives: a static argument of the update."""

  temperature: float = 1.0  # temperature of the trained policy, which is the sampling temperature
  optimizer_steps: int = 0  # of the whole run; read by a schedule that ends with it

  def __post_init__(self):
    super().__post_init__()
    if self.schedule != "constant" and self.optimizer_steps <= self.warmup_steps:
      raise UserError(
        f"train.schedule={self.schedule!r} falls from the warm-up to the run's end, but "
        f"warmup_steps={self.warmup_steps} are not less than the run's {self.optimizer_steps} "
        "optimizer steps; lower warmup_steps or raise steps"
      )
