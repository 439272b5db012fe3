"""Names that other codebases (verl, TRL, transformers) give to fields of the config."""

from typing import NamedTuple


class Field(NamedTuple):
  """Fields of the config that a name of another codebase stands for."""

  fields: tuple[str, ...]
  note: str = ""  # what differs


_LEARNING_RATE = Field(("train.learning_rate",))
_TOKENS = Field(("rollout.max_new_tokens",))
_KL = Field(("train.loss.kl_coef",))
_CLIP = Field(("train.loss.clip_low", "train.loss.clip_high"))
_MICRO = Field(("train.microbatch_size",), "sequences over all devices")
_MINI = Field(("train.minibatch_size",), "sequences of an optimizer step, not prompts")
_EPOCHS = Field(("train.epochs",), "passes over the rollouts of a step")
_AGGREGATION = Field(("train.loss.aggregation",))
_STEPS = Field(("steps",), "batches of rollouts")
_SAMPLES = Field(("rollout.n",))
_WARMUP = Field(("train.warmup_steps",), "optimizer steps")
_SOURCE = Field(("model.source",))
_CAP = Field(("train.loss.importance_cap",))
_SURROGATE = Field(("train.loss.surrogate",), "usually chosen as --config=FILE.py:ALGORITHM")
_REFERENCE = Field(("reference_every",), "steps")
_SLOTS = Field(("rollout.slots",), "responses that decode at once")
_FILES = Field(("task.dataset.own.train",))
_REWARD = Field(("task.dataset.own.verifier", "verifier.function"), "path/to/file.py:function")
_DTYPE = Field(("train.dtype", "model.dtype"), "of training and of sampling")
_ROLLOUTS = Field(("rollouts",), "sequences of a step, prompts x rollout.n")

OTHER_NAMES = {
  "lr": _LEARNING_RATE,
  "actor_lr": _LEARNING_RATE,
  "critic_lr": Field(("critic.learning_rate",)),
  "lr_scheduler_type": Field(("train.schedule",)),
  "lr_scheduler": Field(("train.schedule",)),
  "lr_warmup_steps": _WARMUP,
  "warmup_ratio": _WARMUP,
  "lr_warmup_steps_ratio": _WARMUP,
  "warmup_style": Field(("train.schedule",)),
  "clip_grad": Field(("train.max_grad_norm",)),
  "optim": Field(("train.optimizer",)),
  "grad_clip": Field(("train.max_grad_norm",)),
  "gradient_checkpointing": Field(("train.remat",)),
  "enable_gradient_checkpointing": Field(("train.remat",)),
  "batch_size": Field(("rollouts", "train.minibatch_size"), "both count sequences"),
  "train_batch_size": _ROLLOUTS,
  "generation_batch_size": _ROLLOUTS,
  "ppo_mini_batch_size": _MINI,
  "mini_batch_size": _MINI,
  "gradient_accumulation_steps": _MINI,
  "ppo_micro_batch_size": _MICRO,
  "ppo_micro_batch_size_per_gpu": _MICRO,
  "micro_batch_size": _MICRO,
  "per_device_train_batch_size": _MICRO,
  "ppo_epochs": _EPOCHS,
  "num_iterations": _EPOCHS,
  "num_generations": _SAMPLES,
  "num_samples": _SAMPLES,
  "group_size": _SAMPLES,
  "beta": _KL,
  "kl_loss_coef": _KL,
  "kl_coeff": Field(("train.loss.kl_coef", "reward.kl_coef"), "in the loss, or in the reward"),
  "use_kl_loss": _KL,
  "use_kl_in_reward": Field(("reward.kl_coef",)),
  "kl_loss_type": Field(("train.loss.kl_estimator",)),
  "epsilon": _CLIP,
  "clip_ratio": _CLIP,
  "epsilon_low": Field(("train.loss.clip_low",)),
  "clip_ratio_low": Field(("train.loss.clip_low",)),
  "epsilon_high": Field(("train.loss.clip_high",)),
  "clip_ratio_high": Field(("train.loss.clip_high",)),
  "clip_ratio_c": Field(("train.loss.dual_clip",)),
  "delta": Field(("train.loss.dual_clip",)),
  "entropy_coeff": Field(("train.loss.entropy_coef",)),
  "loss_agg_mode": _AGGREGATION,
  "loss_type": Field(("train.loss.aggregation", "train.loss.surrogate")),
  "adv_estimator": Field(("estimator",), "usually chosen as --config=FILE.py:ALGORITHM"),
  "mask_truncated_completions": Field(("reward.overlong_filter",)),
  "max_completion_length": _TOKENS,
  "max_response_length": _TOKENS,
  "response_length": _TOKENS,
  "max_tokens": _TOKENS,
  "system_prompt": Field(("task.system",)),
  "chat_template_kwargs": Field(("task.template_args",)),
  "messages": Field(("task.dataset.own.messages",)),
  "max_steps": _STEPS,
  "total_epochs": _STEPS,
  "num_train_epochs": _STEPS,
  "total_training_steps": _STEPS,
  "save_steps": Field(("checkpoint_every",)),
  "save_freq": Field(("checkpoint_every",)),
  "eval_steps": Field(("eval_every",)),
  "test_freq": Field(("eval_every",)),
  "logging_dir": Field(("loggers",)),
  "report_to": Field(("loggers",)),
  "model_name_or_path": _SOURCE,
  "model_path": _SOURCE,
  "path": _SOURCE,
  "dataset_name": _FILES,
  "train_files": _FILES,
  "val_files": Field(("task.dataset.own.test",), "with task.dataset.test_on=own"),
  "filter_overlong_prompts": Field(("task.drop_long",)),
  "bf16": _DTYPE,
  "torch_dtype": _DTYPE,
  "custom_reward_function": _REWARD,
  "reward_funcs": _REWARD,
  "do_sample": Field(("eval.temperature", "eval.n"), "a temperature of 0 is greedy"),
  "num_generations_eval": Field(("eval.n",)),
  "per_device_eval_batch_size": Field(("eval_batch",), "prompts over all devices"),
  "cliprange_value": Field(("critic.value_clip",)),
  "critic_warmup": Field(("critic.pretrain_steps",)),
  "len": Field(("reward.overlong_buffer",)),
  "penalty_factor": Field(("reward.overlong_penalty",)),
  "rollout_is": Field(("train.loss.importance_level", "train.loss.importance_cap")),
  "rollout_is_threshold": _CAP,
  "vllm_importance_sampling_cap": _CAP,
  "token_mask": Field(("train.loss.rejection",)),
  "sequence_mask": Field(("train.loss.rejection",)),
  "importance_sampling_level": _SURROGATE,
  "loss_mode": _SURROGATE,
  "sync_ref_model": _REFERENCE,
  "ref_model_sync_steps": _REFERENCE,
  "tensor_model_parallel_size": Field(("mesh.tensor",)),
  "gpu_memory_utilization": _SLOTS,
  "max_num_seqs": _SLOTS,
  "enable_chunked_prefill": Field(("rollout.prefill_chunk",)),
}
