"""A float32 run multiplies in float32 on GPUs and TPUs, and a bfloat16 run as fast as it can.

Without a precision, a GPU rounds float32 factors to TF32 and a TPU to bfloat16. No such device is
needed to see which precision a program asks for: it stands in the text that is lowered for them.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from poise_jax import models, rollout
from poise_jax.estimators import critic
from poise_jax.learner import batching, plan, update
from poise_jax.learner.batching import form, minibatches
from poise_jax.learner.losses import PolicyLossConfig
from poise_jax.rollout import RolloutConfig
from poise_jax.types import Experience, Prompts, Rollouts

MODEL = models.ModelConfig("qwen2", 40, 32, 48, 2, 4, 2, 8, qkv_bias=True)
SAMPLING = RolloutConfig(
  n=2, max_new_tokens=4, top_p=0.9, feature_layers=(1,), think_end=(3, 4), eos_ids=(0,)
)
P, N, TP, T = 2, 2, 5, 4
ROLLOUTS = Rollouts(
  Prompts(jnp.ones((P, TP), jnp.int32), jnp.ones((P, TP), bool)),
  jnp.ones((P, N, T), jnp.int32),
  jnp.ones((P, N, T), bool),
  *[jnp.zeros((P, N, T))] * 2,
  jnp.zeros((P, N), bool),
  jnp.zeros((P, N, 0)),
)


def policy(dtype, attention):
  """An optimizer step of the policy: log-probs, entropies, loss and their gradients."""
  config = update.UpdateConfig(
    loss=PolicyLossConfig(entropy_coef=0.1),
    minibatch_size=P * N,
    microbatch_size=N,
    dtype=dtype,
    attention=attention,
    temperature=0.7,
  )
  state = jax.eval_shape(lambda: update.init(models.init(MODEL, jax.random.key(0)), config))
  zeros, ids = jnp.zeros((P, N)), jnp.zeros(P, jnp.int32)

  def step(state, rollouts):
    experience = Experience(rollouts, zeros, rollouts.logprobs, ids, ids)
    return update.step(MODEL, config, state, experience, zeros)

  return step, (state, ROLLOUTS)


def value(dtype, attention):
  """The gradient of a critic's values."""
  config = update.UpdateConfig(dtype=dtype, attention=attention, remat="full")
  state = jax.eval_shape(lambda: critic.init(MODEL, models.init(MODEL, jax.random.key(0)), config))

  def loss(params, rollouts):
    (part,) = minibatches(form(rollouts, {}), P * N, P * N)
    (micro,) = part.plan.micro_batches
    return critic.token_values(MODEL, params, part.batch, micro, config).sum()

  return jax.grad(loss), (state.params, ROLLOUTS)


def sampler(dtype, attention):
  """Prefill, decode, draws and pooled features."""
  options = dataclasses.replace(SAMPLING, attention=attention)
  params = jax.eval_shape(
    lambda: models.sampling_params(MODEL, models.init(MODEL, jax.random.key(0)), dtype)
  )

  def sample(params, key):
    return rollout.sample(MODEL, params, ROLLOUTS.prompts, key, options)

  return sample, (params, jax.random.key(0))


def chunked_sampler(dtype, attention):
  """The same with an int8 cache and a prefill in chunks."""
  options = dataclasses.replace(SAMPLING, attention=attention, cache_dtype="int8", prefill_chunk=2)
  _, arguments = sampler(dtype, attention)

  def sample(params, key):
    return rollout.sample(MODEL, params, ROLLOUTS.prompts, key, options)

  return sample, arguments


def features(dtype, attention):
  """Features of a teacher-forced pass, which is always float32."""
  del dtype, attention
  function = lambda params: rollout.features_of(MODEL, params, ROLLOUTS, SAMPLING)  # noqa: E731
  return function, (models.abstract_params(MODEL),)


PROGRAMS = (policy, value, sampler, chunked_sampler, features)


def products(make, dtype, platform, attention):
  """(operand dtypes, precisions) of every matrix product lowered for a platform."""
  function, arguments = make(dtype, attention)
  lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))
  found = []
  for line in lowered.as_text().splitlines():
    if "stablehlo.dot_general" in line:
      types = re.search(r": \(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\) ->", line)
      precision = re.search(r"precision = \[(\w+), (\w+)\]", line)
      found.append((types.groups(), precision.groups() if precision else ("DEFAULT",) * 2))
  return found


@pytest.mark.parametrize("platform,attention", [("cuda", "cudnn"), ("tpu", "splash")])
@pytest.mark.parametrize("make", PROGRAMS)
def test_products_of_float32_are_float32(make, platform, attention):
  found = products(make, "float32", platform, attention)
  assert len(found) >= 10
  assert set(found) == {(("f32", "f32"), ("HIGHEST", "HIGHEST"))}


@pytest.mark.parametrize("make,float32", [(policy, 0), (value, 2), (sampler, 1)])
def test_products_of_bfloat16_have_the_default_precision(make, float32):
  """Pooled features and values are float32 in a bfloat16 run as well; they are small."""
  found = products(make, "bfloat16", "cuda", "xla")
  narrow = [precision for types, precision in found if types == ("bf16", "bf16")]
  assert set(narrow) == {("DEFAULT", "DEFAULT")} and len(narrow) >= 10
  assert sum(precision == ("HIGHEST", "HIGHEST") for _, precision in found) == float32


@pytest.mark.parametrize(
  "kind,kernel", [("packed", "fmhaScaleBiasSoftmax"), ("shared", "fmhaSoftmax")]
)
def test_an_update_in_bfloat16_lowers_for_a_gpu_with_its_kernel(monkeypatch, kind, kernel):
  """Rows of several sequences need a mask, rows of shared prompts lengths. No GPU is needed to
  lower for one, but JAX asks for cuDNN's version and the device's generation."""
  checks = "jax._src.cudnn.fused_attention_stablehlo.check_"
  monkeypatch.setattr(f"{checks}cudnn_version", lambda: 91300)
  monkeypatch.setattr(f"{checks}compute_capability", lambda capability: True)
  monkeypatch.setattr(
    batching, "plan", lambda lengths, size, shards: getattr(plan, kind)(lengths, size * 9, shards)
  )
  function, arguments = policy("bfloat16", "cudnn")
  lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
  calls = set(re.findall(r"__cudnn\$(\w+)", lowered.as_text()))
  assert calls == {kernel, f"{kernel}Backward"}
