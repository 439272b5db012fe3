"""Options of the update that cannot work are named."""

import pytest

from poise_jax.learner.losses import PolicyLossConfig
from poise_jax.learner.update import UpdateConfig


@pytest.mark.parametrize(
  "change,message",
  [
    (
      dict(old_logprobs="both"),
      "unknown train.old_logprobs 'both'; choose from recompute, sampler",
    ),
    (dict(optimizer="sgd"), "unknown train.optimizer 'sgd'; .*choose from adafactor, adamw, "),
    (dict(schedule="cosin"), "unknown train.schedule 'cosin'; did you mean 'cosine'"),
    (
      dict(schedule="linear", warmup_steps=30, optimizer_steps=30),
      "warmup_steps=30 are not less than the run's 30 optimizer steps",
    ),
    (
      dict(minibatch_size=8, microbatch_size=3),
      "train.minibatch_size must be a multiple of train.microbatch_size=3, got 8",
    ),
  ],
)
def test_bad_options_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    UpdateConfig(**change)


@pytest.mark.parametrize(
  "change,value",
  [
    (dict(microbatch_size=0), "0"),
    (dict(minibatch_size=-8, microbatch_size=8), "-8"),
    (dict(remat="everything"), "'everything'"),
    (dict(dtype="float31"), "'float31'"),
    (dict(logprob_chunk=-1), "-1"),
    (dict(adam_b1=1.0), "1.0"),
  ],
)
def test_an_impossible_value_is_named_with_its_field(change, value):
  with pytest.raises(ValueError, match=f"train.{next(iter(change))} .*{value}"):
    UpdateConfig(**change)


def test_rejection_needs_recomputed_log_probs():
  with pytest.raises(ValueError, match="rejection='token' .*old_logprobs='recompute'"):
    UpdateConfig(loss=PolicyLossConfig(rejection="token"), old_logprobs="sampler")


def test_importance_weights_need_recomputed_log_probs():
  with pytest.raises(ValueError, match="importance_cap=2.0 .*old_logprobs='recompute'"):
    UpdateConfig(loss=PolicyLossConfig(importance_cap=2.0), old_logprobs="sampler")
